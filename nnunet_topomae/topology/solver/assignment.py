"""Exact matching with compiled kernels: an auction in ever smaller steps, then shortest augmenting paths.

A quarter of the points, spread evenly over the tree, is matched first; its potentials are a good start for all of
them. The auction (auction.py) brings the potentials close to the optimum; they are then made exactly feasible, pairs
that are exactly tight are kept, and the points left are placed by augmenting paths (augmentation.py). No list of
candidate pairs is ever made: memory grows with the number of points only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.auction import Lists, auction, new_lists
from nnunet_topomae.topology.solver.augmentation import augment, tighten
from nnunet_topomae.topology.solver.neighbours import Scratch, new_scratch
from nnunet_topomae.topology.solver.network_simplex import Solution, matching_cost
from nnunet_topomae.topology.solver.paths import new_paths
from nnunet_topomae.topology.solver.tree import ON_DIAGONAL, UNASSIGNED, Side, build_side, refresh

# Steps of the auction relative to the mean cost of the rows' diagonal, without and with potentials to start from.
COLD_STEPS: tuple[float, ...] = (0.3, 0.03, 0.003)
WARM_STEPS: tuple[float, ...] = (0.01, 0.0007)
# One point in SAMPLE_STRIDE is matched first, where there are more than SAMPLE_MINIMUM rows.
SAMPLE_STRIDE = 4
SAMPLE_MINIMUM = 1000
NEIGHBOURS = 8
# The auction may use this share of the work; the rest is kept for the augmenting paths.
AUCTION_SHARE = 0.5


class _State(NamedTuple):
    """The two sides after an auction of step ``epsilon``, and the order of their points in the input."""

    rows: Side
    columns: Side
    row_order: Int[ndarray, " n"]
    column_order: Int[ndarray, " m"]
    epsilon: float


def match(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], budget: int, tolerance: float = 0.0) -> Solution:
    """Optimal matching of two non-empty sets of points with positive persistence.

    Args:
        first: columns midpoint m and half persistence s > 0.
        second: likewise.
        budget: work in visits of tree leaves (about 0.1 microseconds each). When it is used up, the matching is
            valid but maybe not optimal; the potentials are feasible in any case.
        tolerance: stop after the auctions if the matching's relative distance from the lower bound is at most this.
    """
    if len(first) <= len(second):
        return _match_rows(first, second, budget, tolerance)
    partners, second_potentials, first_potentials = _match_rows(second, first, budget, tolerance)
    matched = np.flatnonzero(partners >= 0)
    inverse = np.full(len(first), ON_DIAGONAL, dtype=np.int64)
    inverse[partners[matched]] = matched
    return Solution(inverse, first_potentials, second_potentials)


def _match_rows(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], budget: int, tolerance: float) -> Solution:
    """Match with n <= m; the first points are the rows."""
    scratch = new_scratch(NEIGHBOURS)
    state = _run_auctions(first, second, scratch, int(AUCTION_SHARE * budget))
    rows, columns = state.rows, state.columns
    auctioned = rows.partner.copy()
    lists = new_lists(rows, NEIGHBOURS)
    best_column = _make_feasible(rows, columns, lists, state.epsilon, scratch)
    candidates = [auctioned]
    if tolerance == 0.0 or _gap(rows, columns, auctioned) > tolerance:
        _finish(rows, columns, lists, best_column, scratch, budget)
        candidates = [rows.partner] if scratch.leaves[0] < budget else [rows.partner, auctioned]
    partners = [_in_input_order(state, partner) for partner in candidates]
    potentials = np.empty(len(first)), np.empty(len(second))
    potentials[0][state.row_order] = rows.potential[: len(first)]
    potentials[1][state.column_order] = columns.potential[: len(second)]
    best = min(partners, key=lambda partner: matching_cost(first, second, partner))
    return Solution(best, potentials[0], potentials[1])


def _in_input_order(state: _State, partner: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Partners of the first points as indices of the second points, from those in tree order."""
    matched = np.flatnonzero(partner >= 0)
    partners = np.full(len(partner), ON_DIAGONAL, dtype=np.int64)
    partners[state.row_order[matched]] = state.column_order[partner[matched]]
    return partners


