"""Dimension 2: voids are closed off by critical squares and die when a critical cube fills them.

Seen from the last voxel to the first, the cubes and the outside are components that critical squares join; so voids are
found as components are, along the gradient of the cubes. The outside is a component that is older than all others.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.cells import SQUARES
from nnunet_topomae.topology.homology.gradient import OUTSIDE, Gradient, Grid
from nnunet_topomae.topology.homology.lower_stars import lower_stars
from nnunet_topomae.topology.homology.meetings import CELL_BITS, find_meetings, merge


class Voids(NamedTuple):
    """Pairs of dimension 2, in voxels of the grid.

    Attributes:
        births: voxel at which each void is closed off.
        deaths: voxel at which it is filled.
        dead_squares: of every voxel of the grid, the critical squares that close off a void, as bits. They fill no
            loop.
    """

    births: Int[ndarray, " n"]
    deaths: Int[ndarray, " n"]
    dead_squares: UInt[ndarray, " m"]


def pair_voids(grid: Grid, gradient: Gradient) -> Voids:
    """Merge cubes across the critical squares, backwards. Uses up ``gradient.cube_behind``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
    """
    a, b = np.array(SQUARES).T
    # The two cubes of a square lie along the axis that the square does not have.
    cubes = np.minimum(grid.step[a], 0) + np.minimum(grid.step[b], 0)
    ends = np.stack([cubes, cubes + grid.step[6 - 2 * (a // 2 + b // 2)]], axis=1).reshape(-1)
    met = find_meetings(grid, gradient, lower_stars().critical_squares, gradient.cube_behind, ends)
    voxels, completed_by = met.cells >> CELL_BITS, gradient.completed_by[met.roots]
    # The outside, cube 0, is never completed, so it comes out as the oldest.
    ended, at = merge(met, OUTSIDE - grid.rank[voxels], -grid.rank[completed_by])
    squares = met.cells[at] & ((1 << CELL_BITS) - 1)
    dead_squares = np.zeros(len(grid.rank), np.uint16)
    np.bitwise_or.at(dead_squares, voxels[at], (1 << squares).astype(np.uint16))
    return Voids(voxels[at], completed_by[ended], dead_squares)
