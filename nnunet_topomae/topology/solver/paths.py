"""State of Dijkstra's algorithm on the alternating paths of a matching, with its heap."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import inner_kernel
from nnunet_topomae.topology.solver.tree import Side


class Paths(NamedTuple):
    """State of Dijkstra's algorithm over n rows and m columns.

    Attributes:
        row_distance: length of the shortest path known to each row (n,), inf where there is none.
        settled: whether that length is final (n,).
        nearest: of every place of rows, the least distance of a settled row less its potential (places,).
        horizon: of every settled row, all edges of a lower reduced cost were followed (n,).
        key: length that a path through a row in the heap has at least (n,).
        column_distance: likewise for columns (m,).
        parent: the row before each column on its path (m,).
        rows: rows with a finite distance, in order of discovery (n,).
        columns: likewise (m,).
        heap: rows with edges that were not followed yet, as a binary heap by `key` (n,).
        place: where each of them stands in the heap (n,).
        found: numbers of entries in `rows`, `columns` and `heap` (3,).
        near: neighbours of one row (m,).
        near_costs: their costs (m,).
    """

    row_distance: Float[ndarray, " n"]
    settled: Bool[ndarray, " n"]
    nearest: Float[ndarray, " places"]
    horizon: Float[ndarray, " n"]
    key: Float[ndarray, " n"]
    column_distance: Float[ndarray, " m"]
    parent: Int[ndarray, " m"]
    rows: Int[ndarray, " n"]
    columns: Int[ndarray, " m"]
    heap: Int[ndarray, " n"]
    place: Int[ndarray, " n"]
    found: Int[ndarray, " 3"]
    near: Int[ndarray, " m"]
    near_costs: Float[ndarray, " m"]


def new_paths(row_side: Side, column_side: Side) -> Paths:
    """State before the first search.

    Args:
        row_side: the n rows.
        column_side: the m columns.
    """
    rows, columns = len(row_side.partner), len(column_side.partner)
    return Paths(
        np.full(rows, np.inf),
        np.zeros(rows, np.bool_),
        np.full(int(row_side.place.max()) + 1, np.inf),
        np.zeros(rows),
        np.zeros(rows),
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


@inner_kernel
def discover(paths: Paths, i: int, distance: float) -> None:
    """Set the distance of a row to a smaller value and move the row up the heap; a new row is added to the heap.

    Args:
        paths: state of the search.
        i: the row.
        distance: its new distance, smaller than the one known so far.
    """
    if paths.row_distance[i] == np.inf:
        paths.rows[paths.found[0]] = i
        paths.found[0] += 1
        push(paths, i, distance)
    else:
        _rise(paths, i, distance, paths.place[i])
    paths.row_distance[i] = distance


@inner_kernel
def push(paths: Paths, i: int, key: float) -> None:
    """Add a row to the heap.

    Args:
        paths: state of the search.
        i: the row.
        key: length that a path through its remaining edges has at least.
    """
    paths.found[2] += 1
    _rise(paths, i, key, paths.found[2] - 1)


@inner_kernel
def _rise(paths: Paths, i: int, key: float, hole: int) -> None:
    """Give a row a key and move it up the heap from the place ``hole``."""
    heap, place, keys = paths.heap, paths.place, paths.key
    keys[i] = key
    while hole > 0 and keys[heap[(hole - 1) // 2]] > key:
        heap[hole] = heap[(hole - 1) // 2]
        place[heap[hole]] = hole
        hole = (hole - 1) // 2
    heap[hole], place[i] = i, hole


@inner_kernel
def pop(paths: Paths) -> None:
    """Remove the nearest row from the heap."""
    heap, place, key = paths.heap, paths.place, paths.key
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


@inner_kernel
def forget(paths: Paths, rows: Side) -> None:
    """Reset the state for the next search."""
    for t in range(paths.found[0]):
        paths.row_distance[paths.rows[t]] = np.inf
        paths.settled[paths.rows[t]] = False
        paths.nearest[rows.place[paths.rows[t]]] = np.inf
    for t in range(paths.found[1]):
        paths.column_distance[paths.columns[t]] = np.inf
    paths.found[:] = 0
