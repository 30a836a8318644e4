"""Shortest augmenting paths: from feasible potentials to an optimal matching (Jonker and Volgenant 1987).

Rows are the points to be placed, columns those of the other side. Both sides keep potentials such that no pair costs
less than their sum and no potential exceeds the diagonal's cost; matched pairs cost exactly the sum. A row without a
place finds the cheapest alternating path to a free column or to some row's diagonal, by Dijkstra's algorithm on
reduced costs with the edges found by tree search. Edges are looked for no farther than the search has come. Rows at the
same place have the same edges, so the first one that is reached follows them for all.
"""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from nnunet_topomae.topology.solver.auction import Lists, search, two_best
from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel
from nnunet_topomae.topology.solver.neighbours import Scratch, all_within
from nnunet_topomae.topology.solver.paths import Paths, discover, forget, pop, push
from nnunet_topomae.topology.solver.tree import ON_DIAGONAL, UNASSIGNED, Side, lower_potential

# A row whose known edges do not suffice is searched for edges in a circle that grows by this factor, and from this
# share of the largest useful one on.
_WIDER = 4.0
_FIRST_WIDTH = 1.0 / 64.0


@kernel
def tighten(
    rows: Side, columns: Side, lists: Lists, best_column: Int[ndarray, " n"], reach: float, scratch: Scratch
) -> None:
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
        place = rows.place[i]
        best, _, position = two_best(lists, place, columns.potential)
        if min(best, rows.diagonal[i]) > lists.horizon[place]:
            search(rows, columns, lists, i, min(rows.diagonal[i], best + reach), scratch)
            best, _, position = two_best(lists, place, columns.potential)
        if position >= 0 and best < rows.diagonal[i]:
            rows.potential[i] = best
            best_column[i] = lists.columns[place, position]
        else:
            rows.potential[i] = rows.diagonal[i]
            best_column[i] = ON_DIAGONAL


@kernel
def augment(
    rows: Side, columns: Side, lists: Lists, waiting: Int[ndarray, " k"], paths: Paths, scratch: Scratch, budget: int
) -> int:
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
        forget(paths, rows)
    return dropped


@inner_kernel
def _shortest_path(
    rows: Side, columns: Side, lists: Lists, start: int, paths: Paths, scratch: Scratch, budget: int
) -> tuple[float, int, int]:
    """Length of the cheapest path from row ``start``, and where it ends: at a row's diagonal or at a free column.

    Returns:
        Length (inf if the budget ran out), the last row or -1, the last column or -1.
    """
    discover(paths, start, 0.0)
    length, last_row, last_column = np.inf, -1, -1
    while paths.found[2] > 0:
        i = paths.heap[0]
        if paths.key[i] >= length:
            break
        if scratch.leaves[0] > budget:
            return np.inf, -1, -1
        pop(paths)
        scratch.leaves[0] += 1
        to_diagonal = paths.row_distance[i] + rows.diagonal[i] - rows.potential[i]
        if to_diagonal < length:
            length, last_row, last_column = to_diagonal, i, -1
        reached, column = _relax(rows, columns, lists, i, length, paths, scratch)
        if column >= 0:
            length, last_row, last_column = reached, -1, column
    return length, last_row, last_column


@inner_kernel
def _relax(
    rows: Side, columns: Side, lists: Lists, i: int, length: float, paths: Paths, scratch: Scratch
) -> tuple[float, int]:
    """Follow the next edges of row ``i`` that may lie on a path shorter than ``length``.

    The edges in the row's list come first. Only if the row becomes the nearest again is the list renewed, and then a
    wider circle of edges searched.

    Returns:
        Length of the shortest path found to a free column, and that column (-1: none).
    """
    distance = paths.row_distance[i]
    limit = min(length - distance + rows.potential[i], rows.diagonal[i])
    place = rows.place[i]
    near, near_costs, count = lists.columns[place], lists.costs[place], lists.known[place]
    if paths.settled[i]:
        if lists.horizon[place] <= paths.horizon[i]:
            search(rows, columns, lists, i, rows.diagonal[i], scratch)
            count = lists.known[place]
        if lists.horizon[place] <= paths.horizon[i]:
            reach, widest = paths.horizon[i] - rows.potential[i], limit - rows.potential[i]
            wider = rows.potential[i] + max(_WIDER * reach, _FIRST_WIDTH * widest)
            limit = min(limit, wider) if wider > paths.horizon[i] else limit
            near, near_costs = paths.near, paths.near_costs
            count = all_within(columns, rows.midpoint[i], rows.half[i], limit, near, near_costs, scratch)
            paths.horizon[i] = limit
        else:
            paths.horizon[i] = lists.horizon[place]
    else:
        paths.settled[i] = True
        if paths.nearest[place] <= distance - rows.potential[i]:
            return np.inf, -1  # a copy of this row leads to the same columns, and they are no farther from it
        paths.nearest[place] = distance - rows.potential[i]
        paths.horizon[i] = lists.horizon[place]
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
            discover(paths, holder, reached)
    if paths.horizon[i] < min(length - distance + rows.potential[i], rows.diagonal[i]):
        push(paths, i, max(distance + paths.horizon[i] - rows.potential[i], distance))
    return length, free


@inner_kernel
def _update_potentials(rows: Side, columns: Side, paths: Paths, length: float) -> None:
    """Raise the potentials of settled rows and lower those of their columns such that the path becomes tight."""
    for t in range(paths.found[0]):
        i = paths.rows[t]
        if paths.settled[i] and paths.row_distance[i] < length:
            change = length - paths.row_distance[i]
            rows.potential[i] += change
            if rows.partner[i] >= 0:
                j = rows.partner[i]
                lower_potential(columns, j, columns.potential[j] - change)


@inner_kernel
def _flip_path(
    rows: Side, columns: Side, parent: Int[ndarray, " m"], start: int, last_row: int, last_column: int
) -> None:
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
