"""The discrete gradient of a volume: the lower star of every voxel, and where the gradient leads from it."""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.homology.cells import CUBES, DIRECTIONS, SQUARES
from nnunet_topomae.topology.homology.lower_stars import CRITICAL_CUBE, NOTHING, LowerStars, lower_stars
from nnunet_topomae.topology.homology.order import U, falling_order
from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel
from nnunet_topomae.topology.workers import Both, in_turn

# Rank of the voxels around the volume: they never come.
OUTSIDE = np.int32(2**31 - 1)


class Grid(NamedTuple):
    """A volume with a margin of one voxel on all sides, flattened in C order.

    Attributes:
        shape: (D, H, W) without the margin.
        rank: place of every voxel in the order, the first to come first; `OUTSIDE` in the margin.
        step: from a voxel to its neighbour in each of the six directions.
        near: from a voxel to the 26 neighbours: across edges, squares and cubes, numbered as in `cells`.
        corner: from a voxel to the first corner of each of its eight cubes.
    """

    shape: tuple[int, int, int]
    rank: Int[ndarray, " m"]
    step: Int[ndarray, "6"]
    near: Int[ndarray, "26"]
    corner: Int[ndarray, "8"]


class Gradient(NamedTuple):
    """The discrete gradient; all arrays are over the voxels of a `Grid`.

    Attributes:
        star: number of the voxel's lower star.
        dead_edges: the edge that the voxel is paired with, as a bit.
        below: the voxel at the other end of the edge that the voxel is paired with; itself at a maximum of the volume.
        cube_behind: a cube has the name of its first corner. The cube behind the square that it is paired with; itself
            if it is critical. Of cubes outside the volume, 0, which stands for all of them.
        completed_by: of a critical cube, the voxel that completes it.
    """

    star: ndarray
    dead_edges: ndarray
    below: ndarray
    cube_behind: ndarray
    completed_by: ndarray


def make_grid(volume: Float[ndarray, "D H W"]) -> tuple[Grid, Int[ndarray, "1"]]:
    """Put a margin around a volume and sort its voxels.

    Args:
        volume: float32 or float64, C-contiguous, finite values.

    Returns:
        The grid, and its first voxel.
    """
    depth, height, width = (size + 2 for size in volume.shape)
    step = np.array(DIRECTIONS) @ np.array([height * width, width, 1])
    names = np.arange(depth * height * width, dtype=np.int32).reshape(depth, height, width)
    rank = np.full(names.size, OUTSIDE, np.int32)
    order = falling_order(volume.reshape(-1), names[1:-1, 1:-1, 1:-1].reshape(-1), rank)
    squares, cubes = np.array(SQUARES), np.array(CUBES)
    near = np.concatenate([step, step[squares].sum(axis=1), step[cubes].sum(axis=1)])
    return Grid(volume.shape, rank, step, near, corner=np.minimum(step[cubes], 0).sum(axis=1)), order[:1]


def make_gradient(grid: Grid, both: Both = in_turn) -> Gradient:
    """Look up the lower star of every voxel.

    Args:
        grid: the volume with its margin.
        both: runs two functions, here for the two halves of the volume.
    """
    size = len(grid.rank)
    gradient = Gradient(
        np.zeros(size, np.uint16),
        np.zeros(size, np.uint8),
        below=np.empty(size, np.int32),
        cube_behind=np.zeros(size, np.int32),
        completed_by=np.zeros(size, np.int32),
    )
    tables, (depth, _, width) = lower_stars(), grid.shape

    def fill(first: int, last: int) -> None:
        _fill(grid, tables, gradient, np.empty(width, np.int32), first, last)

    both(partial(fill, 0, depth // 2), partial(fill, depth // 2, depth))
    return gradient


@kernel
def _fill(grid: Grid, stars: LowerStars, gradient: Gradient, earlier: ndarray, first: int, last: int) -> None:
    """The slices from ``first`` to before ``last``. A cell has one lower star, so parts never write to one place.

    ``earlier``: for one row of voxels, which of the 26 neighbours come before each, as bits.
    """
    _, height, width = grid.shape
    rank = grid.rank
    for z in range(first, last):
        for y in range(height):
            row = ((z + 1) * (height + 2) + y + 1) * (width + 2) + 1
            here = rank[row : row + width]
            for x in range(width):
                earlier[x] = 0
            for k in range(26):
                there = rank[row + grid.near[k] : row + grid.near[k] + width]
                for x in range(width):
                    earlier[x] |= np.int32(there[x] < here[x]) << k
            _look_up(grid, stars, gradient, row, earlier)


@inner_kernel
def _look_up(grid: Grid, stars: LowerStars, gradient: Gradient, row: int, earlier: ndarray) -> None:
    """Lower stars of one row of voxels, and where the gradient leads from them."""
    step = grid.step
    for x in range(len(earlier)):
        voxel, bits = row + x, earlier[x]
        edges = bits & 63
        squares = (bits >> 6) & stars.squares_of_edges[U(edges)]
        allowed = stars.cubes_of_squares[U(squares)]
        star = stars.first[U(edges | squares << 6)] + stars.place[U(allowed), U((bits >> 18) & allowed)]
        gradient.star[U(voxel)] = star
        partner = stars.vertex_partner[U(star)]
        if partner == NOTHING:
            gradient.below[U(voxel)] = voxel
        else:
            gradient.below[U(voxel)] = voxel + step[U(partner)]
            gradient.dead_edges[U(voxel)] = 1 << partner
        if allowed == 0:
            continue
        for k in range(8):
            entry = stars.next_cube[U(star), U(k)]
            if entry == NOTHING:
                break
            cube = voxel + grid.corner[U(entry & 7)]
            if entry >= CRITICAL_CUBE:
                gradient.cube_behind[U(cube)], gradient.completed_by[U(cube)] = cube, voxel
            else:
                gradient.cube_behind[U(cube)] = cube + step[U(entry >> 3)]
