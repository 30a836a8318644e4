"""Dimension 1: loops are closed by critical edges and die when a critical square fills them.

The boundary of a critical square is a sum of edges modulo 2, kept as a short list in the order of the filtration, the
*column* of the square. The last edge of a column decides what happens next. If it is paired with a square, the boundary
of that square is added, which is a step along the gradient. If it is critical and the last edge of another column, that
column is added. Otherwise edge and square are a pair. Columns are made in the order of memory, which is kind to the
cache; a column that meets the last edge of a later one takes that edge over, and the reduction goes on with the later
column (Morozov and Nigmetov 2020).
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from nnunet_topomae.topology.homology.components import Components
from nnunet_topomae.topology.homology.gradient import Gradient, Grid
from nnunet_topomae.topology.homology.lower_stars import LowerStars, lower_stars
from nnunet_topomae.topology.homology.order import U, Word
from nnunet_topomae.topology.homology.voids import Voids
from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel
from nnunet_topomae.topology.workers import Both, in_turn

# An entry of a column in one word: place in the filtration (8 * rank + rank within the lower star), partner, voxel.
_VOXEL_BITS, _PARTNER_BITS = 28, 4
_VOXELS, _PARTNERS = (1 << _VOXEL_BITS) - 1, (1 << _PARTNER_BITS) - 1
_PLACE_SHIFT = _VOXEL_BITS + _PARTNER_BITS
# What a step needs to know of a voxel, in one word: rank, lower star, dead edges.
_RANKS, _STAR_SHIFT, _STARS, _DEAD_SHIFT = 0x7FFFFFFF, 32, 0xFFFF, 48
_N_SQUARES = 12
MAX_VOXELS = 1 << _VOXEL_BITS
FIRST_ROOM = 4096


class Reduction(NamedTuple):
    """The state of the reduction.

    Attributes:
        facts: of every voxel of the grid, packed as above.
        edge_number: of every voxel, number of its first critical edge that bounds a loop.
        time: of every column, the place of its square in the filtration.
        home: of every column, the voxel of its square.
        start, length: of every column, where its entries lie in `pool`.
        births: of every such edge, its voxel.
        pool: entries of all columns that own an edge.
        owner: of every such edge, the column whose last edge it is; -1 for none.
        column, scratch: entries of the column at work, and of one more.
    """

    facts: Int[ndarray, " m"]
    edge_number: Int[ndarray, " m"]
    time: Int[ndarray, " n"]
    home: Int[ndarray, " n"]
    start: Int[ndarray, " n"]
    length: Int[ndarray, " n"]
    births: Int[ndarray, " n"]
    pool: Int[ndarray, " p"]
    owner: Int[ndarray, " n"]
    column: Int[ndarray, " r"]
    scratch: Int[ndarray, " r"]


def pair_loops(
    grid: Grid, gradient: Gradient, components: Components, voids: Voids, both: Both = in_turn
) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
    """Voxels of the grid at which loops are closed and filled. Uses up ``gradient.below``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
        components: their dead edges bound no loop.
        voids: the critical squares that close off no void fill the loops.
        both: runs two functions, here for the two halves of the columns.

    Returns:
        Births and deaths, one of each per loop.
    """
    stars = lower_stars()
    facts = grid.rank | gradient.star.astype(np.int64) << _STAR_SHIFT
    facts |= components.dead_edges.astype(np.int64) << _DEAD_SHIFT
    edge_number = gradient.below
    count = int(_number_edges(stars, facts, edge_number))
    time, home = np.empty(count, np.int64), np.empty(count, np.int32)
    _list_columns(facts, voids.squares_left, time, home)
    room = FIRST_ROOM
    while True:
        state = _new_reduction(facts, edge_number, time, home, room)
        if _reduce_halves(grid, stars, state, both):
            return state.births, home[state.owner]
        room *= 4  # a column or all of them together did not fit


def _new_reduction(facts: ndarray, edge_number: ndarray, time: ndarray, home: ndarray, room: int) -> Reduction:
    """Room for ``room`` entries in the column at work, and for a share of that in each of the others."""
    count = len(home)
    return Reduction(
        facts,
        edge_number,
        time,
        home,
        start=np.empty(count, np.int64),
        length=np.empty(count, np.int64),
        births=np.empty(count, np.int32),
        pool=np.empty(room // 256 * count + 2 * room, np.int64),
        owner=np.full(count, -1, np.int32),
        column=np.empty(room, np.int64),
        scratch=np.empty(room, np.int64),
    )


def _reduce_halves(grid: Grid, stars: LowerStars, state: Reduction, both: Both) -> bool:
    """Reduce the two halves of the columns, each for itself, then together; False if there is too little room.

    The halves are disjoint but for `births`, where both write the same. The pairs do not depend on the order in which
    columns are added.
    """
    count, end = len(state.home), len(state.pool)
    own = {"owner": state.owner.copy(), "column": np.empty_like(state.column), "scratch": np.empty_like(state.scratch)}
    other = state._replace(**own)
    used, used_by_other = both(
        partial(_reduce, grid, stars, state, 0, count // 2, 0, end // 2),
        partial(_reduce, grid, stars, other, count // 2, count, end // 2, end),
    )
    return min(used, used_by_other) >= 0 and bool(_join(grid, stars, state, other.owner, used_by_other) >= 0)


@kernel
def _number_edges(stars: LowerStars, facts: ndarray, number: ndarray) -> Word:
    """Number the critical edges that bound a loop in the order of memory; returns how many there are."""
    count: Word = 0
    for voxel in range(len(facts)):
        number[voxel] = count
        edges = _loop_edges(stars, facts[voxel])
        while edges:
            count += edges & 1
            edges >>= 1
    return count


@inner_kernel
def _loop_edges(stars: LowerStars, facts: Word) -> Word:
    """Critical edges of a voxel that killed no component, as bits."""
    critical: Word = stars.critical_edges[U((facts >> _STAR_SHIFT) & _STARS)]
    return critical & ~(facts >> _DEAD_SHIFT)


@kernel
def _list_columns(facts: ndarray, squares_left: ndarray, time: ndarray, home: ndarray) -> None:
    """Number the squares to reduce in the order of memory."""
    count = 0
    for voxel in range(len(squares_left)):
        squares, square = np.int64(squares_left[U(voxel)]), 0
        while squares:
            if squares & 1:
                home[count], time[count] = voxel, (facts[U(voxel)] & _RANKS) * 16 + square
                count += 1
            squares >>= 1
            square += 1


@kernel
def _reduce(grid: Grid, stars: LowerStars, state: Reduction, first: Word, last: Word, used: Word, end: Word) -> Word:
    """Pair the squares of some columns with edges, in ``pool[used:end]``; returns where it is free, -1 if too small."""
    for j in range(first, last):
        size = _add_boundary(grid, stars, state, np.int64(0), np.int64(state.home[j]), state.time[j] & 15)
        used = _settle(grid, stars, state, j, size, used, end)
        if used < 0:
            return used
    return used


@kernel
def _join(grid: Grid, stars: LowerStars, state: Reduction, owner: ndarray, used: Word) -> Word:
    """Add columns that were reduced on their own; returns the new end of the pool, -1 if it is too small."""
    for edge in range(len(owner)):
        j = np.int64(owner[edge])
        if j >= 0 and state.owner[edge] < 0:
            state.owner[edge] = j
        elif j >= 0:
            used = _settle(grid, stars, state, j, _load_column(state, j), used, len(state.pool))
            if used < 0:
                return used
    return used


@inner_kernel
def _load_column(state: Reduction, j: Word) -> Word:
    """Make column j the one at work; returns its size."""
    size: Word = state.length[U(j)]
    for t in range(size):
        state.column[U(t)] = state.pool[U(state.start[U(j)] + t)]
    return size


@inner_kernel
def _settle(grid: Grid, stars: LowerStars, state: Reduction, j: Word, size: Word, used: Word, end: Word) -> Word:
    """Reduce column j, the one at work, and every column it displaces, until each has an edge.

    Returns:
        The new end of the pool's used part, -1 if something does not fit.
    """
    column, pool = state.column, state.pool
    while True:
        if size + 4 > len(column) or used + size > end:
            return -1
        last = column[U(size - 1)]
        voxel, partner = last & _VOXELS, (last >> _VOXEL_BITS) & _PARTNERS
        if partner < _N_SQUARES:
            size = _add_boundary(grid, stars, state, size, voxel, partner)
            continue
        edge = _edge_number(stars, state, voxel, (last >> _PLACE_SHIFT) & 7)
        k = np.int64(state.owner[U(edge)])
        if k < 0 or state.time[U(k)] > state.time[U(j)]:
            for t in range(size):
                pool[U(used + t)] = column[U(t)]
            state.start[U(j)], state.length[U(j)], state.owner[U(edge)] = used, size, j
            state.births[U(edge)] = voxel
            used += size
            if k < 0:
                return used
            j, k = k, j
            size = _load_column(state, j)
        if size + state.length[U(k)] > len(column):
            return -1
        size = _add_column(state, size, state.start[U(k)], state.start[U(k)] + state.length[U(k)])


@inner_kernel
def _edge_number(stars: LowerStars, state: Reduction, voxel: Word, rank_in_star: Word) -> Word:
    """Number of a critical edge that bounds a loop."""
    facts = state.facts[U(voxel)]
    direction = stars.edge_at[U((facts >> _STAR_SHIFT) & _STARS), U(rank_in_star)]
    before = _loop_edges(stars, facts) & ((1 << direction) - 1)
    number = np.int64(state.edge_number[U(voxel)])
    while before:
        number += before & 1
        before >>= 1
    return number


@inner_kernel
def _add_boundary(grid: Grid, stars: LowerStars, state: Reduction, size: Word, voxel: Word, square: Word) -> Word:
    """Add the four edges of a voxel's square to the column; returns its new size."""
    ends, facts, edges = grid.square_ends, state.facts, stars.edges
    a, b = ends[U(square * 4)], ends[U(square * 4 + 1)]
    at_a, at_b = voxel + ends[U(square * 4 + 2)], voxel + ends[U(square * 4 + 3)]
    across = at_a + at_b - voxel
    here, facts_a, facts_b, facts_across = facts[U(voxel)], facts[U(at_a)], facts[U(at_b)], facts[U(across)]
    rank = facts_across & _RANKS
    # An edge belongs to the later of its two ends.
    far_a = _entry(edges, facts_across, across, b ^ 1) if rank > facts_a & _RANKS else _entry(edges, facts_a, at_a, b)
    far_b = _entry(edges, facts_across, across, a ^ 1) if rank > facts_b & _RANKS else _entry(edges, facts_b, at_b, a)
    size = _add_entry(state.column, size, _entry(edges, here, voxel, a))
    size = _add_entry(state.column, size, _entry(edges, here, voxel, b))
    return _add_entry(state.column, _add_entry(state.column, size, far_a), far_b)


