import pickle
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_topomae.topology import PersistenceDiagrams, persistence_diagrams

SHAPES = [(3, 4, 5), (2, 7, 3), (1, 4, 6), (5, 6), (9,), (1, 1, 1)]


def volume(shape: tuple[int, ...], seed: int = 0, decimals: int | None = None) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values if decimals is None else np.round(values, decimals)


def rows(points: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, points.tolist()))


def same(first: PersistenceDiagrams, second: PersistenceDiagrams) -> bool:
    return all(rows(first[k].points) == rows(second[k].points) for k in range(3))


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["native", "cripser", "gudhi"])
def test_points_are_the_values_of_their_voxels(backend: str, shape: tuple[int, ...], decimals: int | None) -> None:
    values = volume(shape, decimals=decimals)
    diagrams = persistence_diagrams(values, backend=backend)
    assert diagrams.volume_shape == shape
    for k in range(3):
        entry = diagrams[k]
        np.testing.assert_array_equal(values.reshape(-1)[entry.birth_voxels], entry.points[:, 0])
        np.testing.assert_array_equal(values.reshape(-1)[entry.death_voxels], entry.points[:, 1])
        assert (entry.points[:, 0] >= entry.points[:, 1]).all()


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_backends_agree(shape: tuple[int, ...], decimals: int | None) -> None:
    values = volume(shape, 1, decimals)
    assert same(persistence_diagrams(values, backend="cripser"), persistence_diagrams(values, backend="gudhi"))


@pytest.mark.parametrize("backend", ["native", "cripser", "gudhi"])
def test_the_first_component_ends_at_the_minimum(backend: str) -> None:
    values = volume((4, 3, 5), 2)
    points = persistence_diagrams(values, backend=backend)[0].points
    assert [values.max(), values.min()] in points.tolist()


def test_a_hollow_cube_has_one_component_and_one_void() -> None:
    values = np.zeros((5, 6, 7))
    values[1:4, 1:4, 1:4] = 3.0
    values[2, 2, 2] = 1.0
    diagrams = persistence_diagrams(values)
    assert rows(diagrams[0].points) == [(3.0, 0.0)]
    assert rows(diagrams[1].points) == []
    assert rows(diagrams[2].points) == [(3.0, 1.0)]


def test_a_ring_has_one_loop() -> None:
    values = np.zeros((3, 5, 6))
    values[1, 1:4, 1:4] = 2.0
    values[1, 2, 2] = 0.0
    diagrams = persistence_diagrams(values)
    assert [rows(diagrams[k].points) for k in range(3)] == [[(2.0, 0.0)], [(2.0, 0.0)], []]


def test_a_plane_is_a_volume_of_one_slice() -> None:
    values = volume((6, 7), 3)
    assert same(persistence_diagrams(values), persistence_diagrams(values[:, None, :]))


@pytest.mark.parametrize("backend", ["native", "cripser", "gudhi"])
def test_constant_volume_and_single_voxel(backend: str) -> None:
    for values in (np.full((2, 3, 4), 5), np.array([[[5.0]]])):
        diagrams = persistence_diagrams(values, backend=backend)
        assert [rows(diagrams[k].points) for k in range(3)] == [[(5.0, 5.0)], [], []]


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, bool, np.float32, np.float16])
def test_any_real_type(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 9, (3, 4, 5)).astype(dtype)
    assert same(persistence_diagrams(values), persistence_diagrams(values.astype(np.float64)))


def test_tensors_and_strided_arrays() -> None:
    values = volume((4, 5, 6), 4)
    expected = persistence_diagrams(values)
    assert same(persistence_diagrams(torch.from_numpy(values).requires_grad_()), expected)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 0, 2)), 2, 0)
    assert not strided.flags.c_contiguous
    assert same(persistence_diagrams(strided), expected)
    half = torch.from_numpy(values).to(torch.bfloat16)
    assert same(persistence_diagrams(half), persistence_diagrams(half.double().numpy()))


def test_flipping_and_transposing_moves_no_point() -> None:
    values = volume((3, 5, 4), 5)
    expected = persistence_diagrams(values)
    assert same(persistence_diagrams(values[::-1, :, ::-1]), expected)
    assert same(persistence_diagrams(values.transpose(2, 0, 1)), expected)


def test_only_the_wanted_dimensions() -> None:
    diagrams = persistence_diagrams(volume((3, 4, 5)), dimensions=(2, 0))
    assert diagrams.dimensions == (2, 0)
    with pytest.raises(ValueError, match="dimension 1 was not computed"):
        diagrams[1]


def test_diagrams_survive_pickling() -> None:
    diagrams = persistence_diagrams(volume((3, 4, 5)))
    assert same(pickle.loads(pickle.dumps(diagrams)), diagrams)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = volume((3, 4, 5))
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match="1 of 60 values are NaN or infinite"):
        persistence_diagrams(values)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5), (), (3, 0, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one volume of shape"):
        persistence_diagrams(np.zeros(shape))


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="complex128"):
        persistence_diagrams(np.zeros((2, 3, 4), dtype=complex))


@pytest.mark.parametrize("dimensions", [(), (0, 0), (3,), (-1,)])
def test_other_dimensions_are_refused(dimensions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="distinct and out of 0, 1, 2"):
        persistence_diagrams(np.zeros((2, 3, 4)), dimensions)


def test_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown persistent homology backend 'ripser'"):
        persistence_diagrams(np.zeros((2, 3, 4)), backend="ripser")
    monkeypatch.setattr("nnunet_topomae.topology.backends.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install gudhi"):
        persistence_diagrams(np.zeros((2, 3, 4)), backend="gudhi")


def test_diagrams_can_be_listed() -> None:
    diagrams = persistence_diagrams(volume((3, 4, 5)), dimensions=(2, 0))
    assert [len(diagram) for diagram in diagrams] == [len(diagrams[2]), len(diagrams[0])]
    assert len(diagrams) == 2
