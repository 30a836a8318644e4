"""What a benchmark's comparisons say, as sentences: the same in the page and in Markdown."""

import math
from collections.abc import Iterable

from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.results import Amount, Contrast, Cost, Results, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports.page import format_number, format_p

TERA = 1e12
# For reports that are not complete.
PENDING = "Comparisons that cannot be made yet count as tests without a difference."
_NOT_RECORDED = "an earlier version of nnunet-topomae made them, or the record of their attempts was deleted"


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
    if not table.rows:
        return "No recipe is complete yet"
    return (
        f"{_count(len(table.cases), 'case')} of {_count(table.patients, 'patient')}, "
        f"{_count(len(spec.folds), 'fold')} with {_count(len(spec.seeds), 'seed')}: "
        f"{_count(table.trainings, 'training')} per recipe"
    )


def primary_statements(results: Results) -> list[list[str]]:
    """Sentences on the primary comparison of every data set: the result, what it rests on, the margin, and limits.

    Returns:
        a list of sentences per data set whose recipes are complete; otherwise one list that says what is missing.
    """
    spec = results.spec
    exploratory = sum(not one.primary for table in results.tables for one in table.contrasts)
    if spec.primary is None:
        text = "No primary comparison was named in the benchmark's file. "
        removed = f" {removed_primary(results)}" if results.stated_late else ""
        text += f"All {exploratory} comparisons are exploratory and corrected together.{removed}"
        return [[text, *_planned(results)]]
    found = [(table, one) for table in results.tables for one in table.contrasts if one.primary]
    if not found:
        return [
            ["The primary comparison cannot be made yet: one of its recipes is not complete.", *_beforehand(results)]
        ]
    return [_statement(results, table, one, len(spec.datasets) - len(found)) for table, one in found]


def uncertainty(spec: BenchmarkSpec) -> list[str]:
    """What the uncertainty of a difference is made of, in sentences.

    Args:
        spec: its folds and seeds decide what can be known.
    """
    folds, seeds = len(spec.folds) > 1, len(spec.seeds) > 1
    if not folds and not seeds:
        return [
            "With one training per recipe, nothing is tested: a better recipe cannot be told from a lucky training."
        ]
    sentences = []
    if seeds or spec.held_out:
        of_cases = "patients" if spec.held_out else "patients within folds"
        of_trainings = "within folds" if seeds else "by the means of the folds"
        sentences.append(
            f"The uncertainty of a difference has two parts, cases ({of_cases}) and trainings ({of_trainings}; paired "
            "where recipes share the labelled cases)."
        )
    else:
        sentences.append(
            "With one training per fold, the luck of a training cannot be told from the effect of a fold. So the means "
            "of the folds alone tell the uncertainty, as in a t-test over them, and there is no second check."
        )
    if folds and seeds:
        checked = "trainings" if spec.held_out else "both"
        sentences.append(f"The means of the folds check {checked}: the more they differ, the more they count.")
        if not spec.held_out:
            sentences.append("“p, fold means” is a t-test over the means of the folds, a conservative check.")
    if folds:
        sentences.append(
            "All this takes the folds as independent, but they share training cases: three quarters in a usual split "
            "into five folds. No estimate of the variance allows for that without bias, and the true uncertainty may "
            "be larger (Bengio and Grandvalet 2004)."
        )
    return sentences


def removed_primary(results: Results) -> str:
    """That the file has named a primary comparison which it names no more.

    Args:
        results: of a benchmark without a primary comparison, with trainings that began with one.
    """
    number = sum(results.stated_late.values())
    return f"{_count(number, 'training')} began while it named one: {'; '.join(results.stated_late)}."


def _beforehand(results: Results) -> list[str]:
    """Whether the primary comparison was named before the trainings began, where it was not for all of them."""
    sentences = []
    if results.stated_late:
        named = "; ".join(f"{number}: {what}" for what, number in results.stated_late.items())
        sentences.append(
            f"It was not stated beforehand for all trainings: {sum(results.stated_late.values())} began while the "
            f"benchmark's file named another primary comparison or margin, or none ({named})."
        )
    if results.unrecorded:
        sentences.append(
            f"Whether it was stated beforehand is not recorded for {_count(results.unrecorded, 'training')}: "
            f"{_NOT_RECORDED}."
        )
    return [*sentences, *_planned(results)]


def _planned(results: Results) -> list[str]:
    """Whether the trainings began with the seeds and folds that the file names now, where not all of them did."""
    sentences = []
    if results.planned_otherwise:
        sentences.append(
            f"{_count(results.planned_otherwise, 'training')} began while the benchmark's file named other seeds or "
            "folds, which may have been changed after the first results were known."
        )
    if results.plan_unrecorded:
        sentences.append(
            "Which seeds and folds the benchmark's file named at first is not recorded for "
            f"{_count(results.plan_unrecorded, 'training')}: {_NOT_RECORDED}."
        )
    return sentences


