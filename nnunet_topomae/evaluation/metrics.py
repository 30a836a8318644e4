"""How well structures were segmented: overlap, surface distance, volume, and whether they were found at all.

Dice is nnU-Net's. HD95 and NSD compare surfaces in mm (`nnunet_topomae.evaluation.surface`). A missed structure
gets the length of the image's diagonal as HD95 and is counted, so that missing a structure never improves a mean. The
metrics of the paper's own protocol are kept separate: its HD95 is in voxels and 0 for a missed structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Integer
from numpy import ndarray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects, generate_binary_structure

from nnunet_topomae.evaluation.surface import Mask, Spacing, SurfaceDistances, surface_distances

IGNORE = "ignore"
Label = int | Sequence[int]


@dataclass(frozen=True)
class MetricOptions:
    """What to measure.

    Attributes:
        tolerance: of NSD, in mm.
        paper_protocol: also Dice and HD95 as the published evaluation of UNETR++ takes them.
        betti: also the error of the Betti numbers.
    """

    tolerance: float = 2.0
    paper_protocol: bool = True
    betti: bool = False


@dataclass(frozen=True)
class StructureScore:
    """How well one structure of one case was segmented; NaN where a number is not defined.

    Attributes:
        dice: 0 to 1; NaN if truth and prediction are both empty.
        hd95: 95 % Hausdorff distance in mm; NaN if both are empty, the image's diagonal if only one is.
        nsd: normalised surface Dice, the share of both surfaces within the tolerance; NaN if both are empty, 0 if only
            one is.
        volume_error: predicted minus true volume in ml.
        relative_volume_error: the same, relative to the true volume; NaN if that is 0.
        missed: the structure exists and the prediction has none of it.
        spurious: the prediction has a structure that does not exist.
        paper_dice: Dice as published, 1 if both are empty.
        paper_hd95: HD95 as published, in voxels, 0 if either is empty.
        betti_error: sum over dimensions 0 to 2 of the absolute difference of Betti numbers.
    """

    dice: float
    hd95: float
    nsd: float = float("nan")
    volume_error: float = float("nan")
    relative_volume_error: float = float("nan")
    missed: bool = False
    spurious: bool = False
    paper_dice: float = float("nan")
    paper_hd95: float = float("nan")
    betti_error: float = float("nan")

    @property
    def absolute_volume_error(self) -> float:
        """Size of the volume error in ml, whose mean over cases does not cancel."""
        return abs(self.volume_error)


METRICS = tuple(field.name for field in fields(StructureScore))
SUMMARISED = (*METRICS, "absolute_volume_error")


def dice(truth: Mask, prediction: Mask) -> float:
    """Dice coefficient as nnU-Net computes it: 2 TP / (2 TP + FP + FN).

    Args:
        truth: boolean reference mask (D, H, W).
        prediction: boolean mask of the same shape.

    Returns:
        0 to 1; NaN if both masks are empty.

    Raises:
        ValueError: the masks are not 3D or differ in shape.
        TypeError: a mask is not boolean.

    Example:
        >>> truth, prediction = np.zeros((2, 4, 4, 4), dtype=bool)
        >>> truth[1:3], prediction[2:4] = True, True
        >>> dice(truth, prediction)
        0.5
    """
    _check_masks(truth, prediction)
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(truth & prediction)) / total if total else float("nan")


def hd95(truth: Mask, prediction: Mask, spacing: Spacing, percentile: float = 95.0) -> float:
    """Robust Hausdorff distance in mm between the surfaces of two masks.

    The percentile is weighted by surface area, as in Nikolov et al. 2018.

    Args:
        truth: boolean reference mask (D, H, W).
        prediction: boolean mask of the same shape.
        spacing: voxel size in mm along (D, H, W).
        percentile: 95 by default; the larger one of the two directions counts.

    Returns:
        the distance; NaN if both masks are empty, the image's diagonal if only one is.

    Raises:
        ValueError: shapes differ, spacing or percentile out of range.

    Example:
        >>> truth, prediction = np.zeros((2, 8, 8, 8), dtype=bool)
        >>> truth[2:4, 2:6, 2:6], prediction[3:5, 2:6, 2:6] = True, True
        >>> hd95(truth, prediction, spacing=(5.0, 1.0, 1.0))  # one slice of 5 mm too far
        5.0
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"need a percentile in (0, 100], got {percentile}")
    distances = _distances(truth, prediction, spacing)
    if distances is not None:
        return distances.hausdorff(percentile)
    return _diagonal(truth.shape, spacing) if truth.any() or prediction.any() else float("nan")


