"""The mean difference of two recipes and its uncertainty, with cases and trainings nested in folds.

A training belongs to one fold. Trainings of one seed in two folds are different trainings, with random numbers of their
own. So five folds with two seeds are ten trainings per recipe. The variance of the difference of means has three parts:

* cases: other patients would give another difference;
* trainings: with other seeds, each recipe would score differently;
* folds: a recipe may suit the training cases of some folds better than those of others. The means of the folds show
  whether they differ by more than the first two parts explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import stdtr, stdtrit

Scores = Float[ndarray, "_cases _trainings"]
# How much the means of the folds count where they agree with the other variance: at least this, and half of all where
# each is a mean over so many patients. With more patients, what suits some folds is a larger part of the variance.
FOLDS_WEIGHT = 0.5
PATIENTS_SCALE = 8.0
# The degrees of freedom of the other variance at which an excess of 1 adds 1 to that weight. A larger scale finds more
# differences, also where there are none: studies/statistics_coverage.py.
FREEDOM_SCALE = 30.0
# Degrees of freedom of paired trainings below which nothing is tested: two pairs in one fold find a difference in 9 to
# 11 % of the benchmarks without one.
FEWEST_PAIRS = 2


@dataclass(frozen=True)
class Design:
    """Where the scores of a table (cases, trainings) come from. By default one fold, in which each case is a patient.

    Attributes:
        case_folds: cross-validation: the fold of every case. A column is then a seed: another training in every fold.
        training_folds: held-out cases: the fold of every column. Every training then scores all cases.
        patients: the patient of every case, where patients have several scans.
        paired: column k of both recipes shares something that matters, such as the labelled cases.
    """

    case_folds: Sequence[int] | None = None
    training_folds: Sequence[int] | None = None
    patients: Sequence[str] | None = None
    paired: bool = False


@dataclass(frozen=True)
class Estimate:
    """A difference of means and what is known about it.

    Attributes:
        difference: recipe minus baseline, mean over cases and trainings.
        variance: of the difference; NaN where it cannot be known.
        freedom: degrees of freedom of the variance (Satterthwaite 1946).
        fold_p: t-test over the means of the folds, the conservative check; NaN with one fold or held-out cases.
        patients: number of patients.
        folds: number of folds.
        seeds: trainings per fold of recipe and baseline.
    """

    difference: float
    variance: float
    freedom: float
    fold_p: float
    patients: int
    folds: int
    seeds: tuple[int, int]

    @property
    def p(self) -> float:
        """Two-sided, of no difference; NaN where the variance is not known."""
        return student_p(self.difference, self.variance, self.freedom)

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Interval of the difference; it excludes 0 exactly where `p` is below `level`.

        Args:
            level: share outside the interval, 0.05 for a 95 % interval.
        """
        half = float(stdtrit(self.freedom, 1 - level / 2) * np.sqrt(self.variance))
        return self.difference - half, self.difference + half

    def detectable(self, level: float = 0.05, power: float = 0.8) -> float:
        """The smallest true difference that a benchmark with this uncertainty probably shows.

        It takes the uncertainty as known, so the true probability is somewhat lower: studies/statistics_coverage.py.

        Args:
            level: of the test, two-sided.
            power: probability of showing it.
        """
        quantiles = stdtrit(self.freedom, 1 - level / 2) + stdtrit(self.freedom, power)
        return float(quantiles * np.sqrt(self.variance))


class _Groups:
    """Things in groups: number of the group of each, and the matrix (groups, things) that takes means of groups."""

    def __init__(self, labels: Sequence[int] | None, count: int) -> None:
        self.of = np.zeros(count, dtype=int) if labels is None else np.unique(labels, return_inverse=True)[1]
        self.sizes = np.bincount(self.of)
        self.averages = (self.of == np.arange(len(self.sizes))[:, None]) / self.sizes[:, None]


@dataclass(frozen=True)
class _Part:
    """An estimate of a variance with its degrees of freedom."""

    variance: float
    freedom: float


_UNKNOWN = _Part(float("nan"), float("nan"))


