"""A k-d tree over one persistence diagram in rotated coordinates, with the potentials of its points.

A node of the tree knows the box of its points and their highest potential, which together bound the reduced costs
below it (neighbours.py). Potentials may change at any time; lowering one repairs the nodes above it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import kernel

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
def _partition(points: Float[ndarray, "n 2"], order: Int[ndarray, " n"], boxes: Float[ndarray, "nodes 4"]) -> None:
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
def _select(keys: Float[ndarray, " n"], order: Int[ndarray, " n"], left: int, right: int, middle: int) -> None:
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
def refresh(side: Side) -> None:
    """Recompute the highest potential of every node."""
    leaves, n = side.highest.shape[0] // 2, side.partner.shape[0]
    for leaf in range(leaves):
        side.highest[leaves + leaf] = _leaf_highest(side.potential, leaf * n // leaves, (leaf + 1) * n // leaves)
    for node in range(leaves - 1, 0, -1):
        side.highest[node] = max(side.highest[2 * node], side.highest[2 * node + 1])


@kernel
def lower_potential(side: Side, j: int, value: float) -> None:
    """Lower the potential of one point and update the nodes above it.

    Args:
        side: the points and their tree.
        j: the point.
        value: its new potential, at most the present one.
    """
    potential, highest = side.potential, side.highest
    leaves, n = highest.shape[0] // 2, side.partner.shape[0]
    before = potential[j]
    potential[j] = value
    leaf = ((j + 1) * leaves - 1) // n
    node = leaves + leaf
    if before < highest[node]:
        return
    highest[node] = _leaf_highest(potential, leaf * n // leaves, (leaf + 1) * n // leaves)
    node //= 2
    while node > 0:
        above = max(highest[2 * node], highest[2 * node + 1])
        if above == highest[node]:
            return
        highest[node] = above
        node //= 2


@kernel
def _leaf_highest(potential: Float[ndarray, " padded"], first: int, last: int) -> float:
    """Highest of ``potential[first:last]``."""
    highest = -np.inf
    for j in range(first, last):
        highest = max(highest, potential[j])
    return highest
