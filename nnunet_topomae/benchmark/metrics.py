"""Dice and 95 % Hausdorff distance of segmentations.

Dice is nnU-Net's. HD95 is in mm, between surfaces: a surface element sits in each 2 x 2 x 2 block of voxels that
the surface crosses, with the area of the marching-cubes triangles inside the block, and the 95th percentile is
weighted by area (Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck
anatomy", arXiv 1809.04430). A structure that a model misses costs the length of the image's diagonal and is counted,
so that missing a structure never improves a mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from numpy import ndarray
from scipy.ndimage import correlate, distance_transform_edt, find_objects

Mask = Bool[ndarray, "D H W"]
Spacing: TypeAlias = tuple[float, float, float]
_CORNER_CODES = np.array([1, 2, 4, 8, 16, 32, 64, 128], dtype=np.uint8).reshape(2, 2, 2)


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case was segmented.

    Attributes:
        dice: 0 to 1; NaN if truth and prediction are both empty.
        hd95: 95 % Hausdorff distance in mm; NaN if both are empty, the image's diagonal if only one is.
        missed: the structure exists and the prediction has none of it.
        spurious: the prediction has a structure that does not exist.
    """

    dice: float
    hd95: float
    missed: bool
    spurious: bool


def dice(truth: Mask, prediction: Mask) -> float:
    """Dice coefficient as nnU-Net computes it, 2 TP / (2 TP + FP + FN); NaN if both masks are empty."""
    _check_masks(truth, prediction)
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(truth & prediction)) / total if total else float("nan")


def hd95(truth: Mask, prediction: Mask, spacing: Spacing, percentile: float = 95.0) -> float:
    """Robust Hausdorff distance in mm between the surfaces of two masks.

    Args:
        truth: reference mask.
        prediction: mask of the same shape.
        spacing: voxel size in mm along (D, H, W).
        percentile: 95 by default; the larger one of the two directions counts.

    Returns:
        the distance; NaN if both masks are empty, the image's diagonal if only one is.

    Raises:
        ValueError: shapes differ, spacing or percentile out of range.
    """
    _check_masks(truth, prediction)
    if len(spacing) != 3 or min(spacing) <= 0 or not 0 < percentile <= 100:
        raise ValueError(f"need three positive spacings and a percentile in (0, 100], got {spacing} and {percentile}")
    if not (truth.any() and prediction.any()):
        both_empty = not (truth.any() or prediction.any())
        return float("nan") if both_empty else float(np.linalg.norm(np.array(truth.shape) * np.array(spacing)))
    box = find_objects((truth | prediction).astype(np.uint8))[0]
    areas = surface_areas(spacing)
    codes = [_block_codes(mask[box]) for mask in (truth, prediction)]
    surfaces = [areas[code] > 0 for code in codes]
    distances = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    forth = _weighted_percentile(distances[1][surfaces[0]], areas[codes[0][surfaces[0]]], percentile)
    back = _weighted_percentile(distances[0][surfaces[1]], areas[codes[1][surfaces[1]]], percentile)
    return max(forth, back)


def score_case(
    truth: Integer[ndarray, "D H W"], prediction: Integer[ndarray, "D H W"], spacing: Spacing, labels: Mapping[str, int]
) -> dict[str, StructureScore]:
    """Score every foreground structure of a label map.

    Args:
        truth: reference label map.
        prediction: predicted label map.
        spacing: voxel size in mm along (D, H, W).
        labels: label values by name as in dataset.json; value 0 is skipped.
    """
    scores = {}
    for name, value in labels.items():
        if value == 0:
            continue
        reference, predicted = truth == value, prediction == value
        scores[name] = StructureScore(
            dice=dice(reference, predicted),
            hd95=hd95(reference, predicted, spacing),
            missed=bool(reference.any() and not predicted.any()),
            spurious=bool(predicted.any() and not reference.any()),
        )
    return scores


