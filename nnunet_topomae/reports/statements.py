"""What a benchmark's comparisons say, as sentences: the same in the page and in Markdown."""

from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.results import Contrast, Cost, Results, Table
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports.page import format_p


def heading(table: Table) -> str:
    """Name of a table: its data set and share of the labels."""
    share = "" if table.fraction == 1 else f", {100 * table.fraction:g} % of the labels"
    return f"{table.dataset}{share}"


def signed(value: float, metric: str) -> str:
    """A difference with its sign; a dash where it is not known.

    Args:
        value: the difference.
        metric: which decides the number of digits.
    """
    return "–" if value != value else f"{value:+.{COMPARED[metric].digits}f}"


def interval(found: Comparison, metric: str) -> str:
    """The 95 % interval of a difference.

    Args:
        found: the comparison.
        metric: which decides the number of digits.
    """
    return "–" if found.low != found.low else f"{signed(found.low, metric)} to {signed(found.high, metric)}"


def extent(results: Results, table: Table) -> str:
    """How much a table rests on: cases, patients, folds, seeds and trainings."""
    spec = results.spec
    return (
        f"{_count(len(table.cases), 'case')} of {_count(table.patients, 'patient')}, "
        f"{_count(len(spec.folds), 'fold')} with {_count(len(spec.seeds), 'seed')}: "
        f"{_count(table.trainings, 'training')} per recipe"
    )


def primary_statements(results: Results) -> list[list[str]]:
    """Sentences on the primary comparison of every data set: the result, what it rests on, the margin, and limits.

    Returns:
        a list of sentences per data set; without a primary comparison, one sentence that says so.
    """
    spec = results.spec
    exploratory = sum(not one.primary for table in results.tables for one in table.contrasts)
    if spec.primary is None:
        text = "No primary comparison was named in the benchmark's file. "
        return [[f"{text}All {exploratory} comparisons are exploratory and corrected together."]]
    found = [(table, one) for table in results.tables for one in table.contrasts if one.primary]
    if not found:
        return [["The primary comparison cannot be made yet: one of its recipes is not complete."]]
    return [_statement(results, table, one, len(found)) for table, one in found]


def _statement(results: Results, table: Table, contrast: Contrast, family: int) -> list[str]:
    found, metric, titles = contrast.found, contrast.metric, results.titles
    known = f" (95 % interval {interval(found, metric)}), p {_equals(found.p)}" if found.p == found.p else ""
    worse = "" if COMPARED[metric].higher_is_better else " (lower is better)"
    result = (
        f"{COMPARED[metric].label} on {heading(table)}, "
        f"“{titles[contrast.recipe]}” against “{titles[contrast.baseline]}”: "
        f"{signed(found.difference, metric)}{known}, {found.verdict}{worse}."
    )
    sentences = [result]
    if family > 1:
        sentences.append(f"Corrected for {family} data sets, p {_equals(found.adjusted_p)}.")
    if found.fold_p == found.fold_p:
        sentences.append(
            f"Conservative check, t-test over the means of {found.folds} folds: p {_equals(found.fold_p)}."
        )
    sentences.append(f"It rests on {extent(results, table)}.")
    costs = (f"“{titles[name]}” {_cost(table.rows[name].cost)}" for name in (contrast.recipe, contrast.baseline))
    sentences.append(f"Cost of a training: {'; '.join(costs)}.")
    if results.stated_late:
        sentences.append(
            f"It was not stated beforehand for all trainings: {results.stated_late} began while the benchmark's file "
            "named another primary comparison or margin, or none."
        )
    if results.unrecorded:
        sentences.append(
            f"Whether it was stated beforehand is not recorded for {results.unrecorded} trainings: "
            "an earlier version of nnunet-topomae made them, or the record of their attempts was deleted."
        )
    if results.planned_otherwise:
        sentences.append(
            f"{_count(results.planned_otherwise, 'training')} began while the benchmark's file named other seeds or "
            "folds, which may have been changed after the first results were known."
        )
    if found.testable:
        digits = COMPARED[metric].digits
        sentences.append(
            f"About three of four such benchmarks would show a true difference of {found.detectable:.{digits}f}; "
            f"observed differences below {(found.high - found.low) / 2:.{digits}f} could not have been shown."
        )
    if results.spec.margin is not None:
        said = found.against_margin(results.spec.margin)
        sentences.append(f"By the margin of {results.spec.margin:g} in the benchmark's file: {said}.")
    return sentences + [f"{text[0].upper()}{text[1:]}." for text in found.caveats]


def _cost(cost: Cost) -> str:
    """What two recipes may be equal in: steps, operations, time."""
    parts = []
    if cost.steps is not None and cost.pretraining_steps is not None:
        before = f", {cost.pretraining_steps} of pre-training" if cost.pretraining_steps else ""
        parts.append(f"{cost.steps + cost.pretraining_steps} steps{before}")
    if cost.total_macs is not None:
        parts.append(f"{cost.total_macs / 1e12:.1f} T multiply-adds")
    return ", ".join([*parts, f"{cost.hours:.2f} h"])


def exploratory_contrasts(table: Table) -> list[tuple[str, str, list[Contrast]]]:
    """Exploratory comparisons of a table, by metric and baseline."""
    groups: dict[tuple[str, str], list[Contrast]] = {}
    for one in table.contrasts:
        if not one.primary:
            groups.setdefault((one.metric, one.baseline), []).append(one)
    return [(metric, baseline, found) for (metric, baseline), found in groups.items()]


def caveats(table: Table) -> list[str]:
    """What the exploratory comparisons of a table cannot know, each once, with the number of comparisons it is for.

    A last note says where differences are not those of the means in the table of scores.
    """
    counts: dict[str, int] = {}
    tested = [one.found for one in table.contrasts if not one.primary and one.found.testable]
    for found in tested:
        for text in found.caveats:
            counts[text] = counts.get(text, 0) + 1
    notes = [f"{text} ({number} of {len(tested)} comparisons)" for text, number in counts.items()]
    listed = (score for row in table.rows.values() for case in row.by_case.values() for score in case.values())
    if any(score["dice"] != score["dice"] for score in listed):
        notes.append(
            "a structure that neither truth nor prediction has counts as perfect in comparisons, and not at all in the "
            "table of scores; so differences are not exactly those of the means there"
        )
    return notes


def _equals(p: float) -> str:
    text = format_p(p)
    return text if text.startswith("<") else f"= {text}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
