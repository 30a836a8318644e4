"""The part of a crop that the topological loss looks at."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Generator, Tensor
from torch.nn.functional import avg_pool3d

from nnunet_topomae.geometry import as_size3
from nnunet_topomae.types import Size3


def region_shape(shape: Sequence[int], region_size: int) -> Size3:
    """Shape of a cubic sub-crop; axes that are shorter than its edge are used whole.

    Args:
        shape: shape (D, H, W) of the volume.
        region_size: edge of the sub-crop in voxels.

    Returns:
        Shape (d, h, w) of the sub-crop.
    """
    sizes = as_size3(shape, "shape")
    return min(sizes[0], region_size), min(sizes[1], region_size), min(sizes[2], region_size)


def draw_region_origin(shape: Sequence[int], region_size: int, generator: Generator) -> Size3:
    """Draw the place of a sub-crop, uniformly over all places inside the volume.

    On an axis of n voxels it is one of the ``max(n - region_size, 0) + 1`` whole numbers from 0 on.

    Args:
        shape: shape (D, H, W) of the volume.
        region_size: edge of the sub-crop in voxels; shorter axes are used whole.
        generator: source of randomness.

    Returns:
        Lowest voxel (D, H, W) of the sub-crop.

    Example:
        >>> draw_region_origin((16, 48, 48), 48, torch.Generator().manual_seed(0))
        (0, 0, 0)
    """
    sizes = as_size3(shape, "shape")
    room = [size - part for size, part in zip(sizes, region_shape(sizes, region_size), strict=True)]
    drawn = [int(torch.randint(free + 1, (), generator=generator, device=generator.device)) for free in room]
    return drawn[0], drawn[1], drawn[2]


@dataclass(frozen=True)
class TopologyRegion:
    """Cuts volumes down to the region of the topological loss.

    The same object serves the loader's workers, which compute target diagrams, and the loss.

    Attributes:
        policy: `full` the whole volume, `crop` a sub-crop of edge `size` (exact on what it sees), `pool` the volume
            average-pooled with the smallest integer factors that make every axis fit `size`.
        size: edge in voxels; shorter axes are used whole.

    Raises:
        ValueError: unknown policy or a size below 2.

    With `pool`, an axis of n voxels is divided by ``f = ceil(n / size)``, and a voxel of the region is the mean of a
    block of the volume, which is cut off at the upper border.

    Example:
        >>> volume = torch.arange(6.0).reshape(1, 1, 1, 1, 6)
        >>> TopologyRegion("crop", 2).extract(volume, origin=(0, 0, 3)).flatten().tolist()
        [3.0, 4.0]
        >>> TopologyRegion("pool", 2).extract(volume).flatten().tolist()
        [1.0, 4.0]
    """

    policy: str = "full"
    size: int = 48

    def __post_init__(self) -> None:
        if self.policy not in ("full", "crop", "pool"):
            raise ValueError(f"unknown region policy {self.policy!r}; allowed: full, crop, pool")
        if self.size < 2:
            raise ValueError(f"region size must be at least 2 voxels, got {self.size}")

    def shape(self, shape: Sequence[int]) -> Size3:
        """Shape of the region of a volume.

        Args:
            shape: shape (D, H, W) of the volume.

        Returns:
            Shape (d, h, w) of the region.

        Example:
            >>> TopologyRegion("crop", 48).shape((32, 96, 96)), TopologyRegion("pool", 48).shape((32, 96, 96))
            ((32, 48, 48), (32, 48, 48))
        """
        sizes = as_size3(shape, "shape")
        if self.policy == "full":
            return sizes
        if self.policy == "crop":
            return region_shape(sizes, self.size)
        return as_size3([-(-size // factor) for size, factor in zip(sizes, self._factors(sizes), strict=True)], "shape")

    def centred_origin(self, shape: Sequence[int]) -> Size3:
        """Place of the centred sub-crop of policy `crop`.

        Args:
            shape: shape (D, H, W) of the volume.

        Returns:
            Lowest voxel (D, H, W) of the sub-crop.
        """
        sizes = as_size3(shape, "shape")
        part = region_shape(sizes, self.size)
        return (sizes[0] - part[0]) // 2, (sizes[1] - part[1]) // 2, (sizes[2] - part[2]) // 2

    def extract(
        self, volume: Shaped[Tensor, "B C D H W"], origin: Sequence[int] | None = None
    ) -> Shaped[Tensor, "B C d h w"]:
        """The region of ``volume``; differentiable.

        Args:
            volume: (B, C, D, H, W), of floating point type for `pool`.
            origin: lowest voxel (D, H, W) of the sub-crop of policy `crop`, by default the centred one. The other
                policies know no origin.

        Returns:
            The region (B, C, d, h, w).

        Raises:
            ValueError: an origin with another policy, or one that puts the sub-crop outside the volume.
        """
        sizes = as_size3(volume.shape[2:], "volume shape")
        if origin is not None and self.policy != "crop":
            raise ValueError(f"region policy {self.policy!r} takes no origin, got {tuple(origin)}")
        if self.policy == "full":
            return volume
        if self.policy == "pool":
            factors = self._factors(sizes)
            return avg_pool3d(volume, factors, ceil_mode=True, count_include_pad=False)
        lower = self.centred_origin(sizes) if origin is None else as_size3(origin, "region origin")
        upper = [low + part for low, part in zip(lower, self.shape(sizes), strict=True)]
        if any(low < 0 or up > size for low, up, size in zip(lower, upper, sizes, strict=True)):
            raise ValueError(f"region [{lower}, {tuple(upper)}) leaves the volume of shape {sizes}")
        return volume[:, :, lower[0] : upper[0], lower[1] : upper[1], lower[2] : upper[2]]

    def _factors(self, sizes: Size3) -> Size3:
        """Pooling factors of policy `pool`."""
        return -(-sizes[0] // self.size), -(-sizes[1] // self.size), -(-sizes[2] // self.size)
