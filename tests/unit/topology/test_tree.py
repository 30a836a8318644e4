"""The tree search against looking at every point."""

import numpy as np
import pytest

from nnunet_topomae.topology.solver.neighbours import all_within, nearest, new_scratch
from nnunet_topomae.topology.solver.tree import (
    HALF,
    HEIGHT,
    MIDPOINT,
    SLOPE_M,
    SLOPE_S,
    Side,
    build_side,
    lower_potential,
    refresh,
)


def points_of(size: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    points = np.stack([generator.random(size), generator.exponential(0.2, size) + 1e-3], axis=1)
    return np.round(points, 1) + 0.05 if seed % 2 else points


def reduced_costs(side: Side, m: float, s: float) -> np.ndarray:
    n = len(side.partner)
    return (np.abs(m - side.midpoint[:n]) + np.abs(s - side.half[:n])) ** 2 - side.potential[:n]


@pytest.mark.parametrize("size", [1, 23, 24, 25, 49, 700])
@pytest.mark.parametrize("seed", [0, 1])
def test_search_finds_what_looking_at_every_point_finds(size: int, seed: int) -> None:
    points, generator = points_of(size, seed), np.random.default_rng(seed)
    side, order = build_side(points)
    assert sorted(order) == list(range(size))
    np.testing.assert_array_equal(np.stack([side.midpoint, side.half], axis=1)[:size], points[order])
    side.potential[:size] = generator.normal(0.0, 0.1, size)
    refresh(side)
    scratch, near, near_costs = new_scratch(8), np.zeros(8, np.int32), np.zeros(8)
    within, within_costs = np.zeros(size, np.int32), np.zeros(size)
    for _ in range(30):
        j = int(generator.integers(size))
        lower_potential(side, j, side.potential[j] - generator.random())
        m, s, limit = generator.random(3)
        values = reduced_costs(side, m, s)
        count, horizon = nearest(side, m, s, limit, near, near_costs, scratch)
        expected = np.sort(values[values < limit])[:8]
        np.testing.assert_allclose(near_costs[:count] - side.potential[near[:count]], expected, rtol=0, atol=1e-14)
        assert horizon == (pytest.approx(expected[-1], abs=1e-14) if len(expected) == 8 else limit)
        found = within[: all_within(side, m, s, limit, within, within_costs, scratch)]
        assert sorted(found) == np.flatnonzero(values < limit).tolist()


def searched(side: Side) -> list[int]:
    """The nodes that a search looks at: every third level from the leaves up."""
    nodes = range(side.top, 2 * side.leaves)
    return [node for node in nodes if (side.leaves.bit_length() - node.bit_length()) % 3 == 0]


def below(side: Side, node: int) -> slice:
    """The points below a node."""
    leaves, n = side.leaves, len(side.partner)
    width = leaves >> (node.bit_length() - 1)
    return slice((node * width - leaves) * n // leaves, ((node + 1) * width - leaves) * n // leaves)


def highest_above_plane(side: Side, node: int) -> float:
    """How far the highest potential below a node is above the node's plane; at most 0."""
    members, known = below(side, node), side.nodes[node // 8, :, node % 8]
    plane = known[HEIGHT] + known[SLOPE_M] * (side.midpoint[members] - known[MIDPOINT])
    plane += known[SLOPE_S] * (side.half[members] - known[HALF])
    return float((side.potential[members] - plane).max())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [20, 300, 800])
def test_no_potential_is_above_the_planes(seed: int, size: int) -> None:
    points, generator = points_of(size, seed), np.random.default_rng(2)
    side, _ = build_side(points)
    for _ in range(500):
        j = int(generator.integers(size))
        lower_potential(side, j, side.potential[j] - 0.1 * generator.random())
    nodes = searched(side)
    assert max(highest_above_plane(side, node) for node in nodes) <= 1e-14
    leaves = range(side.leaves, 2 * side.leaves)
    assert min(highest_above_plane(side, leaf) for leaf in leaves) >= -1e-14  # and the planes of leaves are no higher
    refresh(side)
    assert max(abs(highest_above_plane(side, node)) for node in nodes) <= 1e-14
    others = set(range(1, 2 * side.leaves)).difference(nodes)
    assert all(side.nodes[node // 8, HEIGHT, node % 8] == -np.inf for node in others)


def test_copies_have_the_same_place() -> None:
    points = points_of(300, 1)
    side, order = build_side(points)
    same = (points[order][:, None] == points[order][None]).all(axis=2)
    np.testing.assert_array_equal(side.place[:, None] == side.place[None], same)
    assert sorted(set(side.place)) == list(range(len(np.unique(points, axis=0))))
