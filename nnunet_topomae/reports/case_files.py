"""The files of cases that a benchmark's report shows: image, truth, and the predictions of baseline and recipe."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.stages import truth_folder
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.names import DATASET_FILE


@dataclass(frozen=True)
class RankedCase:
    """The worst or the median case of a recipe.

    Attributes:
        recipe: name.
        rank: `worst` or `median`.
        case: identifier.
        dice: mean Dice.
        base: the baseline's on the same case; None where it is not complete.
    """

    recipe: str
    rank: str
    case: str
    dice: float
    base: float | None


@dataclass(frozen=True)
class CaseFiles:
    """A case of which one recipe's result is shown.

    Attributes:
        case: identifier.
        dataset: name of the data set.
        recipe: name of the recipe.
        rank: why it is shown, `worst` or `median`.
        dice: mean Dice of the recipe.
        image: first channel.
        truth: label map.
        predictions: label maps by title: baseline, then the recipe, of the first seed.
        labels: value of every structure by name; regions are left out.
        channel: name of the first channel, such as `CT`.
        ct_window: HU to show where it is CT; None to choose by the labels.
    """

    case: str
    dataset: str
    recipe: str
    rank: str
    dice: float
    image: Path
    truth: Path
    predictions: Mapping[str, Path]
    labels: Mapping[str, int]
    channel: str
    ct_window: tuple[float, float] | None = None


def find_case_files(spec: BenchmarkSpec, entries: Sequence[Entry], ranked: Sequence[RankedCase]) -> Iterator[CaseFiles]:
    """The files of every case.

    Args:
        spec: the benchmark.
        entries: trainings of one data set and label fraction.
        ranked: the cases.
    """
    for shown in ranked:
        recipes = [spec.recipe(name) for name in dict.fromkeys((spec.baseline, shown.recipe))]
        # With several models of a held-out case, that of the first fold.
        predicted = {
            recipe.title: entry.predicted
            for recipe in recipes
            for entry in reversed(entries)
            if entry.job.recipe == recipe.name and entry.job.seed == spec.seeds[0] and shown.case in entry.scores
            if JobFolder.of(entry.predicted, spec).predictions.is_dir()  # imported scores come without images
        }
        if not predicted:
            continue
        first = next(iter(predicted.values()))
        description = read_json(JobFolder.of(first.need("plan"), spec).dataset / DATASET_FILE)
        ending = description["file_ending"]
        images = spec.raw_folder() / first.dataset / ("imagesTs" if first.kind == "predict" else "imagesTr")
        yield CaseFiles(
            shown.case,
            first.dataset,
            shown.recipe,
            shown.rank,
            shown.dice,
            images / f"{shown.case}_0000{ending}",
            truth_folder(first, spec) / f"{shown.case}{ending}",
            {title: JobFolder.of(job, spec).predictions / f"{shown.case}{ending}" for title, job in predicted.items()},
            {
                name: value
                for name, value in description["labels"].items()
                if isinstance(value, int) and value and name != "ignore"
            },
            str(channel_names(description)[0]),
            spec.ct_window,
        )
