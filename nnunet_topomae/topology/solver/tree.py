"""A k-d tree over one persistence diagram in rotated coordinates, with the potentials of its points.

A node of the tree knows the box of its points and a plane over the box that no potential below the node rises above;
together they bound the reduced costs below it (neighbours.py). Potentials of neighbouring points are alike, and change
along the diagram much like a plane does: with one highest potential per node instead, a search visits about twice as
many leaves. Potentials may change at any time; lowering one lowers the planes of the nodes above it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import kernel

LEAF_SIZE = 24
UNASSIGNED = -2
ON_DIAGONAL = -1
# What a node knows: centre and half widths of its box, slopes of its plane and the plane's height at the centre.
MIDPOINT, HALF, REACH_M, REACH_S, SLOPE_M, SLOPE_S, HEIGHT = range(7)
# Points with a smaller share of their variance off one line are taken as lying on it.
_OFF_LINE = 1e-6


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
        place: number of the place at which the point lies (n,); copies of a point have the same.
        nodes: what each node knows (2L, 8), in the columns named above; the last one fills up a cache line.
        across: rise from the plane of each node to the lowest parallel of its parent's plane that is above it (2L,).
    """

    midpoint: Float[ndarray, " padded"]
    half: Float[ndarray, " padded"]
    potential: Float[ndarray, " padded"]
    diagonal: Float[ndarray, " n"]
    partner: Int[ndarray, " n"]
    place: Int[ndarray, " n"]
    nodes: Float[ndarray, "nodes 8"]
    across: Float[ndarray, " nodes"]


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
    nodes = np.zeros((2 * leaves, 8))
    _partition(np.ascontiguousarray(points), order, nodes)
    padded = np.zeros((2, len(points) + LEAF_SIZE))
    padded[:, : len(points)] = points[order].T
    diagonal = points[order, 1] ** 2
    potential = np.append(diagonal, np.zeros(LEAF_SIZE))
    partner = np.full(len(points), UNASSIGNED, dtype=np.int64)
    place = np.unique(padded[0, : len(points)] + 1j * padded[1, : len(points)], return_inverse=True)[1]
    side = Side(padded[0], padded[1], potential, diagonal, partner, place, nodes, np.zeros(2 * leaves))
    refresh(side)
    return side, order


@kernel
def _partition(points: Float[ndarray, "n 2"], order: Int[ndarray, " n"], nodes: Float[ndarray, "nodes 8"]) -> None:
    """Sort ``order`` into the leaves, every node at the median of its wider axis; fill in the boxes."""
    leaves, n = nodes.shape[0] // 2, points.shape[0]
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
            nodes[node, axis] = (low + high) / 2
            nodes[node, axis + 2] = (high - low) / 2
        if node < leaves:
            middle = ((2 * node + 1) * (width // 2) - leaves) * n // leaves
            wide_s = 2.0 * nodes[node, REACH_S] > nodes[node, REACH_M]
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
    """Fit the plane of every node to the present potentials, and raise it above all of them."""
    nodes, leaves, n = side.nodes, side.nodes.shape[0] // 2, side.partner.shape[0]
    width = leaves  # leaves below a node of the current level
    for node in range(1, 2 * leaves):
        if node & (node - 1) == 0 and node > 1:
            width //= 2
        first = (node * width - leaves) * n // leaves
        last = ((node + 1) * width - leaves) * n // leaves
        _fit_plane(side, node, first, last)
        _raise_plane(side, node, first, last)
        above = max(node // 2, 1)
        across = (nodes[above, MIDPOINT] - nodes[node, MIDPOINT]) * nodes[above, SLOPE_M]
        across += (nodes[above, HALF] - nodes[node, HALF]) * nodes[above, SLOPE_S]
        across += abs(nodes[node, SLOPE_M] - nodes[above, SLOPE_M]) * nodes[node, REACH_M]
        across += abs(nodes[node, SLOPE_S] - nodes[above, SLOPE_S]) * nodes[node, REACH_S]
        side.across[node] = across


@kernel
def _fit_plane(side: Side, node: int, first: int, last: int) -> None:
    """Slopes of the potentials below a node by least squares; along one axis only if the points lie on a line."""
    nodes, midpoint, half, potential = side.nodes, side.midpoint, side.half, side.potential
    m, s = nodes[node, MIDPOINT], nodes[node, HALF]
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
    nodes[node, SLOPE_M], nodes[node, SLOPE_S] = slope_m, slope_s


@kernel
def _raise_plane(side: Side, node: int, first: int, last: int) -> None:
    """Height of a node's plane such that no potential below the node is above it."""
    nodes = side.nodes
    m, s, slope_m, slope_s = nodes[node, MIDPOINT], nodes[node, HALF], nodes[node, SLOPE_M], nodes[node, SLOPE_S]
    height = -np.inf
    for j in range(first, last):
        height = max(height, side.potential[j] - slope_m * (side.midpoint[j] - m) - slope_s * (side.half[j] - s))
    nodes[node, HEIGHT] = height


@kernel
def lower_potential(side: Side, j: int, value: float) -> None:
    """Lower the potential of one point and the planes of the nodes above it.

    Args:
        side: the points and their tree.
        j: the point.
        value: its new potential, at most the present one.
    """
    nodes, across = side.nodes, side.across
    leaves, n = nodes.shape[0] // 2, side.partner.shape[0]
    leaf = ((j + 1) * leaves - 1) // n
    node = leaves + leaf
    slope_m, slope_s = nodes[node, SLOPE_M], nodes[node, SLOPE_S]
    m, s = nodes[node, MIDPOINT], nodes[node, HALF]
    before = side.potential[j] - slope_m * (side.midpoint[j] - m) - slope_s * (side.half[j] - s)
    side.potential[j] = value
    if before < nodes[node, HEIGHT]:  # another point holds the plane up
        return
    _raise_plane(side, node, leaf * n // leaves, (leaf + 1) * n // leaves)
    node //= 2
    while node > 0:
        near, far = 2 * node, 2 * node + 1
        height = max(nodes[near, HEIGHT] + across[near], nodes[far, HEIGHT] + across[far])
        if height >= nodes[node, HEIGHT]:
            return
        nodes[node, HEIGHT] = height
        node //= 2
