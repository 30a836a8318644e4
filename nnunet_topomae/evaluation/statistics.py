"""Is one recipe better than another? Comparisons with a baseline, corrected for their number.

The scores of one recipe form a table (cases, trainings). `nnunet_topomae.evaluation.nested` says how sure a difference
of means is; docs/benchmark.md has the rates at which this finds a difference where there is none, and at which the
usual tests do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import rankdata, ttest_ind, wilcoxon

from nnunet_topomae.evaluation.nested import Design, Scores, estimate

RESAMPLES = 4000
LEVEL = 0.05
# Fewer are too few for Student's t; Wilcoxon's test cannot reach 0.05 with fewer either.
FEWEST_PATIENTS = 6
# Fewer say little about whether a recipe suits some folds: studies/statistics_coverage.py.
FEW_FOLDS = 5

Key = TypeVar("Key")


@dataclass(frozen=True)
class Comparison:
    """A recipe against a baseline; differences are recipe minus baseline.

    Attributes:
        difference: of the means over cases and trainings.
        low: lower end of the 95 % interval of the difference; NaN where it cannot be known.
        high: its upper end.
        p: of no difference; below 0.05 exactly where the interval excludes 0.
        adjusted_p: the same after Holm's correction for all comparisons that are made together.
        fold_p: t-test over the means of the folds, the conservative check; NaN with one fold, with held-out cases, or
            with one training per fold, where `p` takes its variance from the means of the folds already.
        detectable: the true difference that about three of four such benchmarks would show, at the level of `compare`.
        least_shown: the smallest observed difference that would be shown at that level.
        wilcoxon_p: signed-rank test on the cases' means; takes trainings as given, so it is no evidence for a recipe.
        rank_biserial: effect size of Wilcoxon's test, -1 to 1.
        standardised: mean difference of the cases divided by its standard deviation.
        win_rate: share of cases in which the recipe is better, ties counting half.
        paper_p: the paper's protocol, a t-test between seed means; NaN with a single seed.
        cases: number of cases.
        patients: number of patients.
        folds: number of folds.
        seeds: trainings per fold of recipe and baseline.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float
    fold_p: float
    detectable: float
    least_shown: float
    wilcoxon_p: float
    rank_biserial: float
    standardised: float
    win_rate: float
    paper_p: float
    cases: int
    patients: int
    folds: int
    seeds: tuple[int, int]

    @property
    def testable(self) -> bool:
        """Whether there are enough patients, and trainings that repeat."""
        return self.patients >= FEWEST_PATIENTS and not np.isnan(self.p)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the corrected p is below 0.05."""
        return self.testable and self.adjusted_p < LEVEL

    @property
    def verdict(self) -> str:
        """One honest phrase."""
        if self.patients < FEWEST_PATIENTS:
            return f"too few patients to test ({self.patients}, at least {FEWEST_PATIENTS})"
        if not self.testable and min(self.seeds) > 1:
            return "two pairs of trainings: too few to test (repeat with other seeds)"
        if not self.testable:
            return "one training each: may be luck (repeat with other seeds)"
        if not self.shown:
            return "no difference shown"
        return "higher" if self.difference > 0 else "lower"

    @property
    def caveats(self) -> list[str]:
        """What the verdict cannot know, and where interval, p and the check over folds do not agree."""
        if not self.testable:
            return []
        found = []
        if self.folds == 1:
            found.append("one fold: whether another split would agree is not known")
        elif self.folds < FEW_FOLDS and min(self.seeds) > 1:
            found.append(
                f"only {self.folds} folds: whether a recipe suits some of them better is hardly seen; where it does, "
                "differences are found too often"
            )
        elif min(self.seeds) == 1:
            found.append(
                "one training per fold: luck of a training and effect of a fold cannot be told apart, "
                "so that only the means of the folds show how much both vary"
            )
        if self.p < LEVEL <= self.adjusted_p:
            found.append(
                "the interval is of this comparison alone; corrected for all comparisons, p is no longer below 0.05"
            )
        if self.shown and self.fold_p >= LEVEL:
            found.append(f"a t-test over the means of the {self.folds} folds alone does not show it")
        if self.fold_p < LEVEL <= self.p:
            found.append(
                f"a t-test over the means of the {self.folds} folds alone has p {self.fold_p:.2g}, without correction"
            )
        return found

    def against_margin(self, margin: float) -> str:
        """What the interval says about a difference that would matter.

        Args:
            margin: the smallest difference that matters, positive.

        Returns:
            a phrase; equivalence is stated where the whole 95 % interval lies within the margin.
        """
        if not self.testable:
            return "neither a difference nor equivalence can be tested"
        if -margin < self.low and self.high < margin:
            return "equivalent, the whole interval lies within the margin"
        if self.low >= margin or self.high <= -margin:
            if not self.shown:
                return (
                    "the interval of this comparison alone lies beyond the margin, but corrected for all data sets, no "
                    "difference is shown"
                )
            return "the difference is larger than the margin"
        if self.shown:
            return "a difference is shown, but it may be smaller than the margin"
        return "undecided: neither a difference nor equivalence is shown"


def compare(
    scores: Mapping[str, Scores],
    baseline: str,
    design: Design | None = None,
    higher_is_better: bool = True,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compare every recipe with a baseline.

    Args:
        scores: table (cases, trainings) of every recipe, the same cases in the same order.
        baseline: name of the recipe that the others are compared with.
        design: where the scores come from; by default one fold in which each case is a patient.
        higher_is_better: which way `win_rate` counts.
        level: what p has to be below for `detectable` and `least_shown`. With n comparisons that are corrected together
            it is 0.05 / n: below that, a difference is shown whatever the others are.

    Returns:
        A comparison for every recipe except the baseline, corrected for their number.

    Raises:
        ValueError: the baseline is missing, a score is not a number, or tables and design do not fit together.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> folds = [fold for fold in range(5) for _ in range(8)]
        >>> first = generator.normal(0.80, 0.02, size=(40, 2))  # 40 cases in 5 folds, 2 seeds
        >>> second = first + 0.05
        >>> result = compare({"first": first, "second": second}, "first", Design(case_folds=folds))["second"]
        >>> round(result.difference, 3), result.verdict
        (0.05, 'higher')
    """
    if baseline not in scores:
        raise ValueError(f"no scores of the baseline {baseline}; there are {', '.join(scores)}")
    for name, table in scores.items():
        if table.shape[0] != scores[baseline].shape[0]:
            raise ValueError(f"{name} has {table.shape[0]} cases, {baseline} has {scores[baseline].shape[0]}")
        if not np.isfinite(table).all():
            raise ValueError(f"{name} has {int((~np.isfinite(table)).sum())} scores that are not numbers")
    others = [name for name in scores if name != baseline]
    design = design or Design()
    return correct({name: _compare(scores[name], scores[baseline], design, higher_is_better, level) for name in others})


