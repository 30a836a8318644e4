"""Make docs/images/demo.png, the picture of the README, from the folder of a finished demo.

Usage: python docs/make_demo_figure.py DEMO_FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nnunet_topomae.benchmark.jobs import Job, make_jobs
from nnunet_topomae.benchmark.spec import BenchmarkSpec, read_spec
from nnunet_topomae.benchmark.store import JobFolder
from nnunet_topomae.commands.demo import FILE
from nnunet_topomae.training.previews import HIDDEN_COLOUR, Preview

COLOURS = ("#4aa3df", "#f0a830", "#35c9a5", "#f06fb0")
CASE = "phantom_test_000"


def grey_rgb(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map the window [low, high] to grey RGB values in [0, 1]."""
    return np.repeat(np.clip((pixels - low) / (high - low), 0, 1)[..., None], 3, axis=-1)


def slices(spec: BenchmarkSpec, predict: Job) -> list[tuple[str, np.ndarray, float]]:
    """Title, RGB pixels and aspect of every panel.

    Args:
        spec: the demo's benchmark.
        predict: the job that predicts the held-out cases with the fusion model.
    """
    pretraining = JobFolder.of(predict.need("pretrain"), spec).fold
    previews = sorted((pretraining / "validation" / "previews").glob("*.npz"))
    preview = Preview.load(previews[1])
    low, high = np.percentile(preview.input, (0.5, 99.5))
    middle = preview.input.shape[0] // 2
    panels = []
    for title, volume in (
        ("input", preview.input),
        ("half of it hidden", preview.input),
        ("rebuilt by the ViT", preview.vit),
        ("rebuilt by UNETR++", preview.partner),
    ):
        composed = np.where(preview.hidden, volume, preview.input)[middle]
        pixels = grey_rgb(composed, low, high)
        if title.startswith("half"):
            pixels[preview.hidden[middle]] = HIDDEN_COLOUR
        panels.append((title, pixels, preview.spacing[1] / preview.spacing[2]))
    raw = spec.raw_folder() / predict.dataset
    image = sitk.ReadImage(str(raw / "imagesTs" / f"{CASE}_0000.nii.gz"))
    grey = sitk.GetArrayFromImage(image).astype(np.float32)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "labelsTs" / f"{CASE}.nii.gz")))
    predicted = JobFolder.of(predict, spec).predictions / f"{CASE}.nii.gz"
    fusion = sitk.GetArrayFromImage(sitk.ReadImage(str(predicted)))
    best = max(range(len(truth)), key=lambda z: (len(np.unique(truth[z])), np.count_nonzero(truth[z])))
    low, high = -150, 250  # HU
    for title, labels in (("held-out case", None), ("truth", truth), ("fusion model", fusion)):
        pixels = grey_rgb(grey[best], low, high)
        for value, colour in enumerate(COLOURS, start=1):
            if labels is not None:
                inside = labels[best] == value
                pixels[inside] = 0.4 * pixels[inside] + 0.6 * np.array(to_rgb(colour))
        panels.append((title, pixels, image.GetSpacing()[1] / image.GetSpacing()[0]))
    return panels


def main() -> None:
    """Write the picture."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    spec = read_spec(Path(sys.argv[1]) / FILE)
    panels = slices(spec, next(job for job in make_jobs(spec) if (job.kind, job.recipe) == ("predict", "full")))
    figure = Figure(figsize=(2.0 * len(panels), 2.25), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axis, (title, pixels, aspect) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.imshow(pixels, aspect=aspect, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    target = Path(__file__).parent / "images" / "demo.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)


if __name__ == "__main__":
    main()
