"""Where a crop lies in its volume, and the nine key points that the spatial task predicts (paper Sec. II-B).

Two frames are used. The voxel frame measures along each axis in voxels from the lower face of the volume, so the
half-open crop ``[lower, upper)`` has its corners exactly at ``lower`` and ``upper``. The normalised frame maps the
lower face of the volume to -1 and the upper face to +1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.random import Generator

from nnunet_topomae.types import Size3

N_KEY_POINTS = 9

FlipFrame = Literal["volume", "crop"]


def as_size3(values: Sequence[int], name: str) -> Size3:
    """Check that a size has three entries, and return it as a tuple of ints.

    Args:
        values: sizes along (D, H, W).
        name: what the values are, for the error message.

    Returns:
        The three sizes.

    Raises:
        ValueError: not exactly three values.
    """
    if len(values) != 3:
        raise ValueError(
            f"{name} must have three entries (D, H, W), got {tuple(values)}. "
            "This method works on 3D configurations only, for example 3d_fullres."
        )
    return int(values[0]), int(values[1]), int(values[2])


class Turn(NamedTuple):
    """How a volume and its crops are turned: axes change places, then some are flipped.

    Attributes:
        axes: axis i of the turned array is axis ``axes[i]`` of the array before.
        flips: axes of the turned array that run backwards.
    """

    axes: Size3 = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def quarter(self, plane: tuple[int, int]) -> "Turn":
        """This turn, then a rotation by 90 degrees.

        Args:
            plane: two axes of the turned array; the first one becomes the second one.
        """
        first, second = plane
        moved = {first: second, second: first}
        axes = [self.axes[moved.get(axis, axis)] for axis in range(3)]
        flips = {moved.get(axis, axis) for axis in self.flips} ^ {first}
        return Turn((axes[0], axes[1], axes[2]), tuple(sorted(flips)))

    def flipped(self, axes: Sequence[int]) -> "Turn":
        """This turn, then flips.

        Args:
            axes: distinct axes of the turned array.

        Raises:
            ValueError: another axis.
        """
        _check_axes(axes)
        return self._replace(flips=tuple(sorted({*self.flips} ^ {*axes})))

    def of_axes(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Values of the axes before, such as spacings, in the order of the turned array."""
        return values[self.axes[0]], values[self.axes[1]], values[self.axes[2]]


