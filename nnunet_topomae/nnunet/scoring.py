"""Scores of a folder of predicted label maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Integer
from numpy import ndarray

from nnunet_topomae.evaluation.metrics import Label, MetricOptions, StructureScore, score_case
from nnunet_topomae.evaluation.surface import Spacing

DEFAULT_OPTIONS = MetricOptions()


def score_folder(
    truth: Path,
    prediction: Path,
    labels: Mapping[str, Label],
    file_ending: str = ".nii.gz",
    options: MetricOptions = DEFAULT_OPTIONS,
    cases: Sequence[str] | None = None,
) -> dict[str, dict[str, StructureScore]]:
    """Score cases in alphabetical order.

    Args:
        truth: folder of reference label maps.
        prediction: folder of predicted label maps of the same names.
        labels: as in dataset.json.
        file_ending: as in dataset.json.
        options: what to measure.
        cases: which; all of ``truth`` if not given.

    Raises:
        ValueError: no cases, a label map is missing, or its grid is not that of the truth.
    """
    names = sorted(cases if cases is not None else (p.name[: -len(file_ending)] for p in truth.glob(f"*{file_ending}")))
    if not names:
        raise ValueError(f"{truth} holds no *{file_ending} files to score")
    for folder, what in ((truth, "reference label maps"), (prediction, "predictions")):
        if absent := [f"{name}{file_ending}" for name in names if not (folder / f"{name}{file_ending}").is_file()]:
            raise ValueError(f"{folder} lacks {len(absent)} {what}, first {absent[0]}. Run the prediction again.")
    scores = {}
    for name in names:
        reference, spacing = _read_label_map(truth / f"{name}{file_ending}")
        predicted, predicted_spacing = _read_label_map(prediction / f"{name}{file_ending}")
        if not np.allclose(spacing, predicted_spacing):
            raise ValueError(
                f"{name}{file_ending}: spacing of the prediction is {predicted_spacing} mm, of the truth {spacing} mm"
            )
        scores[name] = score_case(reference, predicted, spacing, labels, options)
    return scores


def _read_label_map(path: Path) -> tuple[Integer[ndarray, "D H W"], Spacing]:
    """Label map (D, H, W) and spacing in mm along the same axes."""
    image = SimpleITK.ReadImage(path)
    width, height, depth = image.GetSpacing()
    return SimpleITK.GetArrayFromImage(image), (depth, height, width)