def correct(comparisons: Mapping[Key, Comparison], pending: int = 0) -> dict[Key, Comparison]:
    """Correct comparisons that are made together, by Holm's method; those that cannot be tested do not count.

    Args:
        comparisons: by any key.
        pending: further comparisons that will be made with them. Until then, they count as tests without a difference.
    """
    tested = [key for key, found in comparisons.items() if found.testable]
    adjusted = dict(zip(tested, holm([*(comparisons[key].p for key in tested), *[1.0] * pending]), strict=False))
    return {key: replace(found, adjusted_p=adjusted.get(key, float("nan"))) for key, found in comparisons.items()}


def _compare(recipe: Scores, baseline: Scores, design: Design, higher: bool, level: float) -> Comparison:
    found = estimate(recipe, baseline, design)
    differences = recipe.mean(axis=1) - baseline.mean(axis=1)
    changed = differences[differences != 0]
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    gains = differences if higher else -differences
    paper = float("nan")
    if min(recipe.shape[1], baseline.shape[1]) > 1:
        paper = float(ttest_ind(recipe.mean(axis=0), baseline.mean(axis=0)).pvalue)
    low, high = found.interval(LEVEL)
    low_at_level, high_at_level = found.interval(level)
    return Comparison(
        difference=found.difference,
        low=low,
        high=high,
        p=found.p,
        adjusted_p=float("nan"),
        fold_p=found.fold_p if min(found.seeds) > 1 else float("nan"),
        detectable=found.detectable(level),
        least_shown=(high_at_level - low_at_level) / 2,
        wilcoxon_p=float(wilcoxon(changed).pvalue) if changed.size else 1.0,
        rank_biserial=rank_biserial(differences),
        standardised=float(differences.mean()) / spread if spread else float("nan"),
        win_rate=float(((gains > 0) + 0.5 * (gains == 0)).mean()),
        paper_p=paper,
        cases=len(differences),
        patients=found.patients,
        folds=found.folds,
        seeds=found.seeds,
    )


