"""Exact matching against the dense assignment problem, the certificate against all constraints."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from nnunet_topomae.topology import (
    Matching,
    matching_gradient,
    persistence_diagrams,
    verify,
    wasserstein_distance,
    wasserstein_matching,
)
from nnunet_topomae.topology import matching as module

Solver = str


def dense_cost(first: np.ndarray, second: np.ndarray) -> float:
    """Squared distance by the Hungarian algorithm on the full matrix, in the coordinates birth and death."""
    n, m = len(first), len(second)
    if n + m == 0:
        return 0.0
    costs = np.zeros((n + m, n + m))
    costs[:n, :m] = np.abs(first[:, None] - second[None]).max(axis=2) ** 2
    costs[:n, m:] = ((first[:, 0] - first[:, 1]) ** 2 / 4)[:, None]
    costs[n:, :m] = ((second[:, 0] - second[:, 1]) ** 2 / 4)[None]
    rows, columns = linear_sum_assignment(costs)
    return float(costs[rows, columns].sum())


def random_diagram(generator: np.random.Generator, size: int, style: int) -> np.ndarray:
    """Random points; by style: spread, ties on a grid, copies of few points, one vertical line, tiny persistence."""
    births = generator.random(size)
    lengths = generator.exponential((0.02, 0.2, 1.0)[style % 3], size)
    if style % 5 == 1:
        births, lengths = np.round(births, 1), np.round(lengths, 1)
    if style % 5 == 2 and size:
        chosen = generator.integers(0, min(size, 4), size)
        births, lengths = births[chosen], lengths[chosen]
    if style % 5 == 3:
        births[:] = 1.0
    if style % 5 == 4:
        lengths *= 1e-6
    return np.stack([births, births - lengths], axis=1)


def check_certificate(first: np.ndarray, second: np.ndarray, matching: Matching, tolerance: float = 1e-12) -> None:
    """Every constraint of the dual problem holds, and the bound is the sum of the potentials."""
    u, v = matching.potentials
    pair = np.abs(first[:, None] - second[None]).max(axis=2) ** 2
    scale = max(pair.max(initial=0.0), 1e-300)
    assert (u[:, None] + v[None] - pair).max(initial=0.0) <= tolerance * scale
    assert (u - (first[:, 0] - first[:, 1]) ** 2 / 4).max(initial=0.0) <= tolerance * scale
    assert (v - (second[:, 0] - second[:, 1]) ** 2 / 4).max(initial=0.0) <= tolerance * scale
    assert matching.lower_bound == pytest.approx(u.sum() + v.sum(), rel=1e-12)


def check_pairs(first: np.ndarray, second: np.ndarray, matching: Matching) -> None:
    """The pairs are a matching, and the cost is theirs."""
    i, j = matching.pairs.T
    assert len(set(i)) == len(i) and len(set(j)) == len(j)
    alone = np.setdiff1d(np.arange(len(first)), i), np.setdiff1d(np.arange(len(second)), j)
    cost = (np.abs(first[i] - second[j]).max(axis=1) ** 2).sum() if len(i) else 0.0
    cost += sum(((p[k, 0] - p[k, 1]) ** 2 / 4).sum() for p, k in zip((first, second), alone, strict=True))
    assert matching.cost == pytest.approx(cost, rel=1e-12, abs=1e-300)


@pytest.fixture(params=["auction", "network simplex", "automatic"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Solver:
    """Each of the two solvers on its own, and the choice between them."""
    if request.param == "auction":
        monkeypatch.setattr(module, "MERGED_PAIRS", -1)
    if request.param == "network simplex":
        monkeypatch.setattr(module, "COMPILED", False)
    return str(request.param)


def compare(seeds: range, largest: int) -> None:
    for seed in seeds:
        generator = np.random.default_rng(seed)
        first, second = (random_diagram(generator, generator.integers(0, largest), seed) for _ in range(2))
        matching = wasserstein_matching(first, second)
        assert matching.cost == pytest.approx(dense_cost(first, second), rel=1e-10, abs=1e-300), seed
        assert matching.gap < 1e-10, seed
        check_certificate(first, second, matching)
        check_pairs(first, second, matching)


def test_random_problems(solver: Solver) -> None:
    compare(range(100), 60)


@pytest.mark.slow
def test_a_thousand_random_problems(solver: Solver) -> None:
    compare(range(1000), 150)


@pytest.mark.parametrize("swapped", [False, True])
def test_copies_on_one_side_only(swapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of whole numbers against a reconstruction: many copies here, none there."""
    monkeypatch.setattr(module, "MERGED_PAIRS", -1)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        copies = np.round(4 * random_diagram(generator, 80, 0)) / 4 - np.array([0.0, 0.5])
        pair = [copies, random_diagram(generator, int(generator.integers(1, 200)), 0)]
        first, second = pair[::-1] if swapped else pair
        matching = wasserstein_matching(first, second)
        assert matching.cost == pytest.approx(dense_cost(first, second), rel=1e-12)
        assert matching.gap < 1e-13
        check_certificate(first, second, matching)
        check_pairs(first, second, matching)


