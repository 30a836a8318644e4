"""A benchmark's result in one sentence per table."""

from nnunet_topomae.benchmark.results import Results, Table
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports.statements import interval, primary_statements, removed_primary


def headlines(results: Results) -> list[str]:
    """What came out: the primary comparison, or without one a sentence for every data set and share of the labels.

    Args:
        results: of the benchmark.
    """
    if results.spec.primary is not None:
        return [sentences[0] for sentences in primary_statements(results)]
    several = len(results.tables) > 1
    found = [f"{table.key}: " * several + headline(table, results) for table in results.tables]
    return [*found, f"No primary comparison is named. {removed_primary(results)}"] if results.stated_late else found


def headline(table: Table, results: Results) -> str:
    """The recipe with the highest mean Dice of those that are compared with the baseline, and whether it is shown.

    Args:
        table: one data set with one share of the labels.
        results: of the benchmark.
    """
    titles, baseline = results.titles, results.spec.baseline
    if not table.rows:
        return "No recipe is complete yet."
    compared = table.compared("dice", baseline)
    if not compared:
        scores = (f"{titles[name]} {row.mean['dice']:.4f}" for name, row in table.rows.items())
        return f"Mean Dice of {_count(len(table.cases), 'case')}: {', '.join(scores)}. Nothing is compared."
    best = max(compared, key=lambda name: compared[name].difference)
    found = compared[best]
    side = "above" if found.difference >= 0 else "below"
    known = f"95 % interval of the difference {interval(found, 'dice')}, " if found.low == found.low else ""
    rank = f", the best of {len(compared)} recipes that are compared with it" if len(compared) > 1 else ""
    return (
        f"{titles[best]}: mean Dice {table.rows[best].mean['dice']:.4f}, {abs(found.difference):.4f} {side} "
        f"{titles[baseline]}{rank} ({known}"
        f"{_count(found.cases, 'case')}, {_seeds(found)}). {_verdict(found)}"
    )


def _verdict(found: Comparison) -> str:
    if found.shown:
        return "A difference is shown."
    verdict = found.verdict
    return "No difference is shown." if verdict == "no difference shown" else f"No difference is shown: {verdict}."


def _seeds(found: Comparison) -> str:
    first, second = found.seeds
    return _count(first, "seed") if first == second else f"{first} and {second} seeds"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
