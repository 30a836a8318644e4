"""The demo's page: one self-contained file from the folder of a finished demo."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.layout import MODELS, REPORT_FILE, RESULTS_FILE, DemoFolders
from nnunet_topomae.files import write_text
from nnunet_topomae.nnunet.names import PRETRAINER
from nnunet_topomae.reports.page import Picture, render

OVERLAY_CASES = 2
PREVIEW_CASES = 2


def write_report(out: Path) -> Path:
    """Write `report.html` of a finished demo.

    Args:
        out: the demo's folder, with its `results.json`.

    Returns:
        the page.

    Raises:
        ValueError: ``out`` holds no finished demo.
    """
    file = out / RESULTS_FILE
    if not file.is_file():
        raise ValueError(f"{file} does not exist. Run `nnunet-topomae demo --out {out}` to its end first.")
    results = json.loads(file.read_text())
    folders = DemoFolders(out.absolute())
    page = render(
        "report.html.j2",
        results=results,
        structures=list(results["models"]["fusion"]["mean"]),
        minutes=sum(step["seconds"] for step in results["steps"]) / 60,
        scores=_score_picture(results),
        overlays=list(_overlays(folders, results)),
        previews=list(_previews(folders)),
        losses=_loss_picture(folders),
        trainings=_training_picture(folders),
        persistence=_persistence_picture(folders),
    )
    target = out / REPORT_FILE
    write_text(target, page)
    return target


def _score_picture(results: dict[str, Any]) -> Picture:
    from nnunet_topomae.reports.plots import data_uri, score_dots

    structures = list(results["models"]["fusion"]["mean"])
    return Picture(
        data_uri(score_dots(results["models"], structures)),
        "Dots of Dice and of HD95 for every held-out case, structure and model, with a bar at the mean",
        "Every dot is one held-out case, every bar a mean.",
    )


def _overlays(folders: DemoFolders, results: dict[str, Any]) -> Iterator[Picture]:
    from SimpleITK import GetArrayFromImage, ReadImage

    from nnunet_topomae.datasets.phantom import LABELS
    from nnunet_topomae.reports.plots import data_uri, overlay_figure

    raw = folders.raw / folders.dataset
    labels = {name: value for name, value in LABELS.items() if value}
    for case in list(results["models"]["fusion"]["cases"])[:OVERLAY_CASES]:
        image = ReadImage(raw / "imagesTs" / f"{case}_0000.nii.gz")
        truth = GetArrayFromImage(ReadImage(raw / "labelsTs" / f"{case}.nii.gz"))
        predicted = {m: GetArrayFromImage(ReadImage(folders.prediction(m) / f"{case}.nii.gz")) for m in MODELS}
        spacing = image.GetSpacing()[::-1]
        figure = overlay_figure(GetArrayFromImage(image), truth, predicted, spacing, labels)
        alt = f"Slices of {case} in three planes with the structures of truth, fusion and from-scratch model in colour"
        yield Picture(data_uri(figure, "png"), alt, f"{case}. White lines: border of the truth.")


def _previews(folders: DemoFolders) -> Iterator[Picture]:
    from nnunet_topomae.reports.plots import data_uri
    from nnunet_topomae.training.previews import Preview, preview_figure

    for file in _preview_files(folders)[:PREVIEW_CASES]:
        preview = Preview.load(file)
        alt = f"Input, masked input, ViT and UNETR++ reconstruction of {preview.case} in three planes"
        yield Picture(
            data_uri(preview_figure(preview), "png"),
            alt,
            f"{preview.case}. Blue: hidden from both networks. Reconstructions have the input elsewhere.",
        )


def _loss_picture(folders: DemoFolders) -> Picture:
    from nnunet_topomae.reports.plots import data_uri, loss_curves
    from nnunet_topomae.training.record import read_epochs

    return Picture(
        data_uri(loss_curves(read_epochs(folders.fold(PRETRAINER)))),
        "Curves of every term of the pre-training loss over the epochs",
        "Solid: training crops. Dashed: fixed crops and masks of the same cases.",
    )


def _training_picture(folders: DemoFolders) -> Picture:
    from nnunet_topomae.reports.plots import data_uri, training_curves
    from nnunet_topomae.training.record import read_epochs

    records = {model: read_epochs(folders.fold(trainer)) for model, trainer in MODELS.items()}
    return Picture(
        data_uri(training_curves(records)),
        "Curves of loss and of Dice on validation patches for the fusion model and the model from scratch",
        "Both trainings have the same number of steps. Dice on patches is nnU-Net's estimate during training.",
    )


def _persistence_picture(folders: DemoFolders) -> Picture | None:
    """Diagrams of the first preview; the reconstructions have the input at visible voxels, as in the loss."""
    import numpy as np
    import torch

    from nnunet_topomae.reports.plots import data_uri, persistence_figure
    from nnunet_topomae.topology import persistence_diagrams
    from nnunet_topomae.training.previews import Preview

    files = _preview_files(folders)
    if not files:
        return None
    preview = Preview.load(files[0])
    volumes = {"input": preview.input}
    for branch in ("vit", "unetrpp"):
        volumes[branch] = np.where(preview.hidden, getattr(preview, branch), preview.input)
    diagrams = {}
    for name, volume in volumes.items():
        found = persistence_diagrams(torch.from_numpy(volume))
        diagrams[name] = [np.asarray(found[dimension].points) for dimension in range(3)]
    return Picture(
        data_uri(persistence_figure(diagrams)),
        "Persistence diagrams of the input and both reconstructions in dimensions 0, 1 and 2",
        f"Superlevel sets of {preview.case}: features are born at a high intensity and die at a lower one. "
        "Points far below the line last long. Numbers of points in brackets.",
    )


def _preview_files(folders: DemoFolders) -> list[Path]:
    return sorted((folders.fold(PRETRAINER) / "validation" / "previews").glob("*.npz"))
