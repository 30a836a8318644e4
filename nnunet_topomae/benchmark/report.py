"""`nnunet-topomae report`: one self-contained page from the folder of a finished demo."""

import argparse
import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.layout import MODELS, PRETRAINER, REPORT_FILE, RESULTS_FILE, DemoFolders

OVERLAY_CASES = 2
PREVIEW_CASES = 2


@dataclass(frozen=True)
class Picture:
    """An image of the page: where it came from is said in ``caption``, what it shows in ``alt``."""

    source: str
    alt: str
    caption: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `nnunet-topomae report`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of a finished demo")


def run(args: argparse.Namespace) -> int:
    """Render the page again; returns the exit code."""
    print(write_report(args.out))
    return 0


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
    write_whole(target, page)
    return target


def write_whole(target: Path, text: str) -> None:
    """Write a file of a report, replacing an older one only by a whole one."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)


def render(template: str, **context: Any) -> str:
    """Fill a template. The page may load nothing: its policy allows its own style sheet and inline images only."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("nnunet_topomae.benchmark")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = format_number
    environment.filters["p_value"] = format_p
    style = (environment.get_template("report.css").render()).strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # The style sheet is our own file, not data.
    return environment.get_template(template).render(style=Markup(style), style_hash=digest, **context)


def script(program: str) -> tuple[Any, str]:
    """A program for the inside of a script element, and its hash for the page's policy."""
    from markupsafe import Markup

    safe = program.strip().replace("</script", "<\\/script")
    return Markup(safe), base64.b64encode(hashlib.sha256(safe.encode()).digest()).decode()


def format_p(value: float | None) -> str:
    """A p-value with four digits; never a bare 0."""
    return "< 0.0001" if value is not None and value < 1e-4 else format_number(value, 4)


def format_number(value: float | None, digits: int) -> str:
    """A number with fixed digits; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def _score_picture(results: dict[str, Any]) -> Picture:
    from nnunet_topomae.benchmark.figures import data_uri, score_dots

    structures = list(results["models"]["fusion"]["mean"])
    return Picture(
        data_uri(score_dots(results["models"], structures)),
        "Dots of Dice and of HD95 for every held-out case, structure and model, with a bar at the mean",
        "Every dot is one held-out case, every bar a mean.",
    )


def _overlays(folders: DemoFolders, results: dict[str, Any]) -> Iterator[Picture]:
    from SimpleITK import GetArrayFromImage, ReadImage

    from nnunet_topomae.benchmark.figures import data_uri, overlay_figure
    from nnunet_topomae.datasets.phantom import LABELS

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
    from nnunet_topomae.benchmark.figures import data_uri
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
    from nnunet_topomae.benchmark.figures import data_uri, loss_curves
    from nnunet_topomae.training.progress import read_epochs

    return Picture(
        data_uri(loss_curves(read_epochs(folders.fold(PRETRAINER)))),
        "Curves of every term of the pre-training loss over the epochs",
        "Solid: training crops. Dashed: fixed crops and masks of the same cases.",
    )


def _training_picture(folders: DemoFolders) -> Picture:
    from nnunet_topomae.benchmark.figures import data_uri, training_curves
    from nnunet_topomae.training.progress import read_epochs

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

    from nnunet_topomae.benchmark.figures import data_uri, persistence_figure
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
