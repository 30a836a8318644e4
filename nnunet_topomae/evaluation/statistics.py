"""Is one recipe better than another? The tests separate two sources of variation: cases and seeds.

The scores of one recipe form a table (cases, seeds). Cases are the same for all recipes and are compared in pairs.
Seeds are not paired: seed 0 of two recipes has nothing in common but its name. Treating case x seed values as
independent, or testing the means of a few seeds, finds differences where there are none (docs/benchmark.md has the
rates).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import norm, rankdata, ttest_ind, wilcoxon
from scipy.stats import t as student

Scores = Float[ndarray, "cases _"]
RESAMPLES = 4000
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A recipe against a baseline; differences are recipe minus baseline.

    Attributes:
        difference: of the means over cases and seeds.
        low: lower end of the 95 % interval of the difference, over cases and seeds.
        high: its upper end.
        p: Wilcoxon's signed-rank test on the cases' means over seeds, two-sided.
        adjusted_p: the same after Holm's correction for all recipes that are compared with the baseline.
        smallest_p: what this number of cases can reach at best; above 0.05 the test cannot show anything.
        rank_biserial: effect size of Wilcoxon's test, -1 to 1.
        standardised: mean difference of the cases divided by its standard deviation.
        win_rate: share of cases in which the recipe is better, ties counting half.
        paper_p: the paper's protocol, a t-test between seed means; NaN with a single seed.
        cases: number of cases.
        seeds: numbers of seeds of recipe and baseline.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted_p: float
    smallest_p: float
    rank_biserial: float
    standardised: float
    win_rate: float
    paper_p: float
    cases: int
    seeds: tuple[int, int]

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: several seeds, the interval excludes 0, and the adjusted test agrees."""
        return min(self.seeds) > 1 and (self.low > 0 or self.high < 0) and self.adjusted_p < LEVEL

    @property
    def verdict(self) -> str:
        """One honest phrase."""
        if self.smallest_p >= LEVEL:
            return f"too few cases to test ({self.cases}; the smallest possible p is {self.smallest_p:.3g})"
        if min(self.seeds) == 1:
            return "one training each: may be luck (repeat with other seeds)"
        if not self.shown:
            return "no difference shown"
        return "higher" if self.difference > 0 else "lower"