@inner_kernel
def _entry(edges: ndarray, facts: Word, voxel: Word, direction: Word) -> Word:
    """The word of an edge; -1 if it is paired with a vertex, since no loop dies with it."""
    if (facts >> (_DEAD_SHIFT + direction)) & 1:
        return np.int64(-1)
    edge = np.int64(edges[U(((facts >> _STAR_SHIFT) & _STARS) * 6 + direction)])
    place = (facts & _RANKS) * 8 + (edge & 7)
    return place << _PLACE_SHIFT | (edge >> 3) << _VOXEL_BITS | voxel


@inner_kernel
def _add_entry(column: ndarray, size: Word, entry: Word) -> Word:
    """Add an entry to a sorted column modulo 2, nothing if it is -1; returns the new size."""
    if entry < 0:
        return size
    i = size
    while i > 0 and column[U(i - 1)] > entry:
        i -= 1
    if i > 0 and column[U(i - 1)] == entry:
        for t in range(i, size):
            column[U(t - 1)] = column[U(t)]
        return size - 1
    for t in range(size, i, -1):
        column[U(t)] = column[U(t - 1)]
    column[U(i)] = entry
    return size + 1


@inner_kernel
def _add_column(state: Reduction, size: Word, j: Word, end: Word) -> Word:
    """Add the column at ``pool[j:end]`` to the one at work modulo 2; returns the new size."""
    column, scratch, pool = state.column, state.scratch, state.pool
    for t in range(size):
        scratch[U(t)] = column[U(t)]
    i = k = 0
    while i < size or j < end:
        if j == end or (i < size and scratch[U(i)] < pool[U(j)]):
            column[U(k)] = scratch[U(i)]
            i += 1
            k += 1
        elif i == size or pool[U(j)] < scratch[U(i)]:
            column[U(k)] = pool[U(j)]
            j += 1
            k += 1
        else:
            i += 1
            j += 1
    return k
