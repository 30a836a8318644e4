"""Dimension 2: voids are closed off by critical squares and die when a critical cube fills them.

Seen from the last voxel to the first, the cubes and the outside are components that critical squares join; so voids are
found as components are, along the gradient of the cubes. The outside is a component that is older than all others.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.gradient import OUTSIDE, Gradient, Grid, find, ranks_of
from nnunet_topomae.topology.homology.lower_stars import LowerStars, lower_stars
from nnunet_topomae.topology.homology.order import U
from nnunet_topomae.topology.solver.kernels import kernel


class Voids(NamedTuple):
    """Pairs of dimension 2, in voxels of the grid.

    Attributes:
        births: voxel at which each void is closed off.
        deaths: voxel at which it is filled.
        squares_left: of every voxel of the grid, the critical squares that close off no void, as bits.
    """

    births: Int[ndarray, " n"]
    deaths: Int[ndarray, " n"]
    squares_left: UInt[ndarray, " m"]


def pair_voids(grid: Grid, gradient: Gradient) -> Voids:
    """Merge cubes across the critical squares, backwards. Uses up ``gradient.cube_behind``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
    """
    stars = lower_stars()
    ranks = ranks_of(grid, gradient, stars.critical_squares)
    room = 12 * len(ranks)
    found = Voids(np.empty(room, np.int32), np.empty(room, np.int32), np.zeros(len(grid.rank), np.uint16))
    count = _merge(grid, stars, gradient, ranks, found)
    return Voids(found.births[:count], found.deaths[:count], found.squares_left)


@kernel
def _merge(grid: Grid, stars: LowerStars, gradient: Gradient, ranks: ndarray, found: Voids) -> int:
    count, behind, rank, top = 0, gradient.cube_behind, grid.rank, gradient.completed_by
    for i in range(len(ranks) - 1, -1, -1):
        voxel = grid.order[U(ranks[U(i)])]
        critical, square = stars.critical_squares[U(gradient.star[U(voxel)])], 0
        while critical:
            if critical & 1:
                a, b = grid.square_ends[4 * square], grid.square_ends[4 * square + 1]
                # The two cubes lie along the axis that the square does not have.
                low = 6 - 2 * (a // 2 + b // 2)
                cube = voxel + min(grid.step[a], 0) + min(grid.step[b], 0)
                one = 0 if rank[voxel + grid.step[low + 1]] == OUTSIDE else find(behind, cube)
                other = 0 if rank[voxel + grid.step[low]] == OUTSIDE else find(behind, cube + grid.step[low])
                if one == other:
                    found.squares_left[voxel] |= 1 << square
                else:
                    if one != 0 and (other == 0 or rank[top[one]] < rank[top[other]]):
                        one, other = other, one
                    behind[other] = one
                    found.births[count], found.deaths[count] = voxel, top[other]
                    count += 1
            critical >>= 1
            square += 1
    return count
