"""The tree search against looking at every point."""

import numpy as np
import pytest

from nnunet_topomae.topology.solver.neighbours import all_within, nearest, new_scratch
from nnunet_topomae.topology.solver.tree import Side, build_side, lower_potential, refresh


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


def test_the_potentials_bound_every_node() -> None:
    points, generator = points_of(300, 0), np.random.default_rng(2)
    side, _ = build_side(points)
    for _ in range(500):
        j = int(generator.integers(300))
        lower_potential(side, j, side.potential[j] - 0.1 * generator.random())
    maintained = side.highest.copy()
    refresh(side)
    np.testing.assert_array_equal(maintained, side.highest)
    assert maintained[1] == side.potential[:300].max()
