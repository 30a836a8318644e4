"""Distances between the surfaces of two masks.

Each 2 x 2 x 2 block of voxels that the surface crosses holds a surface element. Its area is that of the marching-cubes
triangles inside the block (Nikolov et al. 2018).
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy.ndimage import distance_transform_edt, find_objects

Mask = Bool[ndarray, "D H W"]
Spacing: TypeAlias = tuple[float, float, float]
_CORNER_CODES = np.array([1, 2, 4, 8, 16, 32, 64, 128], dtype=np.uint8).reshape(2, 2, 2)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Every surface element's distance to the other mask's surface.

    Attributes:
        forth: distances in mm from the elements of the first mask.
        forth_areas: areas of these elements in mm^2.
        back: distances in mm from the elements of the second mask.
        back_areas: areas of these elements in mm^2.
    """

    forth: Float[ndarray, " n"]
    forth_areas: Float[ndarray, " n"]
    back: Float[ndarray, " m"]
    back_areas: Float[ndarray, " m"]

    def hausdorff(self, percentile: float) -> float:
        """The area-weighted percentile of the distances, for the worse of the two directions.

        Args:
            percentile: in (0, 100]; 100 is the Hausdorff distance.

        Returns:
            The distance in mm.
        """
        return max(
            _weighted_percentile(self.forth, self.forth_areas, percentile),
            _weighted_percentile(self.back, self.back_areas, percentile),
        )

    def dice(self, tolerance: float) -> float:
        """Share of both surfaces' area that lies near the other surface.

        Args:
            tolerance: largest distance in mm that counts as near.

        Returns:
            The share, 0 to 1.
        """
        near = self.forth_areas[self.forth <= tolerance].sum() + self.back_areas[self.back <= tolerance].sum()
        return float(near / (self.forth_areas.sum() + self.back_areas.sum()))


def surface_distances(first: Mask, second: Mask, spacing: Spacing) -> SurfaceDistances:
    """Distances between the surfaces of two masks, neither of them empty.

    Args:
        first: a boolean mask (D, H, W).
        second: a boolean mask of the same shape.
        spacing: voxel size in mm along (D, H, W).

    Returns:
        Distances in mm and areas in mm^2 of all surface elements.

    Raises:
        ValueError: a mask is empty, or a spacing is not positive.

    Example:
        >>> first, second = np.zeros((2, 4, 4, 4), dtype=bool)
        >>> first[1:3, 1:3, 1:3], second[1:3, 1:3, 1:3] = True, True
        >>> surface_distances(first, second, (1.0, 1.0, 1.0)).hausdorff(100.0)
        0.0
    """
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"need three positive spacings, got {spacing}")
    if not (first.any() and second.any()):
        raise ValueError("an empty mask has no surface")
    box = find_objects((first | second).view(np.uint8))[0]
    areas = surface_areas(spacing)
    codes = [_block_codes(mask[box]) for mask in (first, second)]
    surfaces = [areas[code] > 0 for code in codes]
    distances = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return SurfaceDistances(
        distances[1][surfaces[0]],
        areas[codes[0][surfaces[0]]],
        distances[0][surfaces[1]],
        areas[codes[1][surfaces[1]]],
    )


@lru_cache(maxsize=32)
def surface_areas(spacing: Spacing) -> Float[ndarray, "256"]:
    """Area of the surface inside a block of 2 x 2 x 2 voxels, by the block's code.

    Bit 4 i + 2 j + k of the code is set if voxel (i, j, k) of the block lies inside the mask.

    Args:
        spacing: voxel size in mm along (D, H, W).

    Returns:
        Read-only array (256,) of areas in mm^2.
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
    padded = np.pad(mask, 1).view(np.uint8)
    depth, height, width = (size + 1 for size in mask.shape)
    codes = np.zeros((depth, height, width), dtype=np.uint8)
    for bit, (i, j, k) in enumerate(product((0, 1), repeat=3)):
        codes |= padded[i : i + depth, j : j + height, k : k + width] << np.uint8(bit)
    return codes


def _weighted_percentile(values: Float[ndarray, " n"], weights: Float[ndarray, " n"], percentile: float) -> float:
    """The smallest value at which the values up to it hold ``percentile`` percent of the weight."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    index = min(int(np.searchsorted(share, percentile / 100.0)), len(order) - 1)
    return float(values[order[index]])