def score_folder(
    truth: Path, prediction: Path, labels: Mapping[str, int], file_ending: str = ".nii.gz"
) -> dict[str, dict[str, StructureScore]]:
    """Score every case of ``truth``, in alphabetical order.

    Raises:
        ValueError: no cases, a prediction is missing, or its grid is not that of the truth.
    """
    files = sorted(truth.glob(f"*{file_ending}"))
    if not files:
        raise ValueError(f"{truth} holds no *{file_ending} files to score")
    absent = [file.name for file in files if not (prediction / file.name).is_file()]
    if absent:
        raise ValueError(f"{prediction} lacks {len(absent)} predictions, first {absent[0]}. Run the prediction again.")
    scores = {}
    for file in files:
        reference, spacing = _read_label_map(file)
        predicted, predicted_spacing = _read_label_map(prediction / file.name)
        if not np.allclose(spacing, predicted_spacing):
            raise ValueError(
                f"{file.name}: spacing of the prediction is {predicted_spacing} mm, of the truth {spacing} mm"
            )
        scores[file.name.removesuffix(file_ending)] = score_case(reference, predicted, spacing, labels)
    return scores


def summarise(scores: Sequence[StructureScore]) -> dict[str, float]:
    """Mean Dice and HD95 (mm) over cases in which they are defined, and how often the structure was missed."""

    def mean(values: list[float]) -> float:
        defined = [value for value in values if not np.isnan(value)]
        return float(np.mean(defined)) if defined else float("nan")

    return {
        "dice": mean([score.dice for score in scores]),
        "hd95": mean([score.hd95 for score in scores]),
        "missed": sum(score.missed for score in scores),
        "spurious": sum(score.spurious for score in scores),
        "cases": len(scores),
    }


@lru_cache(maxsize=32)
def surface_areas(spacing: Spacing) -> Float[ndarray, "256"]:
    """Area in mm^2 of the surface inside a block of 2 x 2 x 2 voxels, by the block's code.

    Bit 4 i + 2 j + k of the code is set if voxel (i, j, k) of the block lies inside the mask.
    """
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = np.zeros(256)
    for code in range(1, 255):
        block = (np.bitwise_and(_CORNER_CODES, code) > 0).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(block, 0.5, spacing=spacing, method="lorensen")
        areas[code] = mesh_surface_area(vertices, faces)
    areas.setflags(write=False)
    return areas


def _block_codes(mask: Mask) -> UInt8[ndarray, "D1 H1 W1"]:
    """Codes of all blocks that touch ``mask``, whose border is surrounded by background: D1 = D + 1, and so on."""
    padded = np.pad(mask, 1).astype(np.uint8)
    # Origin -1 makes the output voxel the first corner of its block; the last plane would only repeat the border.
    codes: UInt8[ndarray, "D1 H1 W1"] = correlate(padded, _CORNER_CODES, mode="constant", origin=-1)[:-1, :-1, :-1]
    return codes


def _weighted_percentile(values: Float[ndarray, " n"], weights: Float[ndarray, " n"], percentile: float) -> float:
    """The smallest value at which the values up to it hold ``percentile`` percent of the weight."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    index = min(int(np.searchsorted(share, percentile / 100.0)), len(order) - 1)
    return float(values[order[index]])


def _check_masks(truth: Mask, prediction: Mask) -> None:
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise ValueError(f"masks must be 3D and of one shape, got {truth.shape} and {prediction.shape}")
    if truth.dtype != np.bool_ or prediction.dtype != np.bool_:
        raise TypeError(f"masks must be boolean, got {truth.dtype} and {prediction.dtype}")


def _read_label_map(path: Path) -> tuple[Integer[ndarray, "D H W"], Spacing]:
    """Label map (D, H, W) and spacing in mm along the same axes."""
    import SimpleITK

    image = SimpleITK.ReadImage(path)
    width, height, depth = image.GetSpacing()
    return SimpleITK.GetArrayFromImage(image), (depth, height, width)