def test_a_sample_is_matched_first_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_topomae.topology.solver.assignment.SAMPLE_MINIMUM", 20)
    monkeypatch.setattr(module, "MERGED_PAIRS", -1)
    compare(range(1000, 1060), 120)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (5, 0), (0, 7), (1, 1)])
def test_empty_and_single(solver: Solver, n: int, m: int) -> None:
    generator = np.random.default_rng(n)
    first, second = random_diagram(generator, n, 0), random_diagram(generator, m, 0)
    matching = wasserstein_matching(first, second)
    assert matching.cost == pytest.approx(dense_cost(first, second), rel=1e-12)
    check_certificate(first, second, matching)


def test_equal_points_do_not_cancel(solver: Solver) -> None:
    """{(10, 0), (11, 1)} and {(11, 1), (12, 2)}: shifting both by one costs 2, keeping (11, 1) costs 4."""
    matching = wasserstein_matching([[10.0, 0.0], [11.0, 1.0]], [[11.0, 1.0], [12.0, 2.0]])
    assert matching.cost == pytest.approx(2.0, rel=1e-14)
    assert sorted(map(tuple, matching.pairs.tolist())) == [(0, 0), (1, 1)]


def test_identical_diagrams_in_any_order(solver: Solver) -> None:
    generator = np.random.default_rng(0)
    points = random_diagram(generator, 80, 0)
    order = generator.permutation(80)
    matching = wasserstein_matching(points, points[order])
    assert matching.cost == 0.0
    assert matching.gap == 0.0
    np.testing.assert_array_equal(order[matching.pairs[:, 1]], matching.pairs[:, 0])


def test_points_on_the_diagonal_cost_nothing(solver: Solver) -> None:
    first, second = np.array([[3.0, 1.0], [2.0, 2.0]]), np.array([[5.0, 5.0], [3.0, 1.0], [1.0, 1.0]])
    matching = wasserstein_matching(first, second)
    assert matching.cost == 0.0
    assert matching.pairs.tolist() == [[0, 1]]
    check_certificate(first, second, matching)


