"""Nearest-neighbour search under changing prices: a k-d tree over one diagram, in rotated coordinates.

The reduced cost of sending a point (m, s) to point j is (|m - m_j| + |s - s_j|)^2 - p_j, with p_j the potential of j.
A node of the tree knows the box of its points and their highest potential, which bounds the reduced costs below it.
Potentials may change at any time; lowering one repairs the nodes above it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.kernels import kernel

LEAF_SIZE = 24
UNASSIGNED = -2
ON_DIAGONAL = -1


class Side(NamedTuple):
    """One diagram of a matching; the points lie in the order of the tree's leaves.

    The tree is a heap: node 1 is the root, the children of k are 2k and 2k + 1, the last half are the leaves. Leaf l
    of L holds the points [l n // L, (l + 1) n // L).

    The first three arrays are longer by one leaf, so that a leaf can always be read in full, which the processor does
    several points at a time.

    Attributes:
        midpoint: m of the points (n + LEAF_SIZE,).
        half: s of the points (n + LEAF_SIZE,), positive.
        potential: dual variables (n + LEAF_SIZE,).
        diagonal: s^2, the cost of the diagonal (n,).
        partner: index of the point of the other side (n,), or UNASSIGNED or ON_DIAGONAL.
        boxes: lowest and highest m, lowest and highest s below each node (2L, 4).
        highest: highest potential below each node (2L,).
    """

    midpoint: Float[ndarray, " padded"]
    half: Float[ndarray, " padded"]
    potential: Float[ndarray, " padded"]
    diagonal: Float[ndarray, " n"]
    partner: Int[ndarray, " n"]
    boxes: Float[ndarray, "nodes 4"]
    highest: Float[ndarray, " nodes"]


class Scratch(NamedTuple):
    """Memory of a search, and the work it did.

    Attributes:
        nodes: nodes that wait for a visit (64,).
        bounds: their lower bounds (64,).
        values: reduced costs of the neighbours found so far (K,).
        leaf_costs: costs of the points of one leaf (LEAF_SIZE,).
        leaf_values: their reduced costs (LEAF_SIZE,).
        leaves: number of leaves visited (1,), the unit of the work budget.
    """

    nodes: Int[ndarray, " depth"]
    bounds: Float[ndarray, " depth"]
    values: Float[ndarray, " K"]
    leaf_costs: Float[ndarray, " leaf"]
    leaf_values: Float[ndarray, " leaf"]
    leaves: Int[ndarray, " 1"]


def new_scratch(neighbours: int) -> Scratch:
    """Memory for searches of up to ``neighbours`` points."""
    leaf_costs, leaf_values = np.zeros(LEAF_SIZE), np.zeros(LEAF_SIZE)
    stack, bounds = np.zeros(64, np.int64), np.zeros(64)
    return Scratch(stack, bounds, np.zeros(neighbours), leaf_costs, leaf_values, np.zeros(1, np.int64))


def build_side(points: Float[ndarray, "n 2"]) -> tuple[Side, Int[ndarray, " n"]]:
    """Build the tree of a diagram.

    Args:
        points: columns m and s, s > 0, n > 0.

    Returns:
        The side, with potential s^2 and no partners, and the order of its points in ``points``.
    """
    leaves = 1
    while leaves * LEAF_SIZE < len(points):
        leaves *= 2
    order = np.arange(len(points))
    boxes = np.zeros((2 * leaves, 4))
    _partition(np.ascontiguousarray(points), order, boxes)
    padded = np.zeros((2, len(points) + LEAF_SIZE))
    padded[:, : len(points)] = points[order].T
    diagonal = points[order, 1] ** 2
    potential = np.append(diagonal, np.zeros(LEAF_SIZE))
    partner = np.full(len(points), UNASSIGNED, dtype=np.int64)
    side = Side(padded[0], padded[1], potential, diagonal, partner, boxes, np.zeros(2 * leaves))
    refresh(side)
    return side, order


@kernel
def _partition(points, order, boxes):
    """Sort ``order`` into the leaves, every node at the median of its wider axis; fill the boxes."""
    leaves, n = boxes.shape[0] // 2, points.shape[0]
    width = leaves  # leaves below a node of the current level
    for node in range(1, 2 * leaves):
        if node & (node - 1) == 0 and node > 1:
            width //= 2
        first = (node * width - leaves) * n // leaves
        last = ((node + 1) * width - leaves) * n // leaves
        for axis in range(2):
            low, high = np.inf, -np.inf
            for position in range(first, last):
                low = min(low, points[order[position], axis])
                high = max(high, points[order[position], axis])
            boxes[node, 2 * axis] = low
            boxes[node, 2 * axis + 1] = high
        if node < leaves:
            middle = ((2 * node + 1) * (width // 2) - leaves) * n // leaves
            wide_s = 2.0 * (boxes[node, 3] - boxes[node, 2]) > boxes[node, 1] - boxes[node, 0]
            _select(points[:, 1 if wide_s else 0], order, first, last - 1, middle)


@kernel
def _select(keys, order, left, right, middle):
    """Reorder ``order[left : right + 1]`` such that no key before ``middle`` exceeds one from it on (quickselect)."""
    while left < right:
        pivot = keys[order[(left + right) // 2]]
        low, high = left, right
        while low <= high:
            while keys[order[low]] < pivot:
                low += 1
            while keys[order[high]] > pivot:
                high -= 1
            if low <= high:
                order[low], order[high] = order[high], order[low]
                low += 1
                high -= 1
        if middle <= high:
            right = high
        elif middle >= low:
            left = low
        else:
            return


@kernel
def refresh(side):
    """Recompute the highest potential of every node."""
    leaves, n = side.highest.shape[0] // 2, side.partner.shape[0]
    for leaf in range(leaves):
        side.highest[leaves + leaf] = _leaf_highest(side.potential, leaf * n // leaves, (leaf + 1) * n // leaves)
    for node in range(leaves - 1, 0, -1):
        side.highest[node] = max(side.highest[2 * node], side.highest[2 * node + 1])


@kernel
def lower_potential(side, j, value):
    """Lower the potential of point ``j`` to ``value`` and repair the nodes above it."""
    _lower(side.potential, side.highest, side.partner.shape[0], j, value)


@kernel
def _lower(potential, highest, n, j, value):
    leaves = highest.shape[0] // 2
    before = potential[j]
    potential[j] = value
    leaf = ((j + 1) * leaves - 1) // n
    node = leaves + leaf
    if before < highest[node]:
        return
    highest[node] = _leaf_highest(potential, leaf * n // leaves, (leaf + 1) * n // leaves)
    node //= 2
    while node > 0:
        value = max(highest[2 * node], highest[2 * node + 1])
        if value == highest[node]:
            return
        highest[node] = value
        node //= 2


@kernel
def _leaf_highest(potential, first, last):
    """Highest of ``potential[first:last]``."""
    highest = -np.inf
    for j in range(first, last):
        highest = max(highest, potential[j])
    return highest


@kernel
def _bound(boxes, highest, node, m, s):
    """Lower bound of the reduced costs from (m, s) to the points below ``node``."""
    beside = max(boxes[node, 0] - m, m - boxes[node, 1], 0.0) + max(boxes[node, 2] - s, s - boxes[node, 3], 0.0)
    return beside * beside - highest[node]


@kernel
def _evaluate(midpoint, half, potential, first, m, s, costs, values):
    """Costs and reduced costs from (m, s) to LEAF_SIZE points from ``first`` on, several at a time."""
    start = np.uint64(first)  # unsigned: no test for negative indices, which would forbid vector instructions
    for t in range(LEAF_SIZE):
        j = start + np.uint64(t)
        distance = abs(m - midpoint[j]) + abs(s - half[j])
        costs[t] = distance * distance
        values[t] = distance * distance - potential[j]


@kernel
def nearest(side, m, s, limit, columns, costs, scratch):
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
    boxes, highest = side.boxes, side.highest
    midpoint, half, potential = side.midpoint, side.half, side.potential
    nodes, bounds, values = scratch.nodes, scratch.bounds, scratch.values
    leaf_costs, leaf_values = scratch.leaf_costs, scratch.leaf_values
    leaves, n = highest.shape[0] // 2, side.partner.shape[0]
    count, horizon, visits = 0, limit, 0
    nodes[0], bounds[0] = 1, _bound(boxes, highest, 1, m, s)
    waiting = 1
    while waiting > 0:
        waiting -= 1
        node, bound = nodes[waiting], bounds[waiting]
        while node < leaves and bound < horizon:
            near, far = 2 * node, 2 * node + 1
            bound, far_bound = _bound(boxes, highest, near, m, s), _bound(boxes, highest, far, m, s)
            if far_bound < bound:
                near, far, bound, far_bound = far, near, far_bound, bound
            if far_bound < horizon:
                nodes[waiting], bounds[waiting] = far, far_bound
                waiting += 1
            node = near
        if bound < horizon:
            first = (node - leaves) * n // leaves
            size = (node - leaves + 1) * n // leaves - first
            _evaluate(midpoint, half, potential, first, m, s, leaf_costs, leaf_values)
            count, horizon = _insert(first, size, leaf_costs, leaf_values, count, horizon, columns, costs, values)
            visits += 1
    scratch.leaves[0] += visits
    return count, horizon


@kernel
def _insert(first, size, leaf_costs, leaf_values, count, horizon, columns, costs, values):
    """Insert the points of a leaf into the sorted list of :func:`nearest`; returns its length and the horizon."""
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


@kernel
def all_within(side, m, s, limit, columns, costs, scratch):
    """Write all points of reduced cost below ``limit`` to ``columns`` and ``costs`` (n,); returns their number."""
    boxes, highest = side.boxes, side.highest
    midpoint, half, potential = side.midpoint, side.half, side.potential
    nodes, leaf_costs, leaf_values = scratch.nodes, scratch.leaf_costs, scratch.leaf_values
    leaves, n = highest.shape[0] // 2, side.partner.shape[0]
    count, waiting, visits = 0, 1, 0
    nodes[0] = 1
    while waiting > 0:
        waiting -= 1
        node = nodes[waiting]
        if _bound(boxes, highest, node, m, s) >= limit:
            continue
        if node < leaves:
            nodes[waiting], nodes[waiting + 1] = 2 * node, 2 * node + 1
            waiting += 2
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
