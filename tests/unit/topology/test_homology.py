"""Our persistent homology against cripser and gudhi, and its parts against what defines them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires, version
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import cripser
import numpy as np
import pytest
from numpy import ndarray
from packaging.requirements import Requirement

from nnunet_topomae.topology import TopologicalLoss, backends, persistence_diagrams
from nnunet_topomae.topology.homology import loops, pairs
from nnunet_topomae.topology.homology.cells import CUBES, DIRECTIONS, SQUARES, SQUARES_OF_CUBE
from nnunet_topomae.topology.homology.lower_stars import CRITICAL, NOTHING, VERTEX, lower_stars
from nnunet_topomae.topology.homology.order import falling_order
from nnunet_topomae.topology.homology.pairs import NEVER, persistence_pairs

SHAPES = [(1, 1, 1), (1, 1, 7), (9, 1, 1), (1, 6, 7), (5, 1, 4), (2, 2, 2), (3, 3, 3), (4, 5, 6), (7, 3, 9), (2, 13, 3)]
KINDS = ("normal", "float32", "ties", "binary", "plateaus", "quantised", "smooth", "ramp")


def make(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> ndarray:
    values = rng.standard_normal(shape)
    if kind == "float32":
        return values.astype(np.float32)
    if kind == "ties":
        return np.round(values)
    if kind == "binary":
        return (values > 0).astype(float)
    if kind == "plateaus":
        return np.clip(values, -0.3, 0.4)
    if kind == "quantised":
        return (np.round(values * 40) * 10 - 200).astype(np.float32)
    if kind == "smooth":
        return sum(np.roll(values, shift, axis) for shift in (0, 1) for axis in range(3))  # type: ignore[return-value]
    if kind == "ramp":
        return np.indices(shape).sum(axis=0) + 0.1 * np.round(values)
    return values


def points(values: ndarray, backend: str) -> list[list[tuple[float, ...]]]:
    diagrams = persistence_diagrams(values, backend=backend)
    return [sorted(map(tuple, diagrams[k].points.tolist())) for k in range(3)]


@pytest.mark.parametrize(
    "kind",
    [
        "float32",
        "ties",
        "plateaus",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("normal", "binary", "quantised", "smooth", "ramp")),
    ],
)
def test_the_points_are_those_of_cripser_and_gudhi(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for shape in SHAPES:
        for _ in range(25):
            values = make(kind, shape, rng)
            expected = points(values, "cripser")
            assert points(values, "native") == expected
            assert points(values, "gudhi") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_points_of_larger_volumes(kind: str) -> None:
    values = make(kind, (19, 24, 17), np.random.default_rng(8))
    assert points(values, "native") == points(values, "cripser")


@pytest.mark.parametrize("shape", [(11, 10, 12), (1, 9, 8), (40, 1, 1)])
def test_pairs_are_voxels_of_the_volume_and_a_maximum_begins_one_component(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).standard_normal(shape)
    found = persistence_pairs(values)
    for births, deaths in found:
        ends = np.concatenate([births, deaths[deaths != NEVER]])
        assert ((ends >= 0) & (ends < values.size)).all()
    components = found[0][0]
    assert len(np.unique(components)) == len(components)


def test_equal_values_enter_in_the_order_of_memory() -> None:
    values = np.array([5.0, 1.0, 5.0, 1.0, 5.0]).reshape(1, 1, 5)
    ((births, deaths),) = persistence_pairs(values, (0,))
    assert sorted(zip(births.tolist(), deaths.tolist(), strict=True)) == [(0, NEVER), (2, 1), (4, 3)]


def test_only_the_wanted_dimensions_in_their_order() -> None:
    values = np.random.default_rng(4).standard_normal((6, 7, 5))
    both = persistence_pairs(values)
    for dimensions in ((2,), (1, 0), (0,), (2, 0)):
        for dimension, found in zip(dimensions, persistence_pairs(values, dimensions), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(both[dimension], found, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_is_stable_and_falls(dtype: Any) -> None:
    rng = np.random.default_rng(5)
    for values in (rng.standard_normal(5000) * 10.0 ** rng.integers(-30, 30, 5000), rng.integers(-3, 3, 5000) * -0.0):
        mixed = np.concatenate([values, np.round(rng.standard_normal(999)), [0.0, -0.0, 1e-40, -1e-40]]).astype(dtype)
        names, rank = rng.permutation(len(mixed) + 1)[1:].astype(np.int32), np.full(len(mixed) + 1, -1, np.int32)
        order = falling_order(mixed, names, rank)
        assert np.array_equal(order, names[np.argsort(-mixed, kind="stable")])
        assert np.array_equal(rank[order], np.arange(len(mixed)))
        assert (rank == -1).sum() == 1


def test_little_room_is_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).standard_normal((9, 10, 11))
    expected = persistence_pairs(values)
    monkeypatch.setattr(loops, "FIRST_ROOM", 5)
    for before, after in zip(expected, persistence_pairs(values), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["normal", "binary", "plateaus", "smooth"])
def test_two_threads_give_the_same_bits(kind: str) -> None:
    values = make(kind, (33, 40, 35), np.random.default_rng(0))
    one, two = (persistence_diagrams(values, threads=threads, backend="native") for threads in (1, 2))
    for first, second in zip(one, two, strict=True):
        assert first.points.tobytes() == second.points.tobytes()
        assert first.birth_voxels.tobytes() == second.birth_voxels.tobytes()
        assert first.death_voxels.tobytes() == second.death_voxels.tobytes()


def test_a_volume_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MAX_VOXELS", 100)
    with pytest.raises(ValueError, match=r"\(3, 4, 5\) voxels"):
        persistence_pairs(np.zeros((3, 4, 5)))


def test_threads_do_not_disturb_each_other() -> None:
    volumes = [np.random.default_rng(seed).standard_normal((12, 14, 13)) for seed in range(6)]
    alone = [persistence_pairs(values) for values in volumes]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(persistence_pairs, volumes))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_without_compiled_code_the_pairs_are_the_same() -> None:
    program = (
        "import numpy as np\n"
        "from nnunet_topomae.topology.homology.pairs import persistence_pairs\n"
        "values = np.round(np.random.default_rng(7).standard_normal((4, 5, 6)), 1)\n"
        "print([[part.tolist() for part in pair] for pair in persistence_pairs(values)])\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    values = np.round(np.random.default_rng(7).standard_normal((4, 5, 6)), 1)
    assert eval(run.stdout) == [[part.tolist() for part in pair] for pair in persistence_pairs(values)]


@pytest.fixture
def older_cripser(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """cripser before 0.0.37 writes (0, 0, 0), not (-1, -1, -1), as the death voxel of the class that never dies."""
    compute = cripser.computePH

    def rows(volume: ndarray, maxdim: int) -> ndarray:
        found = compute(volume, maxdim=maxdim)
        endless = found[:, 2] > 1e300
        found[endless, 2], found[endless, 6:] = older.never, 0
        return found

    older = SimpleNamespace(computePH=rows, never=np.finfo(float).max, __spec__=True)
    monkeypatch.setitem(sys.modules, "cripser", older)
    backends._cripser.cache_clear()
    yield older
    backends._cripser.cache_clear()


def test_a_cripser_that_ends_the_first_component_at_voxel_0_is_read_rightly(older_cripser: SimpleNamespace) -> None:
    values = np.array([3.0, 4.0, 2.0, 1.0]).reshape(1, 1, 4)
    assert points(values, "cripser")[0] == [(4.0, 1.0)]


def test_a_cripser_that_is_wrong_is_refused_with_its_version(older_cripser: SimpleNamespace) -> None:
    older_cripser.never = -1.0  # the first component would end at voxel 0
    message = rf"cripser {version('cripser')} gives wrong .* pip install \"cripser>=0\.0\.37\", or .* native"
    for use in (lambda: TopologicalLoss(backend="cripser"), lambda: persistence_diagrams([1.0], backend="cripser")):
        with pytest.raises(RuntimeError, match=message):
            use()


def test_the_floor_of_cripser_is_that_of_the_package() -> None:
    needs = [Requirement(need) for need in requires("nnunet-topomae") or ()]
    assert [str(need.specifier) for need in needs if need.name == "cripser"] == [f">={backends.CRIPSER_FLOOR}"]


def bits(mask: int) -> list[int]:
    return [bit for bit in range(12) if mask >> bit & 1]


def stars() -> list[tuple[int, int, int]]:
    """All lower stars by definition: with a cell, its faces that touch the voxel."""
    found = []
    for edges in range(64):
        squares = [s for s, ends in enumerate(SQUARES) if all(edges >> end & 1 for end in ends)]
        for count in range(len(squares) + 1):
            for chosen in combinations(squares, count):
                mask = sum(1 << s for s in chosen)
                cubes = [c for c, sides in enumerate(SQUARES_OF_CUBE) if all(mask >> side & 1 for side in sides)]
                found += [
                    (edges, mask, sum(1 << c for c in some))
                    for k in range(len(cubes) + 1)
                    for some in combinations(cubes, k)
                ]
    return found


def test_cells_are_numbered_by_their_directions() -> None:
    assert all(np.array_equal(np.add(DIRECTIONS[d], DIRECTIONS[d ^ 1]), (0, 0, 0)) for d in range(6))
    assert (len(SQUARES), len(CUBES)) == (12, 8)
    assert all(set(SQUARES[side]) < set(CUBES[c]) for c, sides in enumerate(SQUARES_OF_CUBE) for side in sides)


@pytest.mark.slow
def test_every_lower_star_has_its_own_row_and_as_few_critical_cells_as_its_topology_allows() -> None:
    table = lower_stars()
    rows = set()
    for edges, squares, cubes in stars():
        row = int(table.first[edges | squares << 6]) + int(table.place[table.cubes_of_squares[squares], cubes])
        rows.add(row)
        partners = table.edges[6 * row : 6 * row + 6] >> 3
        assert all((partners[e] == 15) == (not edges >> e & 1) for e in range(6))
        # One edge is paired with the voxel, if there is any; every other component has one critical edge.
        assert (partners == VERTEX).sum() == (edges != 0)
        critical = [e for e in range(6) if partners[e] == CRITICAL]
        assert bits(int(table.critical_edges[row])) == critical
        assert len(critical) == max(components(edges, squares) - 1, 0)
        listed = table.next_cube[row][table.next_cube[row] != NOTHING].tolist()
        assert sorted(entry & 7 for entry in listed) == bits(cubes)
        critical_cubes = sum(entry >= 64 for entry in listed)
        assert critical_cubes == (cubes == 255)
        # Euler characteristic: all cells, or the critical ones alone (the voxel counts as one cell, if it is critical).
        critical_squares = len(bits(int(table.critical_squares[row])))
        every = 1 - len(bits(edges)) + len(bits(squares)) - len(bits(cubes))
        assert (edges == 0) - len(critical) + critical_squares - critical_cubes == every
    assert rows == set(range(15935))


def components(edges: int, squares: int) -> int:
    """Components of the graph of edges joined by squares."""
    label = {edge: edge for edge in bits(edges)}
    for square in bits(squares):
        one, other = (label[end] for end in SQUARES[square])
        label = {edge: one if of == other else of for edge, of in label.items()}
    return len(set(label.values()))
