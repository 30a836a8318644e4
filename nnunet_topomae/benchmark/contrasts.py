"""Which recipes of a benchmark are compared by which metric, and what is corrected together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.compared import COMPARED
from nnunet_topomae.benchmark.results import Contrast, Table
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.evaluation.nested import Design
from nnunet_topomae.evaluation.statistics import LEVEL, compare, correct


@dataclass(frozen=True)
class CaseTable:
    """Scores of one recipe as the statistics need them.

    Attributes:
        cases: name of the case of every row.
        folds: fold of every row, in cross-validation; of every column, for held-out cases.
        scores: mean over structures (cases, seeds); for held-out cases (cases, folds x seeds).
    """

    cases: list[str]
    folds: list[int]
    scores: ndarray


def compared_metrics(spec: BenchmarkSpec) -> list[str]:
    """Metrics that recipes are compared by."""
    return [metric for metric in COMPARED if metric != "betti_error" or spec.betti]


def case_table(entries: Sequence[Entry], metric: str, held_out: bool) -> CaseTable:
    """Mean over structures of every case and training.

    A structure that neither truth nor prediction has counts as perfect, so that every case has a value per recipe.

    Args:
        entries: trainings of one recipe, complete: every fold with every seed.
        metric: one of `COMPARED`.
        held_out: every training has scored all cases, instead of those of its fold.
    """
    perfect = COMPARED[metric].perfect
    values: dict[tuple[str, int], dict[tuple[int, int], float]] = {}
    for entry in entries:
        row, column = (0, entry.job.fold) if held_out else (entry.job.fold, 0)
        for case, structures in entry.scores.items():
            found = [getattr(score, metric) for score in structures.values()]
            mean = float(np.mean([perfect if np.isnan(value) else value for value in found]))
            values.setdefault((case, row), {})[column, entry.job.seed] = mean
    rows = sorted(values)
    columns = sorted(next(iter(values.values())))
    return CaseTable(
        cases=[case for case, _ in rows],
        folds=[fold for fold, _ in columns] if held_out else [fold for _, fold in rows],
        scores=np.array([[values[row][column] for column in columns] for row in rows]),
    )


def make_design(spec: BenchmarkSpec, dataset: str, table: CaseTable, fraction: float) -> Design:
    """What the statistics have to know about a table.

    Which cases are of one patient says `pretraining.patients` in the settings, otherwise `patients.json` of the data
    set, as in training. A table of patients may leave out held-out cases: each of those is then a patient of its own.

    Args:
        spec: the benchmark.
        dataset: name of the data set.
        table: scores of any recipe.
        fraction: share of the labels; below 1, trainings of one fold and seed have the same labelled cases.
    """
    patients = Patients.of_dataset(spec.settings.get("pretraining.patients"), spec.raw_folder() / dataset)
    listed = patients.table if spec.held_out else None
    return Design(
        case_folds=None if spec.held_out else table.folds,
        training_folds=table.folds if spec.held_out else None,
        patients=[patients.of(case) if listed is None else listed.get(case, case) for case in table.cases],
        paired=fraction < 1,
    )


def planned_pairs(spec: BenchmarkSpec, metric: str, fraction: float) -> list[tuple[str, str]]:
    """Recipe and baseline of all comparisons of a table by one metric, whether or not the recipes are complete.

    The primary comparison is the first one, then every recipe is compared with every baseline, no pair twice.

    Args:
        spec: the benchmark.
        metric: one of `COMPARED`.
        fraction: share of the labels.
    """
    primary = _primary_pair(spec, metric, fraction)
    pairs = [primary] if primary else []
    pairs += [(recipe.name, baseline) for baseline in spec.baselines for recipe in spec.recipes]
    found: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        found.setdefault(frozenset(pair), pair)
    return [(recipe, baseline) for recipe, baseline in found.values() if recipe != baseline]


def _primary_pair(spec: BenchmarkSpec, metric: str, fraction: float) -> tuple[str, str] | None:
    """Recipe and baseline of the primary comparison, where it is one of this table and metric."""
    if spec.primary is None or (spec.primary.metric, spec.primary.fraction) != (metric, fraction):
        return None
    return spec.primary.recipe, spec.primary.against


def make_contrasts(
    spec: BenchmarkSpec, metric: str, scores: Mapping[str, ndarray], design: Design, fraction: float
) -> list[Contrast]:
    """The planned comparisons of a table by one metric, as far as their recipes are complete.

    Args:
        spec: the benchmark.
        metric: one of `COMPARED`.
        scores: of every complete recipe.
        design: where the scores come from.
        fraction: share of the labels.
    """
    primary = _primary_pair(spec, metric, fraction)
    contrasts = []
    for recipe, baseline in planned_pairs(spec, metric, fraction):
        if {recipe, baseline} <= set(scores):
            both = {name: scores[name] for name in (baseline, recipe)}
            is_primary = (recipe, baseline) == primary
            level = LEVEL / len(spec.datasets) if is_primary else LEVEL
            found = compare(both, baseline, design, COMPARED[metric].higher_is_better, level)[recipe]
            contrasts.append(Contrast(recipe, baseline, metric, is_primary, found))
    return contrasts


def correct_together(tables: Sequence[Table], spec: BenchmarkSpec) -> list[Table]:
    """Correct all exploratory comparisons of a report as one family, and the primary ones of its data sets as another.

    Comparisons of the benchmark that cannot be made yet count as tests, too: they will be made.

    Args:
        tables: of the report.
        spec: the benchmark, which says how many comparisons there will be.
    """
    kinds = [(metric, fraction) for metric in compared_metrics(spec) for fraction in spec.label_fractions]
    planned = len(spec.datasets) * sum(len(planned_pairs(spec, *kind)) for kind in kinds)
    planned_primary = len(spec.datasets) if spec.primary else 0
    keyed = {(place, index): one for place, table in enumerate(tables) for index, one in enumerate(table.contrasts)}
    for primary, number in ((True, planned_primary), (False, planned - planned_primary)):
        family = {key: one.found for key, one in keyed.items() if one.primary == primary}
        pending = number - len(family)
        keyed |= {key: replace(keyed[key], found=found) for key, found in correct(family, pending).items()}
    return [
        replace(table, contrasts=[keyed[place, index] for index in range(len(table.contrasts))])
        for place, table in enumerate(tables)
    ]
