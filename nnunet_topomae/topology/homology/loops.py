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
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.cells import SQUARES
from nnunet_topomae.topology.homology.components import Components
from nnunet_topomae.topology.homology.gradient import Gradient, Grid
from nnunet_topomae.topology.homology.lower_stars import CRITICAL, lower_stars
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
# What is known of a column lies together in memory: place of its square in the filtration (16 * rank + square), voxel
# of the square, and where its entries lie in the pool. A length of 0: it was not made yet.
_TIME, _HOME, _START, _LENGTH = U(0), U(1), U(2), U(3)
FIRST_ROOM = 4096


class Reduction(NamedTuple):
    """The state of the reduction.

    Attributes:
        square_ends: the two directions of each square and the steps along them, four numbers per square.
        edges, edge_at, critical_edges: as of `LowerStars`.
        facts: of every voxel of the grid, packed as above.
        edge_number: of every voxel, number of its first critical edge that bounds a loop.
        columns: of every column, four numbers as above.
        births: of every such edge, its voxel.
        owner: of every such edge, the column whose last edge it is; -1 for none.
        pool: entries of all columns that own an edge.
        column, scratch: entries of the column at work, and of one more.
    """

    square_ends: Int[ndarray, "48"]
    edges: UInt[ndarray, " six_n"]
    edge_at: UInt[ndarray, "n 6"]
    critical_edges: Int[ndarray, " n"]
    facts: Int[ndarray, " m"]
    edge_number: Int[ndarray, " m"]
    columns: Int[ndarray, "n 4"]
    births: Int[ndarray, " n"]
    owner: Int[ndarray, " n"]
    pool: Int[ndarray, " p"]
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
    stars, size = lower_stars(), len(grid.rank)
    facts, columns = np.empty(size, np.int64), np.zeros((components.loops, 4), np.int64)
    dead, critical = (components.dead_edges, voids.dead_squares), (stars.critical_edges, stars.critical_squares)
    _list_columns(grid.rank, gradient.star, dead, critical, facts, gradient.below, columns)
    room = FIRST_ROOM
    while True:
        state = _new_reduction(grid, facts, gradient.below, columns, room)
        if _reduce_halves(state, both):
            return state.births, columns[state.owner, 1].astype(np.int32)
        room *= 4  # a column or all of them together did not fit


