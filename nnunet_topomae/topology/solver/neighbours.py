"""Nearest-neighbour search under changing prices.

The reduced cost of sending a point (m, s) to point j is (|m - m_j| + |s - s_j|)^2 - p_j, with p_j the potential of j.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import inner_kernel
from nnunet_topomae.topology.solver.tree import LEAF_SIZE, Side

# What a node knows, as in tree.py; unsigned, because tests for negative indices would forbid vector instructions.
_MIDPOINT, _HALF, _REACH_M, _REACH_S, _SLOPE_M, _SLOPE_S, _HEIGHT = (np.uint64(entry) for entry in range(7))


class Scratch(NamedTuple):
    """Memory of a search, and the work it did.

    Attributes:
        nodes: nodes that wait for a visit (128,).
        bounds: their lower bounds (128,).
        group_bounds: lower bounds of eight nodes (8,).
        values: reduced costs of the neighbours found so far (K,).
        leaf_costs: costs of the points of one leaf (LEAF_SIZE,).
        leaf_values: their reduced costs (LEAF_SIZE,).
        leaves: number of leaves visited (1,), the unit of the work budget.
    """

    nodes: Int[ndarray, " depth"]
    bounds: Float[ndarray, " depth"]
    group_bounds: Float[ndarray, " 8"]
    values: Float[ndarray, " K"]
    leaf_costs: Float[ndarray, " leaf"]
    leaf_values: Float[ndarray, " leaf"]
    leaves: Int[ndarray, " 1"]


def new_scratch(neighbours: int) -> Scratch:
    """Memory for searches of up to ``neighbours`` points."""
    leaf_costs, leaf_values = np.zeros(LEAF_SIZE), np.zeros(LEAF_SIZE)
    stack, bounds = np.zeros(128, np.int64), np.zeros(128)
    return Scratch(stack, bounds, np.zeros(8), np.zeros(neighbours), leaf_costs, leaf_values, np.zeros(1, np.int64))


@inner_kernel
def _bound(nodes: Float[ndarray, "groups 8 8"], group: int, m: float, s: float, bounds: Float[ndarray, " 8"]) -> None:
    """Lower bounds of the reduced costs from (m, s) to the points below each of the eight nodes of a group.

    No potential is above a node's plane. At the point of the box nearest to (m, s), the bound is the squared distance
    less the height of the plane. A step of t from there up the slope of the plane along one axis gains t * slope and
    costs 2 t * distance + t^2 or more; the step that gains most stays inside the box.
    """
    g = np.uint64(group)
    for t in range(len(bounds)):  # not 8: the compiler would unroll the loop before it looks for vector instructions
        lane = np.uint64(t)
        dm, ds = m - nodes[g, _MIDPOINT, lane], s - nodes[g, _HALF, lane]
        reach_m, reach_s = nodes[g, _REACH_M, lane], nodes[g, _REACH_S, lane]
        slope_m, slope_s = nodes[g, _SLOPE_M, lane], nodes[g, _SLOPE_S, lane]
        near_m, near_s = min(max(dm, -reach_m), reach_m), min(max(ds, -reach_s), reach_s)
        distance = abs(dm - near_m) + abs(ds - near_s)
        gain_m, gain_s = max(abs(slope_m) - 2.0 * distance, 0.0), max(abs(slope_s) - 2.0 * distance, 0.0)
        step_m = min(0.5 * gain_m, reach_m - near_m if slope_m > 0.0 else reach_m + near_m)
        step_s = min(0.5 * gain_s, reach_s - near_s if slope_s > 0.0 else reach_s + near_s)
        bound = distance * distance - nodes[g, _HEIGHT, lane] - slope_m * near_m - slope_s * near_s
        bounds[lane] = bound - (step_m * (gain_m - step_m) + step_s * (gain_s - step_s))


@inner_kernel
def _open(
    tree: Float[ndarray, "groups 8 8"], group: int, m: float, s: float, limit: float, waiting: int, scratch: Scratch
) -> int:
    """Put the nodes of a group that are nearer than ``limit`` on the stack, the nearest on top; returns its size."""
    nodes, bounds, found = scratch.nodes, scratch.bounds, scratch.group_bounds
    _bound(tree, group, m, s, found)
    bottom = waiting
    for lane in range(8):
        bound = found[lane]
        if bound < limit:
            place = waiting
            while place > bottom and bounds[place - 1] < bound:
                nodes[place], bounds[place] = nodes[place - 1], bounds[place - 1]
                place -= 1
            nodes[place], bounds[place] = 8 * group + lane, bound
            waiting += 1
    return waiting


@inner_kernel
def _evaluate(
    midpoint: Float[ndarray, " padded"],
    half: Float[ndarray, " padded"],
    potential: Float[ndarray, " padded"],
    first: int,
    m: float,
    s: float,
    costs: Float[ndarray, " leaf"],
    values: Float[ndarray, " leaf"],
) -> None:
    """Costs and reduced costs from (m, s) to LEAF_SIZE points from ``first`` on, several at a time."""
    start = np.uint64(first)  # unsigned: no test for negative indices, which would forbid vector instructions
    for t in range(LEAF_SIZE):
        j = start + np.uint64(t)
        distance = abs(m - midpoint[j]) + abs(s - half[j])
        costs[t] = distance * distance
        values[t] = distance * distance - potential[j]


@inner_kernel
def nearest(
    side: Side,
    m: float,
    s: float,
    limit: float,
    columns: Int[ndarray, " K"],
    costs: Float[ndarray, " K"],
    scratch: Scratch,
) -> tuple[int, float]:
    """The K points of least reduced cost from (m, s), of those below ``limit``, in increasing order.

    Args:
        side: the points to search.
        m: midpoint of the query.
        s: half persistence of the query.
        limit: reduced costs from here on do not matter.
        columns: (K,) receives the points.
        costs: (K,) receives their costs (not reduced).
        scratch: memory.

    Returns:
        The number of points found, and the horizon: all other points have a reduced cost of at least that.
    """
    tree = side.nodes
    midpoint, half, potential = side.midpoint, side.half, side.potential
    nodes, bounds, values = scratch.nodes, scratch.bounds, scratch.values
    leaf_costs, leaf_values = scratch.leaf_costs, scratch.leaf_values
    leaves, n = side.leaves, side.partner.shape[0]
    count: int = np.int64(0)  # type: ignore[assignment]  # a literal 0 would have `_insert` compiled once more
    horizon, visits = limit, 0
    nodes[0], bounds[0], waiting = side.top >> 3, -np.inf, 1
    while waiting > 0:
        waiting -= 1
        node = nodes[waiting]
        if bounds[waiting] >= horizon:
            continue
        if node < leaves:
            waiting = _open(tree, node, m, s, horizon, waiting, scratch)
        else:
            first = (node - leaves) * n // leaves
            size = (node - leaves + 1) * n // leaves - first
            _evaluate(midpoint, half, potential, first, m, s, leaf_costs, leaf_values)
            count, horizon = _insert(first, size, leaf_costs, leaf_values, count, horizon, columns, costs, values)
            visits += 1
    scratch.leaves[0] += visits
    return count, horizon


@inner_kernel
def _insert(
    first: int,
    size: int,
    leaf_costs: Float[ndarray, " leaf"],
    leaf_values: Float[ndarray, " leaf"],
    count: int,
    horizon: float,
    columns: Int[ndarray, " K"],
    costs: Float[ndarray, " K"],
    values: Float[ndarray, " K"],
) -> tuple[int, float]:
    """Insert the points of a leaf into the sorted list of `nearest`; returns its length and the horizon."""
    for t in range(size):
        value = leaf_values[t]
        if value < horizon:
            place = count if count < columns.shape[0] else count - 1
            count = place + 1
            while place > 0 and values[place - 1] > value:
                columns[place], costs[place], values[place] = columns[place - 1], costs[place - 1], values[place - 1]
                place -= 1
            columns[place], costs[place], values[place] = first + t, leaf_costs[t], value
            if count == columns.shape[0]:
                horizon = values[count - 1]
    return count, horizon


@inner_kernel
def all_within(
    side: Side,
    m: float,
    s: float,
    limit: float,
    columns: Int[ndarray, " n"],
    costs: Float[ndarray, " n"],
    scratch: Scratch,
) -> int:
    """Find all points whose reduced cost from (m, s) is below a limit.

    Args:
        side: the points, with their tree up to date.
        m: midpoint of the point to start from.
        s: half persistence of the point to start from.
        limit: only points of a lower reduced cost are found.
        columns: (n,) receives the indices of the points.
        costs: (n,) receives their costs, which are not reduced.
        scratch: memory of the search.

    Returns:
        The number of points found.
    """
    tree = side.nodes
    midpoint, half, potential = side.midpoint, side.half, side.potential
    nodes, leaf_costs, leaf_values = scratch.nodes, scratch.leaf_costs, scratch.leaf_values
    leaves, n = side.leaves, side.partner.shape[0]
    count, visits = 0, 0
    nodes[0], waiting = side.top >> 3, 1
    while waiting > 0:
        waiting -= 1
        node = nodes[waiting]
        if node < leaves:
            waiting = _open(tree, node, m, s, limit, waiting, scratch)
            continue
        first = (node - leaves) * n // leaves
        _evaluate(midpoint, half, potential, first, m, s, leaf_costs, leaf_values)
        visits += 1
        for t in range((node - leaves + 1) * n // leaves - first):
            if leaf_values[t] < limit:
                columns[count], costs[count] = first + t, leaf_costs[t]
                count += 1
    scratch.leaves[0] += visits
    return count
