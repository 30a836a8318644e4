"""Shortest augmenting paths: from feasible potentials to an optimal matching (Jonker and Volgenant 1987).

Rows are the points to be placed, columns those of the other side. Both sides keep potentials such that no pair costs
less than their sum and no potential exceeds the diagonal's cost; matched pairs cost exactly the sum. A row without a
place finds the cheapest alternating path to a free column or to some row's diagonal, by Dijkstra's algorithm on
reduced costs with the edges found by tree search.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nnunet_topomae.topology.auction import search, two_best
from nnunet_topomae.topology.kernels import kernel
from nnunet_topomae.topology.neighbours import ON_DIAGONAL, UNASSIGNED, all_within, lower_potential


class Paths(NamedTuple):
    """State of Dijkstra's algorithm over n rows and m columns.

    Attributes:
        row_distance: length of the shortest path known to each row (n,), inf where there is none.
        settled: whether that length is final (n,).
        column_distance: likewise for columns (m,).
        parent: the row before each column on its path (m,).
        rows: rows with a finite distance, in order of discovery (n,).
        columns: likewise (m,).
        heap: rows that are discovered but not settled, as a binary heap by distance (n,).
        place: where each of them stands in the heap (n,).
        found: numbers of entries in `rows`, `columns` and `heap` (3,).
        near: neighbours of one row (m,).
        near_costs: their costs (m,).
    """

    row_distance: Float[ndarray, " n"]
    settled: Bool[ndarray, " n"]
    column_distance: Float[ndarray, " m"]
    parent: Int[ndarray, " m"]
    rows: Int[ndarray, " n"]
    columns: Int[ndarray, " m"]
    heap: Int[ndarray, " n"]
    place: Int[ndarray, " n"]
    found: Int[ndarray, " 3"]
    near: Int[ndarray, " m"]
    near_costs: Float[ndarray, " m"]


def new_paths(rows: int, columns: int) -> Paths:
    """State before the first search."""
    return Paths(
        np.full(rows, np.inf),
        np.zeros(rows, np.bool_),
        np.full(columns, np.inf),
        np.zeros(columns, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(columns, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(3, np.int64),
        np.zeros(columns, np.int32),
        np.zeros(columns),
    )


@kernel
def tighten(rows, columns, lists, best_column, reach, scratch):
    """Set every row's potential to its largest feasible value, min(diagonal, least reduced cost).

    Args:
        rows: side whose potentials are set.
        columns: the other side, with its tree up to date.
        lists: the rows' lists, valid for the present potentials.
        best_column: (n,) receives the column of least reduced cost, or ON_DIAGONAL.
        reach: how far beyond the best column a renewed list looks.
        scratch: memory of the searches.
    """
    for i in range(rows.partner.shape[0]):
        best, _, place = two_best(lists, i, columns.potential)
        if min(best, rows.diagonal[i]) > lists.horizon[i]:
            search(rows, columns, lists, i, min(rows.diagonal[i], best + reach), scratch)
            best, _, place = two_best(lists, i, columns.potential)
        if place >= 0 and best < rows.diagonal[i]:
            rows.potential[i] = best
            best_column[i] = lists.columns[i, place]
        else:
            rows.potential[i] = rows.diagonal[i]
            best_column[i] = ON_DIAGONAL


@kernel
def augment(rows, columns, lists, waiting, paths, scratch, budget):
    """Place every row in ``waiting``, keeping all potentials feasible and all matched pairs tight.

    Args:
        rows: side with the rows to place; their potentials are feasible.
        columns: the other side, with its tree up to date; its potentials fall.
        lists: the rows' lists, valid for the present potentials.
        waiting: (k,) rows to place; those that are not UNASSIGNED are passed over.
        paths: memory of the path search.
        scratch: memory of the tree search.
        budget: number of leaf visits after which the remaining rows go to the diagonal.

    Returns:
        Number of rows that were sent to the diagonal because the budget was used up.
    """
    dropped = 0
    for t in range(waiting.shape[0]):
        i = waiting[t]
        if rows.partner[i] != UNASSIGNED:
            continue
        length, last_row, last_column = _shortest_path(rows, columns, lists, i, paths, scratch, budget)
        if length < np.inf:
            _update_potentials(rows, columns, paths, length)
            _flip_path(rows, columns, paths.parent, i, last_row, last_column)
        else:
            rows.partner[i] = ON_DIAGONAL
            dropped += 1
        _forget(paths)
    return dropped


@kernel
def _shortest_path(rows, columns, lists, start, paths, scratch, budget):
    """Length of the cheapest path from row ``start``, and where it ends: at a row's diagonal or at a free column.

    Returns:
        Length (inf if the budget ran out), the last row or -1, the last column or -1.
    """
    _discover(paths, start, 0.0)
    length, last_row, last_column = np.inf, -1, -1
    while paths.found[2] > 0:
        i = paths.heap[0]
        distance = paths.row_distance[i]
        if distance >= length:
            break
        if scratch.leaves[0] > budget:
            return np.inf, -1, -1
        _pop(paths)
        scratch.leaves[0] += 1
        paths.settled[i] = True
        to_diagonal = distance + rows.diagonal[i] - rows.potential[i]
        if to_diagonal < length:
            length, last_row, last_column = to_diagonal, i, -1
        reached, column = _relax(rows, columns, lists, i, distance, length, paths, scratch)
        if column >= 0:
            length, last_row, last_column = reached, -1, column
    return length, last_row, last_column


@kernel
def _discover(paths, i, distance):
    """Set the distance of row ``i`` to a smaller value and move it up the heap, into which it goes first if new."""
    heap, place, key = paths.heap, paths.place, paths.row_distance
    if key[i] == np.inf:
        paths.rows[paths.found[0]] = i
        paths.found[0] += 1
        place[i] = paths.found[2]
        paths.found[2] += 1
    key[i] = distance
    hole = place[i]
    while hole > 0 and key[heap[(hole - 1) // 2]] > distance:
        heap[hole] = heap[(hole - 1) // 2]
        place[heap[hole]] = hole
        hole = (hole - 1) // 2
    heap[hole], place[i] = i, hole


@kernel
def _pop(paths):
    """Remove the nearest row from the heap."""
    heap, place, key = paths.heap, paths.place, paths.row_distance
    paths.found[2] -= 1
    size = paths.found[2]
    i = heap[size]
    hole = 0
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        if child + 1 < size and key[heap[child + 1]] < key[heap[child]]:
            child += 1
        if key[heap[child]] >= key[i]:
            break
        heap[hole] = heap[child]
        place[heap[hole]] = hole
        hole = child
    heap[hole], place[i] = i, hole


@kernel
def _relax(rows, columns, lists, i, distance, length, paths, scratch):
    """Follow the edges of row ``i`` that may lie on a path shorter than ``length``.

    Returns:
        Length of the shortest path found to a free column, and that column (-1: none).
    """
    limit = length - distance + rows.potential[i]
    complete = lists.horizon[i] >= min(limit, rows.diagonal[i])
    if not complete:
        search(rows, columns, lists, i, rows.diagonal[i], scratch)
        complete = lists.horizon[i] >= min(limit, rows.diagonal[i])
    if complete:
        near, near_costs, count = lists.columns[i], lists.costs[i], lists.count[i]
    else:
        near, near_costs = paths.near, paths.near_costs
        count = all_within(columns, rows.midpoint[i], rows.half[i], limit, near, near_costs, scratch)
    free = -1
    for t in range(count):
        j = near[t]
        reached = max(distance + near_costs[t] - columns.potential[j] - rows.potential[i], distance)
        if reached >= min(length, paths.column_distance[j]):
            continue
        if paths.column_distance[j] == np.inf:
            paths.columns[paths.found[1]] = j
            paths.found[1] += 1
        paths.column_distance[j] = reached
        paths.parent[j] = i
        holder = columns.partner[j]
        if holder < 0:
            length, free = reached, j
        else:
            _discover(paths, holder, reached)
    return length, free


@kernel
def _update_potentials(rows, columns, paths, length):
    """Raise the potentials of settled rows and lower those of their columns such that the path becomes tight."""
    for t in range(paths.found[0]):
        i = paths.rows[t]
        if paths.settled[i] and paths.row_distance[i] < length:
            change = length - paths.row_distance[i]
            rows.potential[i] += change
            if rows.partner[i] >= 0:
                j = rows.partner[i]
                lower_potential(columns, j, columns.potential[j] - change)


@kernel
def _flip_path(rows, columns, parent, start, last_row, last_column):
    """Match along the path: every row on it takes its next column, the last one a free column or the diagonal."""
    column = last_column
    if last_row >= 0:
        column = rows.partner[last_row]
        rows.partner[last_row] = ON_DIAGONAL
        if last_row == start:
            return
    while True:
        i = parent[column]
        following = rows.partner[i]
        rows.partner[i], columns.partner[column] = column, i
        if i == start:
            return
        column = following


@kernel
def _forget(paths):
    """Reset the state for the next search."""
    for t in range(paths.found[0]):
        paths.row_distance[paths.rows[t]] = np.inf
        paths.settled[paths.rows[t]] = False
    for t in range(paths.found[1]):
        paths.column_distance[paths.columns[t]] = np.inf
    paths.found[:] = 0