@dataclass(frozen=True)
class CropLocation:
    """The place of a crop inside a volume, in voxels.

    Example:
        >>> crop = CropLocation(lower=(-2, 0, 4), upper=(6, 8, 12), volume_shape=(16, 16, 16))
        >>> crop.is_padded
        True
        >>> crop.key_points()[8].tolist()  # the centre
        [-0.75, -0.5, 0.0]

    Attributes:
        lower: first voxel of the crop along (D, H, W); negative where the crop starts before the volume.
        upper: one past the last voxel of the crop; larger than ``volume_shape`` where the crop leaves the volume.
        volume_shape: shape (D, H, W) of the volume.
        resampled_to: shape of the crop's array if its voxels are not those of the volume, else None.

    Raises:
        ValueError: an empty crop or volume.
    """

    lower: Size3
    upper: Size3
    volume_shape: Size3
    resampled_to: Size3 | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "volume_shape"):
            object.__setattr__(self, name, as_size3(getattr(self, name), name))
        if any(size <= 0 for size in self.volume_shape):
            raise ValueError(f"volume_shape must be positive, got {self.volume_shape}")
        if any(u <= lo for lo, u in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"empty crop: lower {self.lower} is not below upper {self.upper}")

    @classmethod
    def random(cls, volume_shape: Size3, patch_size: Size3, rng: Generator) -> "CropLocation":
        """A uniformly random place of a crop.

        Along an axis on which the volume is smaller than the patch, the crop is centred and leaves the volume on both
        sides; along the others it stays inside.

        Args:
            volume_shape: shape (D, H, W) of the volume.
            patch_size: shape of the crop.
            rng: source of randomness; drawn from along the axes that leave a choice.
        """
        free = [size - patch for size, patch in zip(volume_shape, patch_size, strict=True)]
        depth, height, width = (int(rng.integers(0, room + 1)) if room >= 0 else room // 2 for room in free)
        return cls._at((depth, height, width), patch_size, volume_shape)

    @classmethod
    def centred(cls, volume_shape: Size3, patch_size: Size3) -> "CropLocation":
        """The place of the crop in the middle of the volume; half a voxel lower where there is no middle.

        Args:
            volume_shape: shape (D, H, W) of the volume.
            patch_size: shape of the crop.
        """
        depth, height, width = ((size - patch) // 2 for size, patch in zip(volume_shape, patch_size, strict=True))
        return cls._at((depth, height, width), patch_size, volume_shape)

    @classmethod
    def _at(cls, lower: Size3, patch_size: Size3, volume_shape: Size3) -> "CropLocation":
        depth, height, width = (start + edge for start, edge in zip(lower, patch_size, strict=True))
        return cls(lower, (depth, height, width), volume_shape)

    @property
    def array_shape(self) -> Size3:
        """Shape of the crop's array."""
        return self.resampled_to or as_size3([up - low for low, up in self.bounds], "array_shape")

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First voxel and one past the last, axis by axis."""
        return list(zip(self.lower, self.upper, strict=True))

    def key_points(self) -> Float[ndarray, "9 3"]:
        """The crop's nine key points in the volume's normalised frame (paper Sec. II-B).

        Rows 0-7 are the corners in the order of ``itertools.product((lower, upper), repeat=3)``, so bit 2 of the row
        number says which end of axis D, bit 1 of H, bit 0 of W. Row 8 is the centre.

        Paper is silent on the normalisation; its tanh output implies [-1, 1]. A point of a crop that leaves the
        volume is moved to the nearest point of the volume's surface, because tanh could not reach it.

        Returns:
            float32 array in [-1, 1], columns in axis order (D, H, W).
        """
        normalised = 2.0 * self.points() / np.array(self.volume_shape) - 1.0
        return np.asarray(np.clip(normalised, -1.0, 1.0), dtype=np.float32)

    def points(self) -> Float[ndarray, "9 3"]:
        """Corners and centre as in :meth:`key_points`, in the voxel frame; they may lie outside the volume."""
        bounds = np.array([self.lower, self.upper], dtype=np.float64)
        corners = [[bounds[end, axis] for axis, end in enumerate(ends)] for ends in product((0, 1), repeat=3)]
        return np.array([*corners, bounds.mean(axis=0)])

    def turned(self, turn: Turn) -> "CropLocation":
        """The place of the same crop after the whole volume was turned; see :meth:`flipped`."""
        if turn == Turn():
            return self
        lower, upper, shape, array = (
            (sizes[turn.axes[0]], sizes[turn.axes[1]], sizes[turn.axes[2]])
            for sizes in (self.lower, self.upper, self.volume_shape, self.array_shape)
        )
        return CropLocation(lower, upper, shape, self.resampled_to and array).flipped(turn.flips)

    def flipped(self, axes: Sequence[int]) -> "CropLocation":
        """The place of the same crop after the whole volume was flipped along ``axes``.

        Cutting this place out of the flipped volume gives the flipped crop, its padding included.

        Args:
            axes: distinct spatial axes out of 0, 1, 2.

        Returns:
            A new location in a volume of the same shape.

        Raises:
            ValueError: another axis.
        """
        _check_axes(axes)
        depth, height, width = (
            (size - up, size - low) if axis in axes else (low, up)
            for axis, (low, up, size) in enumerate(zip(self.lower, self.upper, self.volume_shape, strict=True))
        )
        lower, upper = zip(depth, height, width, strict=True)
        return CropLocation(lower, upper, self.volume_shape, self.resampled_to)

    def inside(self) -> Bool[ndarray, "D H W"]:
        """The voxels of the crop's array that lie in the volume.

        Returns:
            bool array of the array's shape, False where the crop is padded.
        """
        mask = np.zeros(self.array_shape, dtype=bool)
        mask[self.inner_slices()] = True
        return mask

    def inner_slices(self) -> tuple[slice, slice, slice]:
        """The part of the crop's array that lies in the volume.

        Returns:
            Slices along (D, H, W); empty where the crop lies wholly outside the volume.
        """
        sizes = zip(self.lower, self.upper, self.volume_shape, self.array_shape, strict=True)
        first, second, third = (_inner_slice(low, up, size, voxels) for low, up, size, voxels in sizes)
        return first, second, third

    @property
    def is_padded(self) -> bool:
        """Whether the crop leaves the volume."""
        bounds = zip(self.lower, self.upper, self.volume_shape, strict=True)
        return any(low < 0 or up > size for low, up, size in bounds)


def _inner_slice(lower: int, upper: int, size: int, voxels: int) -> slice:
    """The voxels of an array that spans [lower, upper) whose centres lie in [0, size)."""
    edge = (upper - lower) / voxels
    start, stop = (min(voxels, max(0, ceil((face - lower) / edge - 0.5))) for face in (0, size))
    return slice(start, stop)


def flip_key_points(
    points: Float[ndarray, "9 3"], axes: Sequence[int], frame: FlipFrame = "volume"
) -> Float[ndarray, "9 3"]:
    """Key points of a crop after its array was flipped along ``axes``.

    Row 0 stays the corner at the array's start. The paper (Sec. II-B) does not mention flips.

    Args:
        points: key points (9, 3) before the flip, in [-1, 1].
        axes: distinct spatial axes out of 0, 1, 2 that were flipped.
        frame: what is flipped. ``volume``: the volume is flipped together with the crop, and coordinates are those of
            the flipped volume, so what a crop looks like still fits where it is. The result is
            ``location.flipped(axes).key_points()``. ``crop``: the volume stays where it is, and coordinates are those
            of the volume as it was, so the corner at the array's start has the coordinates of what was at its end.

    Returns:
        Key points (9, 3) after the flip, in [-1, 1].

    Raises:
        ValueError: another axis.

    Example:
        >>> crop = CropLocation((0, 0, 0), (4, 8, 8), (16, 16, 16))
        >>> crop.key_points()[8].tolist()
        [-0.75, -0.5, -0.5]
        >>> flip_key_points(crop.key_points(), axes=[0])[8].tolist()
        [0.75, -0.5, -0.5]
        >>> flip_key_points(crop.key_points(), axes=[0], frame="crop")[8].tolist()
        [-0.75, -0.5, -0.5]
    """
    _check_axes(axes)
    swapped = sum(1 << (2 - axis) for axis in axes)
    rows = [row ^ swapped for row in range(8)] + [8]
    flipped = points[rows]
    if frame == "volume":
        flipped[:, list(axes)] *= -1.0  # [rows] above made a copy
    return flipped


def _check_axes(axes: Sequence[int]) -> None:
    if not set(axes) <= {0, 1, 2} or len(set(axes)) != len(axes):
        raise ValueError(f"flip axes must be distinct axes out of 0, 1, 2, got {', '.join(map(str, axes))}")
