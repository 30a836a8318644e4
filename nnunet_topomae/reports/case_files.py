"""The files of cases that a benchmark's report shows: image, truth, and the predictions of baseline and recipe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.work import Worker


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


def find_case_files(
    spec: BenchmarkSpec, jobs: Sequence[Job], raw: Path, entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]]
) -> Iterator[CaseFiles]:
    """The files of every row.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        raw: nnU-Net's folder of raw data.
        entries: trainings of one data set and label fraction.
        rows: `recipe`, `rank`, `case` and `dice`, as `worst_cases` gives them.
    """
    for row in rows:
        shown = [spec.recipe(name) for name in dict.fromkeys((spec.baseline, row["recipe"]))]
        workers = {
            recipe.title: Worker(_job_of(jobs, entry), spec, raw)
            for recipe in shown
            for entry in entries
            if entry.recipe == recipe.name and entry.seed == spec.seeds[0] and row["case"] in entry.scores
        }
        first = next(iter(workers.values()))
        folder = first.plan.preprocessed / first.dataset
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        file = f"{row['case']}{description['file_ending']}"
        yield CaseFiles(
            row["case"],
            first.dataset,
            row["recipe"],
            row["rank"],
            row["dice"],
            raw / first.dataset / "imagesTr" / f"{row['case']}_0000{description['file_ending']}",
            folder / "gt_segmentations" / file,
            {title: _validation(worker) / file for title, worker in workers.items()},
            {
                name: value
                for name, value in description["labels"].items()
                if isinstance(value, int) and value and name != "ignore"
            },
        )


def _validation(worker: Worker) -> Path:
    return worker.model(worker.job) / f"fold_{worker.job.parameters['fold']}" / "validation"


def _job_of(jobs: Sequence[Job], entry: Entry) -> Job:
    """The training of an entry."""
    for job in jobs:
        plan = job.need("plan")
        if job.kind != "train" or plan is None or plan.parameters["dataset"] != entry.dataset:
            continue
        settings = job.parameters["settings"]
        same = (settings["finetuning.seed"], settings.get("finetuning.label_fraction", 1.0), job.parameters["fold"])
        if f"__{entry.recipe}__fold" in job.name and same == (entry.seed, entry.fraction, entry.fold):
            return job
    raise ValueError(f"no training of {entry.recipe}, fold {entry.fold}, seed {entry.seed}")
