"""Exact matching with compiled kernels: an auction in ever smaller steps, then shortest augmenting paths.

The auction (auction.py) brings the potentials close to the optimum; the potentials are then made exactly feasible,
pairs that are exactly tight are kept, and the few points left are placed by augmenting paths (augmentation.py). No
list of candidate pairs is ever made: memory grows with the number of points only.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.auction import Lists, auction, new_lists
from nnunet_topomae.topology.augmentation import augment, new_paths, tighten
from nnunet_topomae.topology.neighbours import (
    ON_DIAGONAL,
    UNASSIGNED,
    Scratch,
    Side,
    build_side,
    new_scratch,
    refresh,
)
from nnunet_topomae.topology.network_simplex import Solution

# Steps of the auction, relative to the mean cost of the smaller side's diagonal.
EPSILONS = (1.0, 0.1, 0.01, 0.001)
NEIGHBOURS = 8


def match(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], budget: int) -> Solution:
    """Optimal matching of two non-empty sets of points with positive persistence.

    Args:
        first: columns midpoint m and half persistence s > 0.
        second: likewise.
        budget: work in visits of tree leaves (about 0.1 microseconds each). When it is used up, the matching is
            valid but maybe not optimal; the potentials are feasible in any case.
    """
    if len(first) > len(second):
        partners, second_potentials, first_potentials = _match_smaller(second, first, budget)
        inverse = np.full(len(first), ON_DIAGONAL, dtype=np.int64)
        matched = np.flatnonzero(partners >= 0)
        inverse[partners[matched]] = matched
        return Solution(inverse, first_potentials, second_potentials)
    return _match_smaller(first, second, budget)


def _match_smaller(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], budget: int) -> Solution:
    """Match with n <= m; the first points are the rows."""
    n, m = len(first), len(second)
    rows, row_order = build_side(first)
    columns, column_order = build_side(second)
    scratch = new_scratch(NEIGHBOURS)
    lists = new_lists(n, NEIGHBOURS)
    epsilon = 0.0
    for relative in EPSILONS:
        epsilon = relative * float(rows.diagonal.mean())
        _auction_both(rows, columns, lists, epsilon, scratch, budget)
    _finish(rows, columns, lists, epsilon, scratch, budget)
    partners = np.full(n, ON_DIAGONAL, dtype=np.int64)
    matched = rows.partner >= 0
    partners[row_order[matched]] = column_order[rows.partner[matched]]
    potentials = np.empty(n), np.empty(m)
    potentials[0][row_order], potentials[1][column_order] = rows.potential[:n], columns.potential[:m]
    return Solution(partners, potentials[0], potentials[1])


def _by_persistence(side: Side, members: Int[ndarray, " k"]) -> Int[ndarray, " k"]:
    """``members`` in the order of falling persistence; placing large points first saves most of the rivalry."""
    return members[np.argsort(-side.half[members], kind="stable")]


def _clear(lists: Lists) -> None:
    """Forget the lists, because potentials rose."""
    lists.count[:] = 0
    lists.horizon[:] = -np.inf


def _auction_both(rows: Side, columns: Side, lists: Lists, epsilon: float, scratch: Scratch, budget: int) -> None:
    """All rows bid; then the columns that lost value without finding a row bid for rows (reverse auction)."""
    n, m = len(rows.partner), len(columns.partner)
    rows.partner[:] = UNASSIGNED
    columns.partner[:] = ON_DIAGONAL
    _clear(lists)
    refresh(columns)
    queue = np.append(_by_persistence(rows, np.arange(n)), 0)
    auction(rows, columns, lists, queue, n, epsilon, scratch, budget)
    lost = np.flatnonzero((columns.partner < 0) & (columns.potential[:m] < columns.diagonal))
    if len(lost):
        columns.partner[lost] = UNASSIGNED
        refresh(rows)
        queue = np.resize(_by_persistence(columns, lost), m + 1)
        auction(columns, rows, new_lists(m, NEIGHBOURS), queue, len(lost), epsilon, scratch, budget)


def _finish(rows: Side, columns: Side, lists: Lists, epsilon: float, scratch: Scratch, budget: int) -> None:
    """From the auction's potentials to the optimum."""
    n, m = len(rows.partner), len(columns.partner)
    _clear(lists)
    refresh(columns)
    best_column = np.empty(n, dtype=np.int64)
    tighten(rows, columns, lists, best_column, epsilon, scratch)
    columns.partner[:] = ON_DIAGONAL
    keep = (best_column >= 0) & (best_column == rows.partner)
    rows.partner[:] = np.where(best_column < 0, ON_DIAGONAL, UNASSIGNED)
    rows.partner[keep] = best_column[keep]
    columns.partner[best_column[keep]] = np.flatnonzero(keep)
    waiting = _by_persistence(rows, np.flatnonzero(rows.partner == UNASSIGNED))
    augment(rows, columns, lists, waiting, new_paths(n, m), scratch, budget)
    lost = np.flatnonzero((columns.partner < 0) & (columns.potential[:m] < columns.diagonal))
    if len(lost):
        columns.partner[lost] = UNASSIGNED
        refresh(rows)
        reverse_lists = new_lists(m, NEIGHBOURS)
        reverse_paths = new_paths(m, n)
        augment(columns, rows, reverse_lists, _by_persistence(columns, lost), reverse_paths, scratch, budget)