def _new_reduction(grid: Grid, facts: ndarray, edge_number: ndarray, columns: ndarray, room: int) -> Reduction:
    """Room for ``room`` entries in the column at work, and for a share of that in each of the others."""
    stars, squares, count = lower_stars(), np.array(SQUARES), len(columns)
    columns[:, 3] = 0
    return Reduction(
        np.concatenate([squares, grid.step[squares]], axis=1).reshape(-1),
        stars.edges,
        stars.edge_at,
        stars.critical_edges,
        facts,
        edge_number,
        columns,
        births=np.empty(count, np.int32),
        owner=np.full(count, -1, np.int32),
        pool=np.empty(room // 256 * count + 2 * room, np.int64),
        column=np.empty(room, np.int64),
        scratch=np.empty(room, np.int64),
    )


def _reduce_halves(state: Reduction, both: Both) -> bool:
    """Reduce the two halves of the columns, each for itself, then together; False if there is too little room.

    The halves are disjoint but for `births`, where both write the same. The pairs do not depend on the order in which
    columns are added.
    """
    todo, end = np.arange(len(state.columns)), len(state.pool)
    own = {"owner": state.owner.copy(), "column": np.empty_like(state.column), "scratch": np.empty_like(state.scratch)}
    other = state._replace(**own)
    first, second = np.array_split(todo, 2)
    used, used_by_other = both(
        partial(_reduce, state, first, 0, end // 2), partial(_reduce, other, second, end // 2, end)
    )
    if min(used, used_by_other) < 0:
        return False
    # Columns of the second half whose last edge has a column already go on.
    rivals = other.owner[(state.owner >= 0) & (other.owner >= 0)].astype(np.int64)
    np.copyto(state.owner, other.owner, where=state.owner < 0)
    return bool(_reduce(state, rivals, used_by_other, end) >= 0)


@kernel
def _list_columns(
    rank: ndarray,
    star: ndarray,
    dead: tuple[ndarray, ndarray],
    critical: tuple[ndarray, ndarray],
    facts: ndarray,
    edge_number: ndarray,
    columns: ndarray,
) -> None:
    """Pack the facts, and number the edges that bound a loop and the squares to reduce in the order of memory."""
    edge: Word = 0
    column = 0
    for v in range(len(rank)):
        voxel = U(v)
        number = U(star[voxel])
        edge_number[voxel] = edge
        facts[voxel] = rank[voxel] | np.int64(number) << _STAR_SHIFT | np.int64(dead[0][voxel]) << _DEAD_SHIFT
        edges = _loop_edges(critical[0], facts[voxel])
        while edges:
            edge += edges & 1
            edges >>= 1
        squares, square = critical[1][number] & ~np.int64(dead[1][voxel]), 0
        while squares:
            if squares & 1:
                columns[U(column), _HOME], columns[U(column), _TIME] = v, np.int64(rank[voxel]) * 16 + square
                column += 1
            squares >>= 1
            square += 1


@inner_kernel
def _loop_edges(critical_edges: ndarray, facts: Word) -> Word:
    """Critical edges of a voxel that killed no component, as bits."""
    critical: Word = critical_edges[U((facts >> _STAR_SHIFT) & _STARS)]
    return critical & ~(facts >> _DEAD_SHIFT)


@kernel
def _reduce(state: Reduction, todo: ndarray, used: Word, end: Word) -> Word:
    """Pair the squares of some columns with edges, in ``pool[used:end]``; returns where it is free, -1 if too small."""
    for j in todo:
        used = _settle(state, j, used, end)
        if used < 0:
            return used
    return used


@inner_kernel
def _settle(state: Reduction, j: Word, used: Word, end: Word) -> Word:
    """Reduce column j and every column it displaces, until each has an edge.

    Returns:
        The new end of the pool's used part, -1 if something does not fit.
    """
    columns, column, pool = state.columns, state.column, state.pool
    voxel, partner = columns[U(j), _HOME], columns[U(j), _TIME] & 15
    size = _load_column(columns, pool, column, j)
    if size > 0:
        partner = np.int64(CRITICAL)  # it was made before
    while True:
        if partner < _N_SQUARES:
            size = _add_boundary(state, size, voxel, partner)
        if size + 4 > len(column) or used + size > end:
            return -1
        last = column[U(size - 1)]
        voxel, partner = last & _VOXELS, (last >> _VOXEL_BITS) & _PARTNERS
        if partner < _N_SQUARES:
            continue
        edge = _edge_number(state, voxel, (last >> _PLACE_SHIFT) & 7)
        k = np.int64(state.owner[U(edge)])
        if k < 0 or columns[U(k), _TIME] > columns[U(j), _TIME]:
            for t in range(size):
                pool[U(used + t)] = column[U(t)]
            columns[U(j), _START], columns[U(j), _LENGTH], state.owner[U(edge)] = used, size, j
            state.births[U(edge)] = voxel
            used += size
            if k < 0:
                return used
            j, k = k, j
            size = _load_column(columns, pool, column, j)
        start, length = columns[U(k), _START], columns[U(k), _LENGTH]
        if size + length > len(column):
            return -1
        size = _add_column(column, state.scratch, pool, size, start, start + length)


@inner_kernel
def _load_column(columns: ndarray, pool: ndarray, column: ndarray, j: Word) -> Word:
    """Make column j the one at work; returns its size, 0 if it was not made yet."""
    start: Word = columns[U(j), _START]
    size: Word = columns[U(j), _LENGTH]
    for t in range(size):
        column[U(t)] = pool[U(start + t)]
    return size


@inner_kernel
def _edge_number(state: Reduction, voxel: Word, rank_in_star: Word) -> Word:
    """Number of a critical edge that bounds a loop."""
    facts = state.facts[U(voxel)]
    direction = state.edge_at[U((facts >> _STAR_SHIFT) & _STARS), U(rank_in_star)]
    before = _loop_edges(state.critical_edges, facts) & ((1 << direction) - 1)
    number = np.int64(state.edge_number[U(voxel)])
    while before:
        number += before & 1
        before >>= 1
    return number


@inner_kernel
def _add_boundary(state: Reduction, size: Word, voxel: Word, square: Word) -> Word:
    """Add the four edges of a voxel's square to the column; returns its new size."""
    ends, facts, edges = state.square_ends, state.facts, state.edges
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
def _add_column(column: ndarray, scratch: ndarray, pool: ndarray, size: Word, j: Word, end: Word) -> Word:
    """Add the column at ``pool[j:end]`` to the one at work modulo 2; returns the new size."""
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