def _run_auctions(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], scratch: Scratch, budget: int) -> _State:
    """Build the trees and run the auctions, first those of a sample where there are many points."""
    rows, row_order = build_side(first)
    columns, column_order = build_side(second)
    steps = COLD_STEPS
    if len(first) > SAMPLE_MINIMUM:
        thin = slice(SAMPLE_STRIDE // 2, None, SAMPLE_STRIDE)
        sample = _run_auctions(first[row_order[thin]], second[column_order[thin]], scratch, budget)
        _extend(columns, sample.rows, scratch)
        steps = WARM_STEPS
    lists = new_lists(rows, NEIGHBOURS)
    epsilon = 0.0
    for step in steps:
        epsilon = step * float(rows.diagonal.mean())
        _auction_both(rows, columns, lists, epsilon, scratch, budget)
    return _State(rows, columns, row_order, column_order, epsilon)


def _extend(columns: Side, sample: Side, scratch: Scratch) -> None:
    """Give all columns the largest potentials that are feasible against a sample of the rows."""
    refresh(sample)
    tighten(columns, sample, new_lists(columns, 1), np.empty(len(columns.partner), np.int64), 0.0, scratch)


def _large_first(side: Side, members: Int[ndarray, " k"]) -> Int[ndarray, " k"]:
    """``members`` in the order of falling powers of two of their persistence, then in tree order.

    Placing large points first saves most of the rivalry; points that are neighbours spare the processor's caches.
    """
    return members[np.argsort(-np.frexp(side.half[members])[1], kind="stable")]


def _clear(lists: Lists) -> None:
    """Forget the lists, because potentials rose."""
    lists.known[:] = 0
    lists.horizon[:] = -np.inf


def _lost(columns: Side) -> Int[ndarray, " k"]:
    """Columns below the potential of their diagonal without a row, large ones first."""
    potential = columns.potential[: len(columns.partner)]
    return _large_first(columns, np.flatnonzero((columns.partner < 0) & (potential < columns.diagonal)))


def _auction_both(rows: Side, columns: Side, lists: Lists, epsilon: float, scratch: Scratch, budget: int) -> None:
    """All rows bid; then the columns that lost value without finding a row bid for rows (reverse auction)."""
    rows.partner[:] = ON_DIAGONAL
    columns.partner[:] = ON_DIAGONAL
    _clear(lists)
    refresh(columns)
    auction(rows, columns, lists, _large_first(rows, np.arange(len(rows.partner))), epsilon, scratch, budget)
    lost = _lost(columns)
    if len(lost):
        refresh(rows)
        auction(columns, rows, new_lists(columns, NEIGHBOURS), lost, epsilon, scratch, budget)


def _make_feasible(rows: Side, columns: Side, lists: Lists, epsilon: float, scratch: Scratch) -> Int[ndarray, " n"]:
    """Give the rows the largest potentials that the columns' allow; returns each row's best column, -1 the diagonal."""
    refresh(columns)
    best_column = np.empty(len(rows.partner), dtype=np.int64)
    tighten(rows, columns, lists, best_column, epsilon, scratch)
    return best_column


def _gap(rows: Side, columns: Side, partner: Int[ndarray, " n"]) -> float:
    """Relative distance of a matching's cost, in tree order, from the lower bound of feasible potentials."""
    n, m = len(rows.partner), len(columns.partner)
    first, second = (np.stack([side.midpoint[:k], side.half[:k]], axis=1) for side, k in ((rows, n), (columns, m)))
    cost = matching_cost(first, second, partner)
    return 1.0 - float(rows.potential[:n].sum() + columns.potential[:m].sum()) / cost if cost > 0.0 else 0.0


def _finish(
    rows: Side, columns: Side, lists: Lists, best_column: Int[ndarray, " n"], scratch: Scratch, budget: int
) -> None:
    """From feasible potentials to the optimum."""
    keep = (best_column >= 0) & (best_column == rows.partner)
    rows.partner[:] = np.where(best_column < 0, ON_DIAGONAL, UNASSIGNED)
    rows.partner[keep] = best_column[keep]
    columns.partner[:] = ON_DIAGONAL
    columns.partner[best_column[keep]] = np.flatnonzero(keep)
    waiting = _large_first(rows, np.flatnonzero(rows.partner == UNASSIGNED))
    augment(rows, columns, lists, waiting, new_paths(rows, columns), scratch, budget)
    lost = _lost(columns)
    if len(lost):
        columns.partner[lost] = UNASSIGNED
        refresh(rows)
        augment(columns, rows, new_lists(columns, NEIGHBOURS), lost, new_paths(columns, rows), scratch, budget)
