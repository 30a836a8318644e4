"""Fixed crops of training cases with their labels, for the probe of a pre-training."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nnunet_topomae.geometry import CropLocation, as_size3
from nnunet_topomae.types import Size3

# Of a voxel whose label does not count.
NO_LABEL = -1


class LabelledCrop(NamedTuple):
    """A crop and its labels.

    Attributes:
        case: where it comes from.
        data: (C, D, H, W), as pre-training sees it.
        labels: (D, H, W), -1 where nothing counts: outside the volume, and where the label is `ignore`.
    """

    case: str
    data: Float[Tensor, "C D H W"]
    labels: Int[ndarray, "D H W"]


def spread(cases: Iterable[str], most: int) -> list[str]:
    """At most so many cases, evenly spread over their sorted names.

    Args:
        cases: any number of names.
        most: how many are kept.
    """
    ordered = sorted(cases)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, most)]


def foreground_location(labels: Int[ndarray, "D H W"], patch_size: Size3) -> CropLocation | None:
    """The crop around the middle of what is labelled, inside the volume where it fits; None without a labelled voxel.

    The middle is the labelled voxel next to the median, so that crops between two structures have at least one.

    Args:
        labels: of the whole volume; what is above 0 is labelled.
        patch_size: shape of the crop.
    """
    places = np.argwhere(labels > 0)
    if not len(places):
        return None
    middle, shape = places[np.linalg.norm(places - np.median(places, axis=0), axis=1).argmin()], labels.shape
    lower = []
    for centre, size, patch in zip(middle, shape, patch_size, strict=True):
        room = size - patch
        lower.append(int(np.clip(round(centre - patch / 2), 0, room)) if room >= 0 else room // 2)
    upper = [start + edge for start, edge in zip(lower, patch_size, strict=True)]
    return CropLocation(as_size3(lower, "crop"), as_size3(upper, "crop"), as_size3(shape, "volume shape"))


def read_labelled_crop(
    case: str,
    segmentation: Any,
    patch_size: Size3,
    ignored: int | None,
    read: Callable[[CropLocation], Float[Tensor, "C D H W"]],
) -> LabelledCrop | None:
    """One crop around what is labelled; None for a case without a labelled voxel.

    Args:
        case: its name.
        segmentation: array (1, D, H, W) of the whole case; below 0 is background that preprocessing has marked.
        patch_size: shape of the crop.
        ignored: the label that nnU-Net leaves out of the loss, if there is one.
        read: returns the image in a place.
    """
    labels = np.asarray(segmentation[0]).astype(np.int64)
    counted = np.where(labels == ignored, NO_LABEL, np.maximum(labels, 0)) if ignored is not None else labels.clip(0)
    location = foreground_location(counted, patch_size)
    if location is None:
        return None
    cut = crop_and_pad_nd(counted, [list(bounds) for bounds in location.bounds], NO_LABEL)
    return LabelledCrop(case, read(location), cut)


def halves(crops: Sequence[LabelledCrop]) -> tuple[list[LabelledCrop], list[LabelledCrop]]:
    """Every second crop, and the others: to fit on and to score on."""
    return list(crops[::2]), list(crops[1::2])