def rank_shares(
    scores: Mapping[str, Scores],
    generator: np.random.Generator,
    higher_is_better: bool = True,
    design: Design | None = None,
) -> dict[str, list[float]]:
    """How often each recipe comes first, second, ... when patients and trainings are resampled.

    Each resample draws patients, the same for all recipes, and trainings, separately for each recipe unless they are
    paired. In cross-validation it draws both within folds; a single training per fold cannot be resampled and counts as
    given. For held-out cases it draws from the patients and the trainings of all folds. From n it draws n - 1 with
    replacement, which makes the variance of a mean unbiased for any n (Rao and Wu 1988).

    Args:
        scores: table (cases, trainings) of every recipe, the same cases in the same order.
        generator: source of randomness.
        higher_is_better: whether the highest mean comes first.
        design: where the scores come from; by default one fold in which each case is a patient.

    Returns:
        For every recipe the share of resamples in which it has rank 1, 2, ...; ties share their ranks' mean, rounded
        down.
    """
    design = design or Design()
    total = len(next(iter(scores.values())))
    case_folds = np.zeros(total) if design.case_folds is None else np.asarray(design.case_folds)
    means = np.zeros((RESAMPLES, len(scores)))
    for fold in np.unique(case_folds):
        block = np.flatnonzero(case_folds == fold)
        patients = block if design.patients is None else np.asarray(design.patients)[block]
        of_cases = _weights(patients, generator)
        shared: dict[int, Float[ndarray, "resamples count"]] = {}
        for place, table in enumerate(scores.values()):
            trainings = table.shape[1]
            if not design.paired or trainings not in shared:
                shared[trainings] = _weights(np.arange(trainings), generator)
            mean = np.einsum("bc,cs,bs->b", of_cases, table[block], shared[trainings], optimize=True)
            means[:, place] += len(block) / total * mean
    ranks = np.floor(rankdata(-means if higher_is_better else means, axis=1)).astype(int)
    return {
        name: [float((ranks[:, index] == rank).mean()) for rank in range(1, len(scores) + 1)]
        for index, name in enumerate(scores)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down correction for several tests (Holm 1979).

    Args:
        p_values: one per test.

    Returns:
        Adjusted p values in the same order.

    Example:
        >>> holm([0.02, 0.5, 0.01])
        [0.04, 0.5, 0.03]
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * float(p_values[index])))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def rank_biserial(differences: Float[ndarray, " n"]) -> float:
    """Effect size of Wilcoxon's signed-rank test (Kerby 2014).

    Args:
        differences: one per case (n,).

    Returns:
        (rank sum of gains - rank sum of losses) / rank sum of both, from -1 to 1; 0 if nothing differs.

    Example:
        >>> rank_biserial(np.array([3.0, 2.0, -1.0]))
        0.6666666666666666
    """
    changed = differences[differences != 0]
    if not changed.size:
        return 0.0
    ranks = rankdata(np.abs(changed))
    return float((ranks[changed > 0].sum() - ranks[changed < 0].sum()) / ranks.sum())


def _weights(labels: ndarray, generator: np.random.Generator) -> Float[ndarray, "resamples count"]:
    """Weights of things in every resample, which draws their labels; they sum to 1."""
    codes = np.unique(labels, return_inverse=True)[1]
    count = int(codes.max()) + 1
    if count == 1:
        return np.full((RESAMPLES, len(codes)), 1.0 / len(codes))
    draws = generator.multinomial(count - 1, np.full(count, 1.0 / count), size=RESAMPLES)[:, codes]
    return np.asarray(draws / draws.sum(axis=1, keepdims=True))
