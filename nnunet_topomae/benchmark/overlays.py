"""Pictures of cases for a benchmark's report, only where asked for: images leave the hospital with the page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.figures import WINDOW_HU, data_uri, overlay_figure
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.report import Picture
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.work import Worker


def case_pictures(
    spec: BenchmarkSpec, jobs: Sequence[Job], raw: Path, entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Picture]:
    """Truth, baseline and recipe over the image, for the worst and the median case of every recipe.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        raw: nnU-Net's folder of raw data.
        entries: trainings of one data set and label fraction.
        rows: `recipe`, `rank` and `case`, as `worst_cases` gives them.
    """
    for row in rows:
        shown = [spec.recipe(name) for name in dict.fromkeys((spec.baseline, row["recipe"]))]
        found = {
            recipe.title: entry
            for recipe in shown
            for entry in entries
            if entry.recipe == recipe.name and entry.seed == spec.seeds[0] and row["case"] in entry.scores
        }
        workers = {title: Worker(_job_of(jobs, entry), spec, raw) for title, entry in found.items()}
        yield _picture(row, workers, spec)


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


def _picture(row: Mapping[str, Any], workers: Mapping[str, Worker], spec: BenchmarkSpec) -> Picture:
    import SimpleITK

    first = next(iter(workers.values()))
    folder = first.plan.preprocessed / first.dataset
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    ending, case = description["file_ending"], row["case"]
    truth = SimpleITK.ReadImage(folder / "gt_segmentations" / f"{case}{ending}")
    image = SimpleITK.ReadImage(first.raw / first.dataset / "imagesTr" / f"{case}_0000{ending}")
    predictions = {}
    for title, worker in workers.items():
        validation = worker.model(worker.job) / f"fold_{worker.job.parameters['fold']}" / "validation"
        predictions[title] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(validation / f"{case}{ending}"))
    labels = {
        name: value
        for name, value in description["labels"].items()
        if isinstance(value, int) and value and name != "ignore"
    }
    spacing = truth.GetSpacing()[::-1]
    grey = _to_window(SimpleITK.GetArrayFromImage(image).astype(np.float32))
    figure = overlay_figure(grey, SimpleITK.GetArrayFromImage(truth), predictions, spacing, labels)
    title = spec.recipe(row["recipe"]).title
    return Picture(
        data_uri(figure, "png"),
        f"Slices of {case} in three planes with the structures of truth and predictions in colour",
        f"{case}: the {row['rank']} case of {title}, mean Dice {row['dice']:.3f}. White lines: border of the truth.",
    )


def _to_window(image: ndarray) -> ndarray:
    """Any intensities, their middle 98 % spread over the window of the overlay."""
    low, high = np.percentile(image, (1, 99))
    share = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    windowed: ndarray = WINDOW_HU[0] + share * (WINDOW_HU[1] - WINDOW_HU[0])
    return windowed