def compare(
    scores: Mapping[str, Scores], baseline: str, generator: np.random.Generator, higher_is_better: bool = True
) -> dict[str, Comparison]:
    """Compare every recipe with a baseline.

    Args:
        scores: table (cases, seeds) of every recipe, the same cases in the same order.
        baseline: name of the recipe that the others are compared with.
        generator: of the bootstrap.
        higher_is_better: which way `win_rate` counts.

    Returns:
        A comparison for every recipe except the baseline.

    Raises:
        ValueError: the baseline is missing, the cases differ in number, or a score is not a number.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> first = generator.normal(0.80, 0.02, size=(20, 3))  # 20 cases, 3 seeds
        >>> result = compare({"first": first, "second": first + 0.05}, "first", generator)["second"]
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
    tests = {name: _signed_rank(scores[name], scores[baseline]) for name in others}
    adjusted = dict(zip(others, holm([tests[name] for name in others]), strict=True))
    return {
        name: _compare(scores[name], scores[baseline], tests[name], adjusted[name], generator, higher_is_better)
        for name in others
    }


def _compare(
    recipe: Scores, baseline: Scores, p: float, adjusted: float, generator: np.random.Generator, higher: bool
) -> Comparison:
    differences = recipe.mean(axis=1) - baseline.mean(axis=1)
    low, high = bootstrap_interval(recipe, baseline, generator)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    gains = differences if higher else -differences
    paper = float("nan")
    if min(recipe.shape[1], baseline.shape[1]) > 1:
        paper = float(ttest_ind(recipe.mean(axis=0), baseline.mean(axis=0)).pvalue)
    return Comparison(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        adjusted_p=adjusted,
        smallest_p=min(1.0, 2.0 * 0.5 ** len(differences)),
        rank_biserial=rank_biserial(differences),
        standardised=float(differences.mean()) / spread if spread else float("nan"),
        win_rate=float(((gains > 0) + 0.5 * (gains == 0)).mean()),
        paper_p=paper,
        cases=len(differences),
        seeds=(recipe.shape[1], baseline.shape[1]),
    )


def bootstrap_interval(
    recipe: Scores, baseline: Scores, generator: np.random.Generator, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the difference of means, over cases and seeds at once (crossed bootstrap).

    Each resample draws cases, the same for both recipes, and seeds, separately for each recipe. From n it draws n - 1
    with replacement, which makes the variance of a mean unbiased for any n (Rao and Wu 1988). A few seeds tell little
    about their own spread. The interval is therefore widened by the ratio of the quantiles of Student's t and the
    normal distribution, with the degrees of freedom of Satterthwaite 1946. A single seed cannot be resampled: the
    interval then holds for these trainings alone.

    Args:
        recipe: scores (cases, seeds).
        baseline: scores of the same cases; the number of seeds may differ.
        generator: source of randomness.
        level: share outside the interval, 0.05 for a 95 % interval.

    Returns:
        Lower and upper end of the interval.

    Example:
        >>> scores = np.random.default_rng(0).normal(0.8, 0.02, size=(20, 3))
        >>> low, high = bootstrap_interval(scores + 0.1, scores, np.random.default_rng(1))
        >>> low < 0.1 < high
        True
    """
    of_cases = _weights(recipe.shape[0], generator)
    means = [
        np.einsum("bc,cs,bs->b", of_cases, table, _weights(table.shape[1], generator), optimize=True)
        for table in (recipe, baseline)
    ]
    quantiles = np.quantile(means[0] - means[1], (level / 2, 1 - level / 2))
    centre = float(recipe.mean() - baseline.mean())
    freedom = _degrees_of_freedom(recipe, baseline)
    low, high = centre + (quantiles - centre) * student.ppf(1 - level / 2, freedom) / norm.ppf(1 - level / 2)
    return float(low), float(high)


def _degrees_of_freedom(recipe: Scores, baseline: Scores) -> float:
    """Satterthwaite's, for the variance of the difference of means over cases and over the seeds of both."""
    samples = [recipe.mean(axis=1) - baseline.mean(axis=1), recipe.mean(axis=0), baseline.mean(axis=0)]
    parts = [(sample.var(ddof=1) / sample.size, sample.size - 1) for sample in samples if sample.size > 1]
    weight = sum(variance**2 / freedom for variance, freedom in parts)
    return float(sum(variance for variance, _ in parts) ** 2 / weight) if weight > 0 else float("inf")


def rank_shares(
    scores: Mapping[str, Scores], generator: np.random.Generator, higher_is_better: bool = True
) -> dict[str, list[float]]:
    """How often each recipe comes first, second, ... when cases and seeds are resampled.

    Args:
        scores: table (cases, seeds) of every recipe, the same cases in the same order.
        generator: source of randomness.
        higher_is_better: whether the highest mean comes first.

    Returns:
        For every recipe the share of resamples in which it has rank 1, 2, ...; ties share their ranks' mean, rounded
        down.
    """
    of_cases = _weights(next(iter(scores.values())).shape[0], generator)
    means = np.stack(
        [
            np.einsum("bc,cs,bs->b", of_cases, table, _weights(table.shape[1], generator), optimize=True)
            for table in scores.values()
        ],
        axis=1,
    )
    ranks = np.floor(rankdata(-means if higher_is_better else means, axis=1)).astype(int)
    count = len(scores)
    return {
        name: [float((ranks[:, index] == rank).mean()) for rank in range(1, count + 1)]
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


def _signed_rank(recipe: Scores, baseline: Scores) -> float:
    differences = recipe.mean(axis=1) - baseline.mean(axis=1)
    changed = differences[differences != 0]
    return float(wilcoxon(changed).pvalue) if changed.size else 1.0


def _weights(count: int, generator: np.random.Generator) -> Float[ndarray, "resamples count"]:
    """Weights of `count` things in every resample; they sum to 1."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    draws = count - 1
    return generator.multinomial(draws, np.full(count, 1.0 / count), size=RESAMPLES) / draws
