"""Boundary-focused reconstruction: a corrupted crop, and the boundaries of the clean one (Zhang et al. 2022)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.data.boundary import boundary_map
from nnunet_topomae.data.corruptions import Corruption
from nnunet_topomae.data.images import not_finite

PERCENTILES = (0.5, 99.5)
MOST_VOXELS = 2_000_000


@dataclass(frozen=True)
class BoundaryTask:
    """Corrupts crops and finds their boundaries, on any scale of intensities.

    Both need to know what is dark and bright. The 0.5 and 99.5 percentiles of a case's whole image, channel by channel,
    count as 0 and 1, so a crop of nothing but noise has no boundaries.

    Attributes:
        corruption: chooses the corruptions.
        ranges: percentiles (C, 2) by case, as they become known.
    """

    corruption: Corruption
    ranges: dict[str, Float[ndarray, "C 2"]] = field(default_factory=dict)

    def range_of(self, case: str, read: Callable[[str], Any]) -> Float[ndarray, "C 2"]:
        """What counts as dark and bright in a case; read once.

        Args:
            case: its name.
            read: returns its image (C, D, H, W), read from disk only where it is indexed.

        Raises:
            ValueError: the image holds NaN or infinity.
        """
        if case not in self.ranges:
            image = read(case)
            step = -(-int(np.prod(image.shape[1:])) // MOST_VOXELS)
            slices = [np.asarray(image[:, start : start + 1]) for start in range(0, image.shape[1], step)]
            sample = np.concatenate(slices, axis=1).reshape(image.shape[0], -1)
            if not np.isfinite(sample).all():
                raise ValueError(not_finite(case))
            self.ranges[case] = np.percentile(sample, PERCENTILES, axis=1).T.astype(np.float32)
        return self.ranges[case]

    def __call__(
        self, volume: Float[Tensor, "C D H W"], ranges: Float[ndarray, "C 2"], rng: Generator
    ) -> tuple[Float[Tensor, "C D H W"], Float[Tensor, "C D H W"]]:
        """A corrupted crop in the crop's own intensities, and its boundaries in [0, 1].

        Args:
            volume: the crop.
            ranges: what is dark and bright in every channel; a channel where both are the same has no boundaries.
            rng: source of randomness.
        """
        low = ranges[:, 0, None, None, None]
        width = ranges[:, 1, None, None, None] - low
        width = np.where(width > 0, width, np.float32(1))
        scaled = (volume.numpy() - low) / width
        boundaries = np.stack([boundary_map(channel) for channel in scaled])
        corrupted = self.corruption(scaled, rng) * width + low
        return torch.from_numpy(corrupted.astype(np.float32)), torch.from_numpy(boundaries)
