"""A k-d tree over one persistence diagram in rotated coordinates, with the potentials of its points.

A node of the tree knows the box of its points and a plane over the box that no potential below the node rises above;
together they bound the reduced costs below it (neighbours.py). Potentials of neighbouring points are alike, and change
along the diagram much like a plane does: with one highest potential per node instead, a search visits about twice as
many leaves. Potentials may change at any time; lowering one lowers the planes of the nodes above it.

A search goes down three levels of the tree in one step: it bounds all eight nodes there at a time, with the
processor's vector instructions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel

LEAF_SIZE = 24
UNASSIGNED = -2
ON_DIAGONAL = -1
# What a node knows: centre and half widths of its box, slopes of its plane, the plane's height at the centre, and how
# far its parent's plane must be raised there to be above its own.
MIDPOINT, HALF, REACH_M, REACH_S, SLOPE_M, SLOPE_S, HEIGHT, ACROSS = range(8)
# Points with a smaller share of their variance off one line are taken as lying on it.
_OFF_LINE = 1e-6


class Side(NamedTuple):
    """One diagram of a matching; the points lie in the order of the tree's leaves.

    The tree is a heap of halves: node 1 is the root, the halves of k are 2k and 2k + 1, the last L nodes are the
    leaves. Leaf l of L holds the points [l n // L, (l + 1) n // L). Only every third level from the leaves up is
    searched, so a node k has the eight children 8k to 8k + 7, which lie together in memory.

    The first three arrays are longer by one leaf, so that a leaf can always be read in full, which the processor does
    several points at a time.

    Attributes:
        midpoint: m of the points (n + LEAF_SIZE,).
        half: s of the points (n + LEAF_SIZE,), positive.
        potential: dual variables (n + LEAF_SIZE,).
        diagonal: s^2, the cost of the diagonal (n,).
        partner: index of the point of the other side (n,), or UNASSIGNED or ON_DIAGONAL.
        place: number of the place at which the point lies (n,); copies of a point have the same.
        nodes: what each node knows, in the order named above: of node k ``nodes[k // 8, :, k % 8]``. The height is
            -inf at nodes that are not searched.
        leaves: number of leaves L, a power of two.
        top: number of nodes in the top level that is searched, also the first of them.
    """

    midpoint: Float[ndarray, " padded"]
    half: Float[ndarray, " padded"]
    potential: Float[ndarray, " padded"]
    diagonal: Float[ndarray, " n"]
    partner: Int[ndarray, " n"]
    place: Int[ndarray, " n"]
    nodes: Float[ndarray, "groups 8 8"]
    leaves: int
    top: int


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
    top = leaves
    while top > 8:
        top //= 8
    order = np.arange(len(points))
    nodes = np.zeros((max(leaves // 4, 1), 8, 8))
    nodes[:, HEIGHT] = -np.inf
    _partition(np.ascontiguousarray(points), order, nodes, leaves)
    padded = np.zeros((2, len(points) + LEAF_SIZE))
    padded[:, : len(points)] = points[order].T
    diagonal = points[order, 1] ** 2
    potential = np.append(diagonal, np.zeros(LEAF_SIZE))
    partner = np.full(len(points), UNASSIGNED, dtype=np.int64)
    place = np.unique(padded[0, : len(points)] + 1j * padded[1, : len(points)], return_inverse=True)[1]
    side = Side(padded[0], padded[1], potential, diagonal, partner, place, nodes, leaves, top)
    refresh(side)
    return side, order


@kernel
def _partition(
    points: Float[ndarray, "n 2"], order: Int[ndarray, " n"], nodes: Float[ndarray, "groups 8 8"], leaves: int
) -> None:
    """Sort ``order`` into the leaves, every node at the median of its wider axis; fill in the boxes."""
    n = points.shape[0]
    width = leaves  # leaves below a node of the current level
    for node in range(1, 2 * leaves):
        if node & (node - 1) == 0 and node > 1:
            width //= 2
        first = (node * width - leaves) * n // leaves
        last = ((node + 1) * width - leaves) * n // leaves
        group, lane = node >> 3, node & 7
        for axis in range(2):
            low, high = np.inf, -np.inf
            for position in range(first, last):
                low = min(low, points[order[position], axis])
                high = max(high, points[order[position], axis])
            nodes[group, axis, lane] = (low + high) / 2
            nodes[group, axis + 2, lane] = (high - low) / 2
        if node < leaves:
            middle = ((2 * node + 1) * (width // 2) - leaves) * n // leaves
            wide_s = 2.0 * nodes[group, REACH_S, lane] > nodes[group, REACH_M, lane]
            _select(points[:, 1 if wide_s else 0], order, first, last - 1, middle)


@inner_kernel
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
    """Fit the plane of every node to the present potentials, and raise it above all of them."""
    leaves, n = side.leaves, side.partner.shape[0]
    level = side.top
    while level <= leaves:
        width = leaves // level  # leaves below a node of this level
        for node in range(level, 2 * level):
            first = (node * width - leaves) * n // leaves
            last = ((node + 1) * width - leaves) * n // leaves
            _fit_plane(side, node, first, last)
            _raise_plane(side, node, first, last)
            if level > side.top:
                _lean(side.nodes, node, node >> 3)
        level *= 8


@inner_kernel
def _fit_plane(side: Side, node: int, first: int, last: int) -> None:
    """Slopes of the potentials below a node by least squares; along one axis only if the points lie on a line."""
    nodes, midpoint, half, potential = side.nodes, side.midpoint, side.half, side.potential
    group, lane = node >> 3, node & 7
    m, s = nodes[group, MIDPOINT, lane], nodes[group, HALF, lane]
    mean_m, mean_s, mean_v = 0.0, 0.0, 0.0
    for j in range(first, last):
        mean_m += midpoint[j] - m
        mean_s += half[j] - s
        mean_v += potential[j]
    size = max(last - first, 1)
    mean_m, mean_s, mean_v = mean_m / size, mean_s / size, mean_v / size
    mm, ms, ss, mv, sv = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(first, last):
        dm, ds, dv = midpoint[j] - m - mean_m, half[j] - s - mean_s, potential[j] - mean_v
        mm += dm * dm
        ms += dm * ds
        ss += ds * ds
        mv += dm * dv
        sv += ds * dv
    determinant = mm * ss - ms * ms
    slope_m, slope_s = 0.0, 0.0
    if determinant > _OFF_LINE * mm * ss:
        slope_m, slope_s = (mv * ss - sv * ms) / determinant, (sv * mm - mv * ms) / determinant
    elif mm >= ss and mm > 0.0:
        slope_m = mv / mm
    elif ss > 0.0:
        slope_s = sv / ss
    nodes[group, SLOPE_M, lane], nodes[group, SLOPE_S, lane] = slope_m, slope_s


@inner_kernel
def _raise_plane(side: Side, node: int, first: int, last: int) -> None:
    """Height of a node's plane such that no potential below the node is above it."""
    nodes, group, lane = side.nodes, node >> 3, node & 7
    m, s = nodes[group, MIDPOINT, lane], nodes[group, HALF, lane]
    slope_m, slope_s = nodes[group, SLOPE_M, lane], nodes[group, SLOPE_S, lane]
    height = -np.inf
    for j in range(first, last):
        height = max(height, side.potential[j] - slope_m * (side.midpoint[j] - m) - slope_s * (side.half[j] - s))
    nodes[group, HEIGHT, lane] = height


@inner_kernel
def _lean(nodes: Float[ndarray, "groups 8 8"], node: int, parent: int) -> None:
    """How far the parallel of the parent's plane that is above a node's plane rises over it at the parent's centre."""
    group, lane, above, at = node >> 3, node & 7, parent >> 3, parent & 7
    slope_m, slope_s = nodes[above, SLOPE_M, at], nodes[above, SLOPE_S, at]
    across = (nodes[above, MIDPOINT, at] - nodes[group, MIDPOINT, lane]) * slope_m
    across += (nodes[above, HALF, at] - nodes[group, HALF, lane]) * slope_s
    across += abs(nodes[group, SLOPE_M, lane] - slope_m) * nodes[group, REACH_M, lane]
    across += abs(nodes[group, SLOPE_S, lane] - slope_s) * nodes[group, REACH_S, lane]
    nodes[group, ACROSS, lane] = across


@inner_kernel
def lower_potential(side: Side, j: int | np.int64, value: float) -> None:
    """Lower the potential of one point and the planes of the nodes above it.

    Args:
        side: the points and their tree.
        j: the point.
        value: its new potential, at most the present one.
    """
    nodes, leaves, n = side.nodes, side.leaves, side.partner.shape[0]
    leaf = ((j + 1) * leaves - 1) // n
    node = leaves + leaf
    group, lane = node >> 3, node & 7
    slope_m, slope_s = nodes[group, SLOPE_M, lane], nodes[group, SLOPE_S, lane]
    m, s = nodes[group, MIDPOINT, lane], nodes[group, HALF, lane]
    before = side.potential[j] - slope_m * (side.midpoint[j] - m) - slope_s * (side.half[j] - s)
    side.potential[j] = value
    if before < nodes[group, HEIGHT, lane]:  # another point holds the plane up
        return
    _raise_plane(side, node, leaf * n // leaves, (leaf + 1) * n // leaves)
    while node >= 8 * side.top:
        node >>= 3
        height = -np.inf
        for lane in range(8):
            height = max(height, nodes[node, HEIGHT, lane] + nodes[node, ACROSS, lane])
        if height >= nodes[node >> 3, HEIGHT, node & 7]:
            return
        nodes[node >> 3, HEIGHT, node & 7] = height