@pytest.mark.slow
def test_without_compiled_kernels_the_result_is_the_same() -> None:
    """In a new process, because numba reads the switch when it is imported."""
    program = (
        "import numpy as np\n"
        "from nnunet_topomae.topology import wasserstein_distance\n"
        "from nnunet_topomae.topology.solver import kernels\n"
        "points = np.random.default_rng(0).random((2, 60, 2)) + np.array([1.0, 0.0])\n"
        "assert not kernels.COMPILED\n"
        "print(repr(wasserstein_distance(points[0], points[1, :40])))"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    points = np.random.default_rng(0).random((2, 60, 2)) + np.array([1.0, 0.0])
    assert float(run.stdout) == pytest.approx(wasserstein_distance(points[0], points[1, :40]), rel=1e-12)


def test_metric_properties() -> None:
    generator = np.random.default_rng(3)
    a, b, c = (random_diagram(generator, size, 0) for size in (30, 45, 38))
    assert wasserstein_distance(a, b) == pytest.approx(wasserstein_distance(b, a), rel=1e-12)
    assert wasserstein_distance(a, c) <= wasserstein_distance(a, b) + wasserstein_distance(b, c)
    assert wasserstein_distance(a, b) == pytest.approx(np.sqrt(wasserstein_matching(a, b).cost), rel=1e-15)


@pytest.mark.parametrize(("scale", "shift"), [(1e-30, 0.0), (1e3, -500.0), (1e30, 0.0)])
def test_scale_and_shift(scale: float, shift: float) -> None:
    generator = np.random.default_rng(4)
    a, b = random_diagram(generator, 60, 0), random_diagram(generator, 50, 0)
    expected = scale * wasserstein_distance(a, b)
    assert wasserstein_distance(scale * a + shift, scale * b + shift) == pytest.approx(expected, rel=1e-9)


def test_sub_level_sets_give_the_same() -> None:
    generator = np.random.default_rng(5)
    a, b = random_diagram(generator, 20, 0), random_diagram(generator, 25, 0)
    assert wasserstein_distance(-a, -b) == pytest.approx(wasserstein_distance(a, b), rel=1e-14)


def test_a_small_budget_still_gives_valid_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    a, b = random_diagram(generator, 120, 0), random_diagram(generator, 100, 0)
    exact = dense_cost(a, b)
    monkeypatch.setattr(module, "POINT_BUDGET", 0)
    for budget in (0, 50, 200, 400, 800):
        monkeypatch.setattr(module, "BASE_BUDGET", budget)
        matching = wasserstein_matching(a, b)
        assert matching.lower_bound <= exact * (1 + 1e-12)
        assert matching.cost >= exact * (1 - 1e-12)
        check_certificate(a, b, matching)
        check_pairs(a, b, matching)
    assert matching.gap > 0.0 or budget == 800


@pytest.mark.slow
def test_jittered_duplicates_stay_within_the_work_budget() -> None:
    """Two swapped clusters of nearly equal points: the worst case of an auction."""
    generator = np.random.default_rng(7)
    counts, first_places, second_places = (2, 1), [[0.9, 0.1], [0.5, 0.2]], [[0.9, 0.12], [0.5, 0.21]]
    first = np.repeat(first_places, 300 * np.array(counts), axis=0)
    second = np.repeat(second_places, 300 * np.array(counts[::-1]), axis=0)
    first, second = (points + 1e-9 * generator.random(points.shape) for points in (first, second))
    matching = wasserstein_matching(first, second)
    exact = dense_cost(first, second)
    assert matching.lower_bound <= exact * (1 + 1e-10)
    assert exact * (1 - 1e-10) <= matching.cost <= exact * 1.02


@pytest.mark.parametrize("births", [True, False])
def test_gradient_by_finite_differences(births: bool) -> None:
    generator = np.random.default_rng(8)
    first, second = random_diagram(generator, 12, 0), random_diagram(generator, 15, 0)
    gradient = matching_gradient(first, second, wasserstein_matching(first, second).pairs)
    column, step = 0 if births else 1, 1e-6
    for j in range(len(second)):
        moved = [second.copy(), second.copy()]
        moved[0][j, column] += step
        moved[1][j, column] -= step
        slope = (dense_cost(first, moved[0]) - dense_cost(first, moved[1])) / (2 * step)
        assert gradient[j, column] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.zeros(4), np.zeros((2, 2, 2))])
def test_other_shapes_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the second diagram must be an array"):
        wasserstein_matching(np.array([[1.0, 0.0]]), bad)


def test_infinite_points_are_refused() -> None:
    with pytest.raises(ValueError, match="the first diagram has NaN or infinite points"):
        wasserstein_matching([[1.0, -np.inf]], [[1.0, 0.0]])


def test_values_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="rescale"):
        wasserstein_matching([[1e200, 0.0]], [[1.0, 0.0]])


def test_values_whose_squares_vanish_cost_nothing() -> None:
    matching = wasserstein_matching([[2e-170, 0.0]], [[1.0, 0.0], [3e-170, 0.0]])
    assert matching.cost == 0.25
    assert matching.gap == 0.0


def test_points_on_both_sides_of_the_diagonal_are_refused() -> None:
    with pytest.raises(ValueError, match="births must be all at least or all at most"):
        wasserstein_matching([[1.0, 0.0]], [[0.0, 1.0]])


def test_points_far_from_zero_are_matched_as_exactly_as_near_it() -> None:
    rng = np.random.default_rng(4)
    first, second = (np.sort(rng.integers(0, 2000, (n, 2)) / 8, axis=1)[:, ::-1] for n in (300, 250))
    near = wasserstein_matching(first, second)
    far = wasserstein_matching(first + 2.0**23, second + 2.0**23)  # the eighths stay exact
    assert far.cost == near.cost
    assert abs(far.lower_bound - far.cost) <= 1e-13 * far.cost


def test_diagrams_are_taken_as_they_are() -> None:
    volumes = np.random.default_rng(5).standard_normal((2, 6, 7, 5))
    first, second = (persistence_diagrams(volume)[1] for volume in volumes)
    assert wasserstein_distance(first, second) == wasserstein_distance(first.points, second.points)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_a_tolerance_bounds_the_gap(tolerance: float) -> None:
    rng = np.random.default_rng(6)
    first, second = (np.sort(rng.random((n, 2)), axis=1)[:, ::-1] for n in (3000, 2500))
    exact, loose = wasserstein_matching(first, second), wasserstein_matching(first, second, tolerance)
    assert exact.cost <= loose.cost <= exact.cost / (1 - tolerance)
    assert loose.gap <= tolerance
    assert loose.lower_bound <= exact.cost * (1 + 1e-12)


