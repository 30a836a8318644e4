"""Persistent homology from first principles: cells, boundaries and the reduction of the boundary matrix."""

from itertools import product

import numpy as np
import pytest

from nnunet_topomae.topology import persistence_diagrams

Cell = tuple[int, int, int]


def cells_of(volume: np.ndarray) -> dict[Cell, float]:
    """All cells in doubled coordinates (odd = extended along that axis) with their super-level values."""
    shape = volume.shape
    cells = {}
    for cell in product(*(range(2 * size - 1) for size in shape)):
        corners = product(*({c // 2, (c + 1) // 2} for c in cell))
        cells[cell] = min(float(volume[corner]) for corner in corners)
    return cells


def dimension_of(cell: Cell) -> int:
    return sum(c % 2 for c in cell)


def boundary_of(cell: Cell) -> set[Cell]:
    faces = set()
    for axis in range(3):
        if cell[axis] % 2:
            for step in (-1, 1):
                face = list(cell)
                face[axis] += step
                faces.add((face[0], face[1], face[2]))
    return faces


def naive_diagrams(volume: np.ndarray) -> list[list[tuple[float, float]]]:
    """Points of positive persistence in dimensions 0, 1, 2, and the essential component."""
    cells = cells_of(volume)
    order = sorted(cells, key=lambda cell: (-cells[cell], dimension_of(cell), cell))
    rank = {cell: i for i, cell in enumerate(order)}
    reduced: dict[int, set[int]] = {}  # lowest entry -> column
    points: list[list[tuple[float, float]]] = [[(float(volume.max()), float(volume.min()))], [], []]
    for cell in order:
        column = {rank[face] for face in boundary_of(cell)}
        while column and max(column) in reduced:
            column ^= reduced[max(column)]
        if column:
            lowest = max(column)
            reduced[lowest] = column
            birth, death = cells[order[lowest]], cells[cell]
            if birth > death:
                points[dimension_of(cell) - 1].append((birth, death))
    return [sorted(dimension) for dimension in points]


def euler_characteristic(cells: dict[Cell, float], level: float) -> int:
    return sum((-1) ** dimension_of(cell) for cell, value in cells.items() if value >= level)


@pytest.mark.parametrize("backend", ["cripser", "gudhi"])
@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 3, 3), (1, 5, 4), (3, 1, 1)])
def test_diagrams_by_matrix_reduction(shape: tuple[int, int, int], decimals: int, backend: str) -> None:
    for seed in range(4):
        volume = np.round(np.random.default_rng(seed).normal(0.0, 1.5, shape), decimals)
        diagrams = persistence_diagrams(volume, backend=backend)
        found = [sorted(map(tuple, diagrams[k].points.tolist())) for k in range(3)]
        assert found == naive_diagrams(volume)


@pytest.mark.parametrize("shape", [(5, 6, 4), (7, 4, 5)])
def test_betti_numbers_give_the_euler_characteristic(shape: tuple[int, int, int]) -> None:
    """chi of every super-level set = sum_k (-1)^k (points alive at that level)."""
    volume = np.random.default_rng(1).random(shape)
    cells, diagrams = cells_of(volume), persistence_diagrams(volume)
    for level in np.sort(volume.ravel())[1::7]:
        alive = [
            int(((d.points[:, 0] >= level) & (d.points[:, 1] < level)).sum())
            for d in map(diagrams.__getitem__, range(3))
        ]
        assert alive[0] - alive[1] + alive[2] == euler_characteristic(cells, level)