def _statement(results: Results, table: Table, contrast: Contrast, pending: int) -> list[str]:
    datasets = len(results.spec.datasets)
    found, metric, titles = contrast.found, contrast.metric, results.titles
    known = f" (95 % interval {interval(found, metric)}), p {_equals(found.p)}" if found.p == found.p else ""
    worse = "" if COMPARED[metric].higher_is_better else " (lower is better)"
    result = (
        f"{COMPARED[metric].label} on {heading(table)}, "
        f"“{titles[contrast.recipe]}” against “{titles[contrast.baseline]}”: "
        f"{signed(found.difference, metric)}{known}, {found.verdict}{worse}."
    )
    sentences = [result]
    if datasets > 1 and found.testable:
        sentences.append(f"Corrected for {datasets} data sets, p {_equals(found.adjusted_p)}.")
    if pending:
        sentences.append(
            f"On {pending} of them it cannot be made yet, as one of its recipes is not complete there; until then "
            "this counts as no difference."
        )
    if found.fold_p == found.fold_p:
        sentences.append(
            f"Conservative check, t-test over the means of {found.folds} folds: p {_equals(found.fold_p)}."
        )
    sentences.append(f"It rests on {extent(results, table)}.")
    cpu = results.spec.device == "cpu"
    both = (contrast.recipe, contrast.baseline)
    costs = (f"“{titles[name]}” {_cost(table.rows[name].cost, cpu)}" for name in both)
    sentences.append(f"Cost of a training: {'; '.join(costs)}.")
    sentences += [*_machines(table), *_ended_early(table, both), *_beforehand(results)]
    if found.testable:
        digits = COMPARED[metric].digits
        text = (
            f"About three of four such benchmarks would show a true difference of {found.detectable:.{digits}f}; "
            f"observed differences below {found.least_shown:.{digits}f} could not have been shown."
        )
        if datasets > 1:
            text += (
                f" Both are for p below 0.05 / {datasets}, which is enough whatever the other data sets show. Where "
                "those show a difference, a smaller one is enough here."
            )
        sentences.append(text)
    if results.spec.margin is not None:
        said = found.against_margin(results.spec.margin)
        sentences.append(f"By the margin of {results.spec.margin:g} in the benchmark's file: {said}.")
    return sentences + [f"{text[0].upper()}{text[1:]}." for text in found.caveats]


def _cost(cost: Cost, cpu: bool) -> str:
    """What two recipes may be equal in: steps, operations, time; on a CPU, time of the processors too."""
    parts = []
    if cost.steps is not None and cost.pretraining_steps is not None:
        before = f"{amount(cost.pretraining_steps)} steps of pre-training, " if cost.pretraining_steps.most else ""
        parts.append(f"{before}{amount(cost.steps)} supervised steps")
    if cost.total_macs is not None:
        parts.append(f"{multiply_adds(cost.total_macs)} T multiply-adds")
    parts.append(f"{cost.hours:.2f} h")
    if cpu and cost.cpu_hours is not None:
        parts.append(f"{cost.cpu_hours:.2f} CPU h")
    return ", ".join(parts)


def amount(found: Amount | None, unit: float = 1.0, digits: int = 0) -> str:
    """A mean over trainings, with the extremes where they differ; a dash where it is not known.

    Args:
        found: the amount.
        unit: what it is counted in.
        digits: after the decimal point.
    """
    if found is None:
        return "–"
    mean, least, most = (format_number(value / unit, digits) for value in (found.mean, found.least, found.most))
    return mean if found.least == found.most else f"{mean} ({least}–{most})"


def multiply_adds(found: Amount | None) -> str:
    """Multiply-adds in 10^12 with at least three significant digits of the mean, so that recipes can be compared.

    Args:
        found: the amount.
    """
    whole_digits = math.floor(math.log10(found.mean / TERA)) + 1 if found and found.mean else 1
    return amount(found, TERA, max(0, 3 - whole_digits))


def cost_notes(table: Table) -> list[str]:
    """What has to be known to compare the costs of a table: several machines, and trainings that ended early."""
    return [*_machines(table), *_ended_early(table, table.rows)]


def _machines(table: Table) -> list[str]:
    if len(table.machines) < 2:
        return []
    return [
        f"The trainings come from {len(table.machines)} machines, so their hours cannot be compared directly: "
        f"{'; '.join(table.machines)}."
    ]


def _ended_early(table: Table, recipes: Iterable[str]) -> list[str]:
    found = dict.fromkeys(text for name in recipes for text in table.rows[name].ended_early)
    return [f"Ended before the last epoch: {'; '.join(found)}."] if found else []


def exploratory_contrasts(table: Table) -> list[tuple[str, str, list[Contrast]]]:
    """Exploratory comparisons of a table, by metric and baseline."""
    groups: dict[tuple[str, str], list[Contrast]] = {}
    for one in table.contrasts:
        if not one.primary:
            groups.setdefault((one.metric, one.baseline), []).append(one)
    return [(metric, baseline, found) for (metric, baseline), found in groups.items()]


def primary_of(table: Table, metric: str, baseline: str) -> Contrast | None:
    """The primary comparison, where it would be one of a metric's with a baseline.

    Args:
        table: one data set with one share of the labels.
        metric: name of the metric.
        baseline: name of the recipe that the others are compared with.
    """
    fitting = (one for one in table.contrasts if one.primary and one.metric == metric)
    return next((one for one in fitting if baseline in (one.recipe, one.baseline)), None)


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
    if any(row.has_absent for row in table.rows.values()):
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
