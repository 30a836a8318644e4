"""How the trainings behind a table went: curves, reconstructions and their topology, as pictures for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_topomae.benchmark.collect import Entry
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.files import read_table
from nnunet_topomae.reports.page import Picture
from nnunet_topomae.reports.plots import data_uri
from nnunet_topomae.reports.training_plots import loss_curves, persistence_figure, training_curves
from nnunet_topomae.training.previews import Preview, preview_figure
from nnunet_topomae.training.record import read_epochs
from nnunet_topomae.training.spatial_results import SpatialErrors

PREVIEW_CASES = 2
_EXPLAINED = {
    False: "Blue: hidden from both networks. Reconstructions have the input elsewhere.",
    True: "The networks see the corrupted crop; blue: hidden from them too.",
}
NETWORKS = {"vit": "ViT", "partner": "partner"}


@dataclass(frozen=True)
class PretrainingPanel:
    """One pre-training.

    Attributes:
        title: of its recipe.
        moment: when the networks were asked to rebuild crops.
        losses: curves of every term; None without a record of epochs.
        reconstruction: means of the metrics of its validation by network's title.
        spatial: how well it knows where crops were taken, a sentence per task.
        previews: masked crops and their reconstructions; empty unless images may be shown.
        persistence: diagrams of the first preview; None without one.
    """

    title: str
    moment: str
    losses: Picture | None
    reconstruction: Mapping[str, Mapping[str, Any]]
    spatial: Sequence[str]
    previews: Sequence[Picture]
    persistence: Picture | None

    def measures(self, metric: str) -> bool:
        """Whether a metric was measured for any network."""
        return any(metric in mean for mean in self.reconstruction.values())


@dataclass(frozen=True)
class TrainingPanels:
    """The first fold and seed of all recipes of a table.

    Attributes:
        curves: of the supervised trainings; None without a record of epochs.
        pretrainings: of the recipes that have one.
    """

    curves: Picture | None
    pretrainings: Sequence[PretrainingPanel]


def make_training_panels(spec: BenchmarkSpec, entries: Sequence[Entry], images: bool) -> TrainingPanels:
    """Pictures of the first fold and seed.

    Args:
        spec: the benchmark.
        entries: trainings of one data set and label fraction.
        images: show crops of cases.
    """
    first = {
        spec.recipe(entry.job.recipe).title: entry.job
        for entry in entries
        if (entry.job.fold, entry.job.seed) == (spec.folds[0], spec.seeds[0])
    }
    records = {title: read_epochs(JobFolder.of(job, spec).fold) for title, job in first.items()}
    panels: list[PretrainingPanel] = []
    for title, job in first.items():
        pretraining = job.find("pretrain")
        if pretraining is not None:
            fold = JobFolder.of(pretraining, spec).fold
            # Diagrams of a large crop take seconds: one recipe shows what the loss compares.
            panels.append(pretraining_panel(title, fold, images, diagrams=not panels))
    return TrainingPanels(_training_picture({title: found for title, found in records.items() if found}), panels)


def _training_picture(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture | None:
    if not records:
        return None
    return Picture(
        data_uri(training_curves(records)),
        f"Curves of loss and of Dice on validation patches for {', '.join(records)}",
        "Supervised trainings. Dice on patches is nnU-Net's estimate during training.",
    )


def pretraining_panel(title: str, fold: Path, images: bool, diagrams: bool) -> PretrainingPanel:
    """What a pre-training has to show; also while it runs.

    Args:
        title: what to call it.
        fold: its folder.
        images: show crops of cases.
        diagrams: show the persistence diagrams of the first preview, which take seconds.
    """
    moment, newest = _newest_reconstructions(fold)
    files = sorted((newest / "previews").glob("*.npz"))
    results = read_table(newest / "summary.json")
    means = results.get("reconstruction", {}).get("mean", {})
    return PretrainingPanel(
        title,
        moment,
        _loss_picture(fold),
        {name: means[key] for key, name in NETWORKS.items() if means.get(key)},
        [SpatialErrors.read(task, found).line() for task, found in results.get("spatial", {}).items()],
        [_preview_picture(Preview.load(file)) for file in files[:PREVIEW_CASES]] if images else [],
        _persistence_picture(Preview.load(files[0])) if files and diagrams else None,
    )


def _newest_reconstructions(fold: Path) -> tuple[str, Path]:
    """When crops were rebuilt last, and the folder with what came out."""
    final = fold / "validation"
    epochs = [int(path.name.removeprefix("epoch_")) for path in fold.glob("monitoring/epoch_*") if path.is_dir()]
    if (final / "summary.json").is_file() or not epochs:
        return "After pre-training", final
    return f"After {max(epochs)} epochs", fold / "monitoring" / f"epoch_{max(epochs)}"


def _loss_picture(fold: Path) -> Picture | None:
    records = read_epochs(fold)
    if not records:
        return None
    return Picture(
        data_uri(loss_curves(records)),
        "Curves of every term of the pre-training loss over the epochs",
        "Solid: training crops. Dashed: fixed crops and masks of the same cases.",
    )


def _preview_picture(preview: Preview) -> Picture:
    return Picture(
        data_uri(preview_figure(preview), "png"),
        f"Input, masked input and reconstructions of {preview.case} in three planes",
        f"{preview.case}. {_EXPLAINED[preview.boundaries is not None]} "
        "The crop is in the orientation of the preprocessed image: its planes are named after the array's axes.",
    )


def _persistence_picture(preview: Preview) -> Picture:
    """The reconstructions have the input at visible voxels, as in the loss."""
    import torch

    from nnunet_topomae.topology import persistence_diagrams

    volumes = {"input": preview.input}
    for network in NETWORKS:
        if getattr(preview, network) is not None:
            volumes[network] = preview.shown(network)
    diagrams = {}
    for name, volume in volumes.items():
        found = persistence_diagrams(torch.from_numpy(volume))
        diagrams[name] = [np.asarray(found[dimension].points) for dimension in range(3)]
    return Picture(
        data_uri(persistence_figure(diagrams)),
        "Persistence diagrams of the input and its reconstructions in dimensions 0, 1 and 2",
        f"Superlevel sets of {preview.case}: features are born at a high intensity and die at a lower one. "
        "Points far below the line last long. Numbers of points in brackets.",
    )