def pot_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """POT's exact transport with one diagonal node on either side; differentiable by torch."""
    ot = pytest.importorskip("ot")
    n, m = len(first), len(second)
    costs = torch.zeros(n + 1, m + 1, dtype=torch.float64)
    costs[:n, :m] = (first[:, None] - second[None]).abs().amax(dim=2) ** 2
    costs[:n, m], costs[n, :m] = (first[:, 0] - first[:, 1]) ** 2 / 4, (second[:, 0] - second[:, 1]) ** 2 / 4
    supply, demand = np.append(np.ones(n), m), np.append(np.ones(m), n)
    plan = torch.from_numpy(ot.emd(supply, demand, costs.detach().numpy()))
    return (plan * costs).sum().sqrt()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_distance_of_tensors_has_the_gradient_of_pot(seed: int, sign: int) -> None:
    generator = np.random.default_rng(seed)
    pair = [torch.from_numpy(sign * random_diagram(generator, n, 0)).requires_grad_() for n in (25, 31)]
    again = [points.detach().clone().requires_grad_() for points in pair]
    value, expected = wasserstein_distance(*pair), pot_distance(*again)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for points, same in zip(pair, again, strict=True):
        torch.testing.assert_close(points.grad, same.grad, rtol=1e-10, atol=1e-12)


def test_the_distance_of_tensors_has_the_gradient_of_finite_differences() -> None:
    generator = np.random.default_rng(9)
    pair = [torch.from_numpy(random_diagram(generator, n, 0)).requires_grad_() for n in (9, 7)]
    assert torch.autograd.gradcheck(lambda a, b: wasserstein_distance(a, b), pair, eps=1e-7)


def test_tensors_and_arrays_mix() -> None:
    points = torch.tensor([[4.0, 0.0]], requires_grad=True)
    value = wasserstein_distance(np.array([[4.5, 0.0]]), points)
    assert value.dtype == torch.float32 and value.item() == 0.5
    value.backward()
    assert points.grad is not None and points.grad.tolist() == [[-1.0, 0.0]]
    same = wasserstein_distance(points, points.detach())
    same.backward()  # distance 0: no direction
    assert same.item() == 0.0 and points.grad.tolist() == [[-1.0, 0.0]]
    nothing = torch.zeros(0, 2, requires_grad=True)
    wasserstein_distance(nothing, points).backward()
    assert nothing.grad is not None and nothing.grad.shape == (0, 2)


def test_verify_proves_the_gap_from_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(10)
    first, second = random_diagram(generator, 70, 0), random_diagram(generator, 90, 0)
    monkeypatch.setattr("nnunet_topomae.topology.certificate._BLOCK", 1000)  # several blocks
    exact = wasserstein_matching(first, second)
    assert abs(verify(exact)) < 1e-13
    lower = exact.potentials[0], exact.potentials[1] - 1e-6
    assert 1e-9 < verify(replace(exact, potentials=lower)) < 1.0
    higher = exact.potentials[0], exact.potentials[1] + 1.0  # not feasible: no bound without the check
    assert sum(map(np.sum, higher)) > exact.cost
    assert verify(replace(exact, potentials=higher)) > 1e-9
    pairs = exact.pairs[1:]
    worse = replace(exact, pairs=pairs)
    with pytest.raises(ValueError, match="but the matching says"):
        verify(worse)
    i, j = exact.pairs[0]
    alone = ((first[i, 0] - first[i, 1]) ** 2 + (second[j, 0] - second[j, 1]) ** 2) / 4
    worse = replace(worse, cost=exact.cost + alone - np.abs(first[i] - second[j]).max() ** 2)
    assert verify(worse) == pytest.approx(1 - exact.cost / worse.cost, rel=1e-9)
    for bad in ([[0, 0], [0, 1]], [[0, 0], [1, 0]], [[70, 0]], [[0, -1]]):
        with pytest.raises(ValueError, match="twice, or points that it does not have"):
            verify(replace(exact, pairs=np.array(bad)))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 0), (0, 4)])
def test_verify_without_points(n: int, m: int) -> None:
    generator = np.random.default_rng(11)
    assert verify(wasserstein_matching(random_diagram(generator, n, 0), random_diagram(generator, m, 0))) == 0.0