def estimate(recipe: Scores, baseline: Scores, design: Design) -> Estimate:
    """Difference of two recipes on the same cases.

    The variance of cases is taken within folds, over patients. The variance of trainings is taken within folds too: of
    each recipe or, if paired, of their differences. Both contain the noise of single scores, so it is taken off once.
    The means of the folds give a second estimate of the whole. It is averaged with the first, or replaces it where the
    folds differ by much more than cases and trainings explain. With one training per fold it is the only one.

    Args:
        recipe: scores (cases, trainings).
        baseline: scores of the same cases; the number of trainings may differ unless they are paired.
        design: where the scores come from.

    Returns:
        The difference and its uncertainty. The variance is NaN where neither folds nor seeds repeat a training, or
        one fold has two pairs of trainings only.

    Raises:
        ValueError: the tables or the design do not fit together.
    """
    _check(recipe, baseline, design)
    gains = recipe.mean(axis=1) - baseline.mean(axis=1)
    of_cases = _Groups(design.case_folds, len(gains))
    of_columns = [_Groups(design.training_folds, table.shape[1]) for table in (recipe, baseline)]
    cases, patients = _case_part(gains, of_cases, design.patients)
    if design.paired:
        trainings, noise = _training_part(recipe - baseline, of_cases, of_columns[0])
        if trainings and trainings.freedom < FEWEST_PAIRS:
            trainings = None
    else:
        of_recipe, of_baseline = (
            _training_part(table, of_cases, groups)
            for table, groups in zip((recipe, baseline), of_columns, strict=True)
        )
        trainings, noise = _sum(of_recipe[0], of_baseline[0]), of_recipe[1] + of_baseline[1]
    crossed = design.training_folds is not None
    means = (recipe - baseline).mean(axis=0) @ of_columns[0].averages.T if crossed else of_cases.averages @ gains
    folds = _Part(float(means.var(ddof=1)) / means.size, means.size - 1.0) if means.size > 1 else None
    # Of each mean of a fold.
    averaged = patients / (1 if crossed else means.size)
    total = (_total_crossed if crossed else _total_nested)(cases, trainings, noise, folds, averaged)
    return Estimate(
        difference=float(gains.mean()),
        variance=total.variance,
        freedom=total.freedom,
        fold_p=student_p(float(means.mean()), folds.variance, folds.freedom) if folds and not crossed else float("nan"),
        patients=patients,
        folds=means.size,
        seeds=(int(of_columns[0].sizes.min()), int(of_columns[1].sizes.min())),
    )


def student_p(value: float, variance: float, freedom: float) -> float:
    """Two-sided p of Student's t; where nothing varies 1 for no difference, else 0.

    Args:
        value: an estimate that is 0 under the null hypothesis.
        variance: of the estimate.
        freedom: degrees of freedom of the variance.
    """
    if variance == 0:
        return float(value == 0)
    return float(2 * stdtr(freedom, -abs(value) / np.sqrt(variance)))


def _case_part(gains: ndarray, folds: _Groups, patients: Sequence[str] | None) -> tuple[_Part | None, int]:
    """Variance of the mean over cases within folds, and the number of patients; scans of a patient move together."""
    rest = gains - (folds.averages @ gains)[folds.of]
    sums = rest if patients is None else np.bincount(np.unique(patients, return_inverse=True)[1], rest)
    freedom = sums.size - folds.sizes.size
    if freedom < 1:
        return None, sums.size
    return _Part(float((sums**2).sum()) / gains.size**2 * sums.size / freedom, float(freedom)), sums.size


