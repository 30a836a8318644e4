"""The discrete gradient of a volume: the lower star of every voxel, and where the gradient leads from it."""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from nnunet_topomae.topology.homology.cells import CUBES, DIRECTIONS, SQUARES
from nnunet_topomae.topology.homology.lower_stars import CRITICAL_CUBE, NOTHING, LowerStars, lower_stars
from nnunet_topomae.topology.homology.order import U
from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel
from nnunet_topomae.topology.workers import Both, in_turn

# Rank of the voxels around the volume: they never come.
OUTSIDE = np.int32(2**31 - 1)


class Grid(NamedTuple):
    """A volume with a margin of one voxel on all sides, flattened in C order.

    Attributes:
        shape: (D, H, W) without the margin.
        order: voxels, the first to come first, (n,).
        rank: place of every voxel in the order; `OUTSIDE` in the margin.
        step: from a voxel to its neighbour in each of the six directions.
        near: from a voxel to the 26 neighbours: across edges, squares and cubes, numbered as in `cells`.
        corner: from a voxel to the first corner of each of its eight cubes.
        square_ends: the two directions of each square and the steps along them, four numbers per square.
    """

    shape: tuple[int, int, int]
    order: Int[ndarray, " n"]
    rank: Int[ndarray, " m"]
    step: Int[ndarray, "6"]
    near: Int[ndarray, "26"]
    corner: Int[ndarray, "8"]
    square_ends: Int[ndarray, "48"]


class Gradient(NamedTuple):
    """The discrete gradient; all arrays are over the voxels of a `Grid`.

    Attributes:
        star: number of the voxel's lower star.
        dead_edges: the edge that the voxel is paired with, as a bit.
        below: the voxel at the other end of the edge that the voxel is paired with; itself at a maximum of the volume.
        cube_behind: a cube has the name of its first corner. The cube behind the square that it is paired with: itself
            if it is critical, 0 for the outside.
        completed_by: of a critical cube, the voxel that completes it.
    """

    star: ndarray
    dead_edges: ndarray
    below: ndarray
    cube_behind: ndarray
    completed_by: ndarray


def make_grid(shape: tuple[int, int, int], order: Int[ndarray, " n"]) -> Grid:
    """Put a margin around a volume.

    Args:
        shape: (D, H, W).
        order: from :func:`~nnunet_topomae.topology.homology.order.falling_order`.
    """
    depth, height, width = (size + 2 for size in shape)
    strides = np.array([height * width, width, 1])
    step = np.array(DIRECTIONS) @ strides
    inside = np.arange(depth * height * width, dtype=np.int32).reshape(depth, height, width)[1:-1, 1:-1, 1:-1]
    padded_order = inside.reshape(-1)[order]
    rank = np.full(depth * height * width, OUTSIDE, np.int32)
    rank[padded_order] = np.arange(len(order), dtype=np.int32)
    squares, cubes = np.array(SQUARES), np.array(CUBES)
    near = np.concatenate([step, step[squares].sum(axis=1), step[cubes].sum(axis=1)])
    corner = np.minimum(step[cubes], 0).sum(axis=1)
    ends = np.concatenate([squares, step[squares]], axis=1).reshape(-1)
    return Grid(shape, padded_order, rank, step, near, corner, ends)


def make_gradient(grid: Grid, both: Both = in_turn) -> Gradient:
    """Look up the lower star of every voxel.

    Args:
        grid: the volume with its margin.
        both: runs two functions, here for the two halves of the volume.
    """
    size = len(grid.rank)
    gradient = Gradient(
        np.zeros(size, np.uint16), np.zeros(size, np.uint8), *(np.empty(size, np.int32) for _ in range(3))
    )
    gradient.cube_behind[0] = gradient.completed_by[0] = 0
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
    step, rank = grid.step, grid.rank
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
                direction = step[U(entry >> 3)]
                gradient.cube_behind[U(cube)] = 0 if rank[U(voxel + direction)] == OUTSIDE else cube + direction


def ranks_of(grid: Grid, gradient: Gradient, critical: Int[ndarray, " n"]) -> Int[ndarray, " k"]:
    """Ranks of the voxels with critical cells, in increasing order; far fewer than all voxels.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
        critical: the critical cells of every lower star, as bits.
    """
    ranks = np.empty(len(grid.order), np.int32)
    count = _collect(grid.rank, gradient.star, critical != 0, ranks)
    return np.sort(ranks[:count])


@kernel
def _collect(rank: ndarray, star: ndarray, wanted: ndarray, ranks: ndarray) -> int:
    """Ranks of the voxels whose lower star is wanted, in the order of memory; returns how many there are."""
    count = 0
    for voxel in range(len(rank)):
        if wanted[U(star[U(voxel)])]:
            ranks[U(count)] = rank[U(voxel)]
            count += 1
    return count


@inner_kernel
def find(parent: ndarray, i: int) -> int:
    """Root of ``i`` in a forest of pointers, which gets shorter paths on the way.

    Args:
        parent: of every element the next one towards its root; a root points to itself.
        i: the element.
    """
    while parent[U(i)] != i:
        parent[U(i)] = parent[U(parent[U(i)])]
        i = parent[U(i)]
    return i
