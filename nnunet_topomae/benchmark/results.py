"""The numbers of a report, typed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_topomae.benchmark.recipes import Recipe
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.files import strict_json


@dataclass(frozen=True)
class Amount:
    """What the trainings of a recipe took, where it may differ by fold and seed.

    Attributes:
        mean: over the trainings.
        least: of a training.
        most: of a training.
    """

    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class Cost:
    """Mean cost of a training, its pre-training included, which counts in full for every label fraction.

    Attributes:
        hours: by the clock, over all attempts, also those that were killed; pauses and other work of the machine count.
        pretraining_hours: the part of `hours` that is pre-training.
        cpu_hours: of all processes, in all attempts; None where not recorded.
        attempts: times that training and pre-training were started.
        steps: of the supervised training; None where not known of every training.
        pretraining_steps: of the pre-training; 0 without one, None where not known of every training.
        total_macs: of the forward passes of all steps; None where not known of every training.
        gpu_bytes: largest GPU memory; None without a GPU.
        peak_process_bytes: memory of the largest process.
    """

    hours: float
    pretraining_hours: float
    cpu_hours: float | None
    attempts: float
    steps: Amount | None
    pretraining_steps: Amount | None
    total_macs: Amount | None
    gpu_bytes: float | None
    peak_process_bytes: float


@dataclass(frozen=True)
class Row:
    """One recipe on one data set with one share of the labels; a metric that is never defined is NaN.

    Attributes:
        structures: metrics by structure, means over cases, then seeds.
        mean: metrics, means over structures; counts are sums over structures and cases, means over trainings of a case.
        seed_sd: standard deviation of `mean` over seeds; None with one seed.
        training_sd: how much the mean Dice of single trainings of one fold varies; None with one seed.
        cases: number of cases.
        by_case: Dice, HD95 and Betti error by case and structure, means over seeds.
        parameters: of the network.
        macs: multiply-accumulate operations of the network on one crop, None where not known.
        cost: of a training.
        ended_early: trainings and pre-trainings that ended before their last epoch, each with its length and reason.
        has_absent: whether, in any training, neither truth nor prediction of a case has a structure.
    """

    structures: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    seed_sd: Mapping[str, float | None]
    training_sd: float | None
    cases: int
    by_case: Mapping[str, Mapping[str, Mapping[str, float]]]
    parameters: int
    macs: float | None
    cost: Cost
    ended_early: Sequence[str] = ()
    has_absent: bool = False


@dataclass(frozen=True)
class Contrast:
    """Two recipes of a table, compared by one metric.

    Attributes:
        recipe: name of the recipe.
        baseline: name of the recipe that it is compared with.
        metric: name of the metric.
        primary: whether it is the comparison that the benchmark is made for; the others are exploratory.
        found: the comparison, corrected together with the other exploratory ones of the report, or the primary ones.
    """

    recipe: str
    baseline: str
    metric: str
    primary: bool
    found: Comparison


@dataclass(frozen=True)
class Table:
    """One data set with one share of the labels.

    Attributes:
        dataset: name.
        fraction: share of the labels.
        rows: complete recipes by name.
        incomplete: names of the others.
        contrasts: all comparisons of its recipes.
        ranks: by metric and recipe, how often it comes first, second, ... in the bootstrap; empty with one training per
            fold in cross-validation.
        cases: names.
        patients: number of patients.
        trainings: of each recipe.
        values: by metric and recipe, the mean over structures of every case (cases, seeds); for held-out cases (cases,
            folds x seeds).
        published: the paper's numbers, as in published.json; none with a part of the labels.
        machines: descriptions of the machines that the trainings and pre-trainings ran on.
    """

    dataset: str
    fraction: float
    rows: Mapping[str, Row]
    incomplete: Sequence[str]
    contrasts: Sequence[Contrast]
    ranks: Mapping[str, Mapping[str, Sequence[float]]]
    cases: Sequence[str]
    patients: int
    trainings: int
    values: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
    published: Sequence[Mapping[str, Any]]
    machines: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Short name, also of the figures' files."""
        share = "" if self.fraction == 1 else f"_labels{round(100 * self.fraction)}"
        return f"{self.dataset}{share}"

    def compared(self, metric: str, baseline: str) -> dict[str, Comparison]:
        """Comparisons of recipes with a baseline, by recipe.

        Args:
            metric: name of the metric.
            baseline: name of the recipe that the others are compared with.
        """
        chosen = [one for one in self.contrasts if (one.metric, one.baseline) == (metric, baseline)]
        return {one.recipe: one.found for one in chosen}


@dataclass(frozen=True)
class JobRecord:
    """How a job was done.

    Attributes:
        name: of the job.
        fingerprint: of all that decides its result.
        seconds: by the clock, over all attempts; None if it is not done.
        commands: nnU-Net's commands of the last attempt; `$OUT` and `$nnUNet_raw` stand for folders.
    """

    name: str
    fingerprint: str
    seconds: float | None
    commands: Sequence[str]


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Attributes:
        spec: the benchmark.
        tables: by data set and share of the labels.
        jobs: all jobs.
        published_source: where the published numbers are from.
        machine: where the jobs were done, several values with a semicolon between them.
        versions: of packages, and the commit of the checkout; likewise.
        stated_late: number of finished trainings that began while the file named another primary comparison or margin,
            or none, by what it named.
        unrecorded: finished trainings of a version that did not record which comparison the file named.
        planned_otherwise: finished trainings that began while the file named other seeds or folds.
        plan_unrecorded: finished trainings of a version that did not record which seeds and folds the file named.
    """

    spec: BenchmarkSpec
    tables: Sequence[Table]
    jobs: Sequence[JobRecord]
    published_source: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    stated_late: Mapping[str, int] = field(default_factory=dict)
    unrecorded: int = 0
    planned_otherwise: int = 0
    plan_unrecorded: int = 0

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Recipes by name."""
        return {recipe.name: recipe for recipe in self.spec.recipes}

    @property
    def titles(self) -> dict[str, str]:
        """Titles of the recipes by name."""
        return {recipe.name: recipe.title for recipe in self.spec.recipes}

    @property
    def missing(self) -> list[str]:
        """Names of the jobs that are not done."""
        return [job.name for job in self.jobs if job.seconds is None]

    @property
    def seconds(self) -> float:
        """Work of all jobs."""
        return sum(job.seconds for job in self.jobs if job.seconds is not None)

    def to_json(self) -> dict[str, Any]:
        """The same as strict JSON: NaN is null, folders of this machine are left out."""
        spec = {key: value for key, value in asdict(self.spec).items() if key not in ("out", "raw")}
        tables = [{**asdict(table), "contrasts": [_plain(one) for one in table.contrasts]} for table in self.tables]
        plain = {**spec, **asdict(self), "tables": tables, "missing": self.missing}
        del plain["spec"]
        plain["recipes"] = {name: asdict(recipe) for name, recipe in self.recipes.items()}
        return dict(strict_json(plain))


def _plain(contrast: Contrast) -> dict[str, Any]:
    found = contrast.found
    said = {"shown": found.shown, "verdict": found.verdict, "caveats": found.caveats}
    flat = {key: value for key, value in asdict(contrast).items() if key != "found"}
    return {**flat, **asdict(found), **said}