def _training_part(table: ndarray, folds: _Groups, groups: _Groups) -> tuple[_Part | None, float]:
    """Variance of a table's mean over trainings, and what of it is noise of single scores.

    Args:
        table: scores (cases, trainings).
        folds: of the cases.
        groups: of the trainings; one, or the folds where every training scores all cases.
    """
    if groups.sizes.min() < 2:
        return None, 0.0
    means = folds.averages @ table  # (folds, trainings)
    centres = means @ groups.averages.T  # (folds, groups)
    luck = (means - centres[:, groups.of]) ** 2
    # Of the mean of a fold and group; then of the mean of all, to which a fold contributes by its number of cases.
    variances = (luck @ groups.averages.T) / (groups.sizes - 1)
    shares = folds.sizes / len(table)
    freedom = float(len(shares) * (groups.sizes - 1).sum())
    part = _Part(float((shares**2 @ variances).sum()) / groups.sizes.size**2, freedom)
    noise = table - (table @ groups.averages.T)[:, groups.of] - (means - centres[:, groups.of])[folds.of]
    spare = int((folds.sizes - 1).sum() * (groups.sizes - 1).sum())
    return part, float((noise**2).sum()) / spare / table.size if spare else 0.0


def _total_nested(
    cases: _Part | None, trainings: _Part | None, noise: float, folds: _Part | None, patients: float
) -> _Part:
    """Variance in cross-validation: all parts show in the means of the folds."""
    if cases is None or trainings is None:
        return folds or _UNKNOWN
    known = _overlapping_sum(cases, trainings, noise)
    return _with_folds(known, folds, patients) if folds else known


def _total_crossed(
    cases: _Part | None, trainings: _Part | None, noise: float, folds: _Part | None, patients: float
) -> _Part:
    """Variance with held-out cases: the means of the folds share the cases and differ by their trainings only."""
    if folds:
        trainings = _with_folds(trainings, folds, patients) if trainings else folds
    return _overlapping_sum(cases, trainings, noise) if cases and trainings else _UNKNOWN


def _with_folds(known: _Part, folds: _Part, patients: float) -> _Part:
    """A variance, compared with what the means of the folds say about it.

    Both are estimates of the same if no recipe suits some folds. The result lies between them pooled and the means of
    the folds alone. The more these exceed the known variance, the better that is known, and the more patients each is a
    mean of, the more they count.
    """
    if known.variance == 0:
        return folds
    excess = (folds.variance / known.variance - 1) * (known.freedom / FREEDOM_SCALE) ** 2
    least = max(FOLDS_WEIGHT, patients / (patients + PATIENTS_SCALE))
    weight = min(1.0, max(0.0, least + excess))
    freedom = known.freedom + folds.freedom
    pooled = (known.freedom * known.variance + folds.freedom * folds.variance) / freedom
    return _Part(
        pooled + weight * (folds.variance - pooled),
        freedom + weight * (folds.freedom - freedom),
    )


def _overlapping_sum(one: _Part, other: _Part, overlap: float) -> _Part:
    """Variance of a sum whose parts both contain `overlap`, which is an estimate as well: not below the larger part."""
    both = _sum(one, other) or one
    variance = max(both.variance - overlap, one.variance, other.variance)
    return _Part(variance, both.freedom * (variance / both.variance) ** 2) if variance else both


def _sum(*parts: _Part | None) -> _Part | None:
    """Variance of a sum with Satterthwaite's degrees of freedom; None if one of its parts is not known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    total = sum(part.variance for part in known)
    weight = sum(part.variance**2 / part.freedom for part in known)
    return _Part(total, total**2 / weight if weight > 0 else sum(part.freedom for part in known))


def _check(recipe: Scores, baseline: Scores, design: Design) -> None:
    if len(recipe) != len(baseline):
        raise ValueError(f"the recipe has {len(recipe)} cases, the baseline has {len(baseline)}")
    for name in ("case_folds", "patients"):
        labels = getattr(design, name)
        if labels is not None and len(labels) != len(recipe):
            raise ValueError(f"{name} has {len(labels)} entries for {len(recipe)} cases")
    if design.case_folds is not None and design.training_folds is not None:
        raise ValueError("give case_folds for cross-validation or training_folds for held-out cases, not both")
    widths = (recipe.shape[1], baseline.shape[1])
    if (design.paired or design.training_folds is not None) and widths[0] != widths[1]:
        raise ValueError(f"trainings that belong together must be equal in number, got {widths[0]} and {widths[1]}")
    if design.training_folds is not None and len(design.training_folds) != widths[0]:
        raise ValueError(f"training_folds has {len(design.training_folds)} entries for {widths[0]} trainings")
