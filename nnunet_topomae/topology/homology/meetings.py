"""Where trees of the gradient meet: what dimension 0 and, seen backwards, dimension 2 have in common.

Every element (a voxel, or a cube) points along the gradient to the next one, to the root of its tree in the end (a
maximum, or a critical cube). A critical cell joins two elements. If they belong to different trees, the trees *meet*
there. Trees are looked up in the order of memory, which is kind to the cache. They are few, and get numbers, so the
union-find that joins them in the order of the filtration needs little memory.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from nnunet_topomae.topology.homology.gradient import Gradient, Grid
from nnunet_topomae.topology.homology.order import U, Word
from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel

CELL_BITS = 4


class Meetings(NamedTuple):
    """Critical cells that join different trees, in the order of memory.

    Attributes:
        cells: the cell's voxel and its number at the voxel, ``voxel << CELL_BITS | number`` (n,).
        one, other: numbers of the two trees (n,).
        roots: element at the root of every tree (t,).
        critical: number of all critical cells, with those that join a tree with itself.
    """

    cells: Int[ndarray, " n"]
    one: Int[ndarray, " n"]
    other: Int[ndarray, " n"]
    roots: Int[ndarray, " t"]
    critical: int


def find_meetings(
    grid: Grid,
    gradient: Gradient,
    critical: Int[ndarray, " stars"],
    parent: Int[ndarray, " m"],
    ends: Int[ndarray, " k"],
) -> Meetings:
    """All meetings. Uses up ``parent``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
        critical: the critical cells of every lower star, as bits.
        parent: of every element the next one along the gradient; a root points to itself.
        ends: from a voxel to the two elements that each of its cells joins, two numbers per cell.
    """
    voxels = np.empty(grid.shape[0] * grid.shape[1] * grid.shape[2], np.int32)
    voxels = voxels[: _collect(gradient.star, critical, voxels)]
    room = len(ends) // 2 * len(voxels)
    cells, (one, other), roots = np.empty(room, np.int64), np.empty((2, room), np.int32), np.empty(2 * room, np.int32)
    found = Meetings(cells, one, other, roots, 0)
    count, trees, seen = _meet(voxels, gradient.star, critical, parent, ends, found)
    return Meetings(cells[:count], one[:count], other[:count], roots[:trees], seen)


@kernel
def _collect(star: ndarray, critical: ndarray, voxels: ndarray) -> int:
    """Voxels with critical cells, in the order of memory; returns how many there are."""
    count = 0
    for voxel in range(len(star)):
        if critical[U(star[U(voxel)])]:
            voxels[U(count)] = voxel
            count += 1
    return count


@kernel
def _meet(
    voxels: ndarray, star: ndarray, critical: ndarray, parent: ndarray, ends: ndarray, found: Meetings
) -> tuple[int, int, int]:
    """Fill in the meetings; returns the numbers of meetings, of trees, and of critical cells."""
    count, trees, seen = 0, 0, 0
    for voxel in voxels:
        cells, cell = critical[U(star[U(voxel)])], 0
        while cells:
            if cells & 1:
                seen += 1
                one = _root(parent, np.int64(voxel) + ends[U(2 * cell)])
                other = _root(parent, np.int64(voxel) + ends[U(2 * cell + 1)])
                if one != other:
                    for root in (one, other):
                        if parent[U(root)] == root:  # new: from now on, the root points to the number of its tree
                            parent[U(root)] = ~trees
                            found.roots[U(trees)] = root
                            trees += 1
                    found.cells[U(count)] = np.int64(voxel) << CELL_BITS | cell
                    found.one[U(count)], found.other[U(count)] = ~parent[U(one)], ~parent[U(other)]
                    count += 1
            cells >>= 1
            cell += 1
    return count, trees, seen


@inner_kernel
def _root(parent: ndarray, i: Word) -> Word:
    """Root of the tree of element ``i``; shortens the way for the next time."""
    while True:
        above = np.int64(parent[U(i)])
        if above < 0 or above == i:
            return i
        further = np.int64(parent[U(above)])
        if further < 0:
            return above
        parent[U(i)] = further
        i = further


def merge(
    meetings: Meetings, time: Int[ndarray, " n"], age: Int[ndarray, " t"]
) -> tuple[Int[ndarray, " k"], Int[ndarray, " k"]]:
    """Merge the trees in the order of time; where two components meet, the one with the younger root ends.

    Args:
        meetings: from `find_meetings`.
        time: of each meeting; those at one time come in their order.
        age: of every tree's root; the younger one has the higher number.

    Returns:
        The trees whose components end, and the meetings at which they do.
    """
    sequence = np.sort(time.astype(np.int64) << 32 | np.arange(len(time))) & 0xFFFFFFFF
    ended, at = np.empty(len(age), np.int32), np.empty(len(age), np.int32)
    parent = np.arange(len(age), dtype=np.int32)
    count = _merge(sequence, meetings.one, meetings.other, parent, age, ended, at)
    return ended[:count], at[:count]


@kernel
def _merge(
    sequence: ndarray, ones: ndarray, others: ndarray, parent: ndarray, age: ndarray, ended: ndarray, at: ndarray
) -> int:
    count = 0
    for i in sequence:
        one, other = _component(parent, ones[U(i)]), _component(parent, others[U(i)])
        if one != other:
            if age[U(one)] > age[U(other)]:
                one, other = other, one
            parent[U(other)] = one
            ended[U(count)], at[U(count)] = other, i
            count += 1
    return count


@inner_kernel
def _component(parent: ndarray, i: int) -> int:
    """The tree that the component of tree ``i`` is named after."""
    while parent[U(i)] != i:
        parent[U(i)] = parent[U(parent[U(i)])]
        i = parent[U(i)]
    return i