def nsd(truth: Mask, prediction: Mask, spacing: Spacing, tolerance: float) -> float:
    """Normalised surface Dice: the share of both surfaces' area within ``tolerance`` mm of the other surface.

    Source: Nikolov et al. 2018.

    Args:
        truth: boolean reference mask (D, H, W).
        prediction: boolean mask of the same shape.
        spacing: voxel size in mm along (D, H, W).
        tolerance: in mm.

    Returns:
        the share; NaN if both masks are empty, 0 if only one is.

    Raises:
        ValueError: shapes differ, spacing not positive, tolerance negative.

    Example:
        >>> truth, prediction = np.zeros((2, 6, 6, 6), dtype=bool)
        >>> truth[1:4, 1:4, 1:4], prediction[2:5, 1:4, 1:4] = True, True
        >>> nsd(truth, prediction, (2.0, 1.0, 1.0), tolerance=2.0)
        1.0
    """
    if tolerance < 0:
        raise ValueError(f"a tolerance is at least 0 mm, got {tolerance}")
    distances = _distances(truth, prediction, spacing)
    if distances is not None:
        return distances.dice(tolerance)
    return 0.0 if truth.any() or prediction.any() else float("nan")


def voxel_hd95(truth: Mask, prediction: Mask) -> float:
    """HD95 as in the published evaluation code of UNETR++ (Shaker et al. 2024).

    Both directions are pooled. Surfaces are the voxels of a mask with a face neighbour outside it, without weights.

    Args:
        truth: boolean reference mask (D, H, W).
        prediction: boolean mask of the same shape.

    Returns:
        The distance in voxels; 0 if either mask is empty.

    Raises:
        ValueError: the masks are not 3D or differ in shape.
        TypeError: a mask is not boolean.

    Example:
        >>> truth, prediction = np.zeros((2, 4, 4, 9), dtype=bool)
        >>> truth[1, 1, 1], prediction[1, 1, 5] = True, True
        >>> voxel_hd95(truth, prediction)
        4.0
    """
    _check_masks(truth, prediction)
    if not (truth.any() and prediction.any()):
        return 0.0
    box = find_objects((truth | prediction).view(np.uint8))[0]
    faces = generate_binary_structure(3, 1)
    borders = [mask[box] & ~binary_erosion(mask[box], faces) for mask in (truth, prediction)]
    distances = [distance_transform_edt(~border) for border in borders]
    return float(np.percentile(np.hstack([distances[1][borders[0]], distances[0][borders[1]]]), 95))


def betti_numbers(mask: Mask) -> tuple[int, int, int]:
    """Numbers of components, tunnels and cavities of a mask.

    Args:
        mask: boolean (D, H, W); voxels are connected through their faces.

    Returns:
        Betti numbers 0, 1 and 2.

    Example:
        >>> ball = np.ones((5, 5, 5), dtype=bool)
        >>> ball[2, 2, 2] = False  # a cavity
        >>> betti_numbers(ball)
        (1, 0, 1)
    """
    import torch

    from nnunet_topomae.topology import persistence_diagrams

    if not mask.any():
        return 0, 0, 0
    padded = np.pad(mask[find_objects(mask.view(np.uint8))[0]], 1).astype(np.float32)
    diagrams = persistence_diagrams(torch.from_numpy(padded))
    counts = [int((diagrams[k].points[:, 0] > diagrams[k].points[:, 1]).sum()) for k in range(3)]
    return counts[0], counts[1], counts[2]


