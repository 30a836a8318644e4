"""Where a crop lies in its volume, and the nine key points that the spatial task predicts (paper Sec. II-B).

Two frames are used. The voxel frame measures along each axis in voxels from the lower face of the volume, so the
half-open crop ``[lower, upper)`` has its corners exactly at ``lower`` and ``upper``. The normalised frame maps the
lower face of the volume to -1 and the upper face to +1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nnunet_topomae.types import Size3

N_KEY_POINTS = 9


def as_size3(values: Sequence[int], name: str) -> Size3:
    """Return ``values`` as three ints.

    Raises:
        ValueError: not exactly three values.
    """
    if len(values) != 3:
        raise ValueError(
            f"{name} must have three entries (D, H, W), got {tuple(values)}. "
            "This method works on 3D configurations only, for example 3d_fullres."
        )
    return int(values[0]), int(values[1]), int(values[2])


@dataclass(frozen=True)
class CropLocation:
    """The place of a crop inside a volume, in voxels.

    Attributes:
        lower: first voxel of the crop along (D, H, W); negative where the crop starts before the volume.
        upper: one past the last voxel of the crop; larger than ``volume_shape`` where the crop leaves the volume.
        volume_shape: shape (D, H, W) of the volume.

    Raises:
        ValueError: an empty crop or volume.
    """

    lower: Size3
    upper: Size3
    volume_shape: Size3

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "volume_shape"):
            object.__setattr__(self, name, as_size3(getattr(self, name), name))
        if any(size <= 0 for size in self.volume_shape):
            raise ValueError(f"volume_shape must be positive, got {self.volume_shape}")
        if any(u <= lo for lo, u in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"empty crop: lower {self.lower} is not below upper {self.upper}")

    def key_points(self) -> Float[ndarray, "9 3"]:
        """The crop's nine key points in the volume's normalised frame (paper Sec. II-B).

        Rows 0-7 are the corners in the order of ``itertools.product((lower, upper), repeat=3)``, so bit 2 of the row
        number says which end of axis D, bit 1 of H, bit 0 of W. Row 8 is the centre.

        Paper is silent on the normalisation; its tanh output implies [-1, 1]. A point of a crop that leaves the
        volume is moved to the nearest point of the volume's surface, because tanh could not reach it.

        Returns:
            float32 array in [-1, 1], columns in axis order (D, H, W).
        """
        bounds = np.array([self.lower, self.upper], dtype=np.float64)
        corners = [[bounds[end, axis] for axis, end in enumerate(ends)] for ends in product((0, 1), repeat=3)]
        points = np.array([*corners, bounds.mean(axis=0)])
        normalised = 2.0 * points / np.array(self.volume_shape) - 1.0
        return np.asarray(np.clip(normalised, -1.0, 1.0), dtype=np.float32)


def flip_key_points(points: Float[ndarray, "9 3"], axes: Sequence[int]) -> Float[ndarray, "9 3"]:
    """Key points of a crop after its array was flipped along ``axes``.

    The volume stays where it is: after a flip, the corner at the start of the array holds what was at its end, so
    the corner rows swap and the coordinates keep their values. A volume that stores its own coordinates shows
    exactly these values at the corners of the flipped crop.

    Args:
        points: key points before the flip.
        axes: spatial axes out of 0, 1, 2 that were flipped.
    """
    swapped = 0
    for axis in axes:
        if axis not in (0, 1, 2):
            raise ValueError(f"flip axis must be 0, 1 or 2, got {axis}")
        swapped ^= 1 << (2 - axis)
    rows = [row ^ swapped for row in range(8)] + [8]
    return points[rows]