def score_case(
    truth: Integer[ndarray, "D H W"],
    prediction: Integer[ndarray, "D H W"],
    spacing: Spacing,
    labels: Mapping[str, Label],
    options: MetricOptions = MetricOptions(),
) -> dict[str, StructureScore]:
    """Score every foreground structure of a label map.

    Args:
        truth: reference label map.
        prediction: predicted label map.
        spacing: voxel size in mm along (D, H, W).
        labels: as in dataset.json: a value, or several for a region. Value 0 is background; voxels that the truth
            gives the label `ignore` count nowhere.
        options: what to measure.

    Returns:
        A score for every foreground structure, by its name.

    Example:
        >>> truth = np.zeros((8, 8, 8), dtype=np.uint8)
        >>> truth[2:4, 2:6, 2:6] = 1
        >>> scores = score_case(truth, np.roll(truth, 1, axis=0), (1.0, 1.0, 1.0), {"background": 0, "liver": 1})
        >>> scores["liver"].dice, scores["liver"].hd95, scores["liver"].volume_error
        (0.5, 1.0, 0.0)
    """
    if IGNORE in labels:
        keep = truth != labels[IGNORE]
        truth, prediction = truth * keep, prediction * keep
    return {
        name: _score_structure(np.isin(truth, label), np.isin(prediction, label), spacing, options)
        for name, label in labels.items()
        if name != IGNORE and label != 0
    }


def _score_structure(truth: Mask, prediction: Mask, spacing: Spacing, options: MetricOptions) -> StructureScore:
    """Everything about one structure, inside the box that holds truth and prediction."""
    shape = truth.shape
    voxels, predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(prediction))
    if voxels + predicted:
        box = find_objects((truth | prediction).view(np.uint8))[0]
        truth, prediction = truth[box], prediction[box]
    distances = _distances(truth, prediction, spacing)
    one_empty = (voxels == 0) != (predicted == 0)
    undefined = _diagonal(shape, spacing) if one_empty else float("nan")
    overlap = dice(truth, prediction)
    millilitres = float(np.prod(spacing)) / 1000.0
    betti = float("nan")
    if options.betti:
        betti = float(sum(abs(a - b) for a, b in zip(betti_numbers(truth), betti_numbers(prediction), strict=True)))
    return StructureScore(
        dice=overlap,
        hd95=undefined if distances is None else distances.hausdorff(95.0),
        nsd=(0.0 if one_empty else float("nan")) if distances is None else distances.dice(options.tolerance),
        volume_error=(predicted - voxels) * millilitres,
        relative_volume_error=(predicted - voxels) / voxels if voxels else float("nan"),
        missed=bool(voxels and not predicted),
        spurious=bool(predicted and not voxels),
        paper_dice=(overlap if voxels + predicted else 1.0) if options.paper_protocol else float("nan"),
        paper_hd95=voxel_hd95(truth, prediction) if options.paper_protocol else float("nan"),
        betti_error=betti,
    )


def summarise(scores: Sequence[StructureScore]) -> dict[str, float | int]:
    """Mean of every metric over cases.

    Args:
        scores: scores of one structure, one per case.

    Returns:
        Means by metric over the cases in which the metric is defined, NaN where it is defined in none; the number of
        `cases`; `missed` and `spurious` as counts.
    """
    summary: dict[str, float | int] = {"cases": len(scores)}
    for metric in SUMMARISED:
        values = [float(getattr(score, metric)) for score in scores]
        if metric in ("missed", "spurious"):
            summary[metric] = int(sum(values))
        else:
            defined = [value for value in values if not np.isnan(value)]
            summary[metric] = float(np.mean(defined)) if defined else float("nan")
    return summary


def _distances(truth: Mask, prediction: Mask, spacing: Spacing) -> SurfaceDistances | None:
    """Surface distances; None if a mask is empty."""
    _check_masks(truth, prediction)
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"need three positive spacings, got {spacing}")
    return surface_distances(truth, prediction, spacing) if truth.any() and prediction.any() else None


def _diagonal(shape: Sequence[int], spacing: Spacing) -> float:
    return float(np.linalg.norm(np.array(shape) * np.array(spacing)))


def _check_masks(truth: Mask, prediction: Mask) -> None:
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise ValueError(f"masks must be 3D and of one shape, got {truth.shape} and {prediction.shape}")
    if truth.dtype != np.bool_ or prediction.dtype != np.bool_:
        raise TypeError(f"masks must be boolean, got {truth.dtype} and {prediction.dtype}")
