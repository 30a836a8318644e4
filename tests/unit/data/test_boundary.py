"""The boundary target against scipy and scikit-image, and the corruptions by what they keep."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, median_filter
from skimage.filters import scharr

from nnunet_topomae.data import boundary
from nnunet_topomae.data.boundary import LEVELS, boundary_map, median_of_levels
from nnunet_topomae.data.boundary_task import BoundaryTask
from nnunet_topomae.data.corruptions import (
    Corruption,
    change_intensities,
    paint_inside,
    paint_outside,
    shuffle_locally,
)


def _image(shape: tuple[int, ...], noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=shape), 2) * 2 + 0.5
    return np.clip(smooth + noise * rng.normal(size=shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(20, 24, 28), (3, 9, 17), (1, 1, 6), (2, 2, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_boundaries_are_those_of_the_literal_filters(shape: tuple[int, ...], noise: float) -> None:
    image = _image(shape, noise)
    literal = np.clip((scharr(median_filter(image, 5)) - 0.01) * 30, 0, 1)
    # Rounding to 4095 levels moves a median by at most 1/8190, and a derivative by twice as much.
    np.testing.assert_allclose(boundary_map(image), literal, atol=30 * 2 / 8190)
    levels = np.rint(image * (LEVELS - 1)).astype(np.uint16)
    np.testing.assert_array_equal(median_of_levels(levels), median_filter(levels, 5))


def test_without_a_compiler_the_boundaries_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = _image((7, 8, 9))
    compiled = boundary_map(image)
    monkeypatch.setattr(boundary, "COMPILED", False)
    np.testing.assert_allclose(boundary_map(image), compiled, atol=1e-5)


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="below 4096, got 4096"):
        median_of_levels(np.full((2, 2, 2), 4096, np.uint16))


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (300.0, -1000.0), (1e-3, 5.0)])
def test_boundaries_do_not_depend_on_the_scale_of_intensities(factor: float, offset: float) -> None:
    image = _image((2, 12, 14, 16))
    task = BoundaryTask(Corruption(0.0, 0.0, 0.0))
    values = (image * factor + offset).astype(np.float32)
    volume = torch.from_numpy(values)
    corrupted, boundaries = task(volume, task.range_of("a", lambda _: values), np.random.default_rng(0))
    reference = BoundaryTask(Corruption(0.0, 0.0, 0.0))
    expected = reference(torch.from_numpy(image), reference.range_of("a", lambda _: image), np.random.default_rng(0))[1]
    torch.testing.assert_close(boundaries, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(corrupted, volume, rtol=1e-4, atol=1e-6)  # nothing was asked for


def test_a_constant_image_has_no_boundaries_and_is_read_once() -> None:
    reads: list[str] = []

    def read(case: str) -> np.ndarray:
        reads.append(case)
        return np.full((1, 9, 8, 7), 3.0, np.float32)

    task = BoundaryTask(Corruption(1.0, 1.0, 1.0))
    for _ in range(2):
        corrupted, boundaries = task(torch.full((1, 4, 4, 4), 3.0), task.range_of("a", read), np.random.default_rng(0))
        assert torch.all(boundaries == 0) and torch.isfinite(corrupted).all()
    assert reads == ["a"]


@pytest.mark.parametrize("transform", [shuffle_locally, change_intensities, paint_inside, paint_outside])
@pytest.mark.parametrize("shape", [(2, 20, 24, 28), (1, 1, 6, 7), (1, 1, 1, 1)])
def test_corruptions_use_their_generator_alone_and_work_for_thin_crops(transform: Any, shape: tuple[int, ...]) -> None:
    crop = _image(shape)
    original, state = crop.copy(), np.random.get_state()[1].copy()
    first, second = (transform(crop, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == shape and first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
    np.testing.assert_array_equal(crop, original)
    assert np.array_equal(np.random.get_state()[1], state)
    if min(shape[1:]) > 1:
        assert not np.array_equal(first, transform(crop, np.random.default_rng(4)))


def test_shuffling_keeps_the_values_and_what_channels_share() -> None:
    crop = np.stack([_image((30, 30, 30)), 1 - _image((30, 30, 30))])
    shuffled = shuffle_locally(crop, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(shuffled[0], axis=None), np.sort(crop[0], axis=None))
    np.testing.assert_array_equal(shuffled[1], 1 - shuffled[0])
    assert 0.05 < (shuffled != crop).mean() < 1.0
    # Voxels stay near their place.
    blurred = [gaussian_filter(values[0], 4) for values in (crop, shuffled)]
    assert np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1] > 0.95


def test_intensities_change_by_a_monotone_curve() -> None:
    crop = np.linspace(-0.5, 1.5, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    directions = set()
    for seed in range(20):
        changed = change_intensities(crop, np.random.default_rng(seed)).ravel()
        steps = np.sign(np.diff(changed)).tolist()
        assert not {1.0, -1.0} <= set(steps)
        directions.add(float(np.sign(changed[-1] - changed[0])))
        assert {changed.min(), changed.max()} == {0.0, 1.0}
    assert directions == {1.0, -1.0}


def test_painting_keeps_the_rest() -> None:
    crop = np.full((2, 24, 30, 36), 2.0, np.float32)  # noise is below 1
    inside = [(paint_inside(crop, np.random.default_rng(seed)) == 2.0).mean() for seed in range(20)]
    outside = [(paint_outside(crop, np.random.default_rng(seed)) == 2.0).mean() for seed in range(20)]
    assert all(0.3 < share < 1.0 for share in inside) and all(0.1 < share <= 1.0 for share in outside)
    painted = paint_inside(crop, np.random.default_rng(0))
    np.testing.assert_array_equal(painted[0] == 2.0, painted[1] == 2.0)  # the same blocks in all channels


def test_each_corruption_has_its_probability() -> None:
    crop = np.full((1, 12, 12, 12), 2.0, np.float32)
    painted = [not np.all(Corruption(0.0, 0.0, 0.75)(crop, np.random.default_rng(s)) == 2.0) for s in range(200)]
    assert np.mean(painted) == pytest.approx(0.75, abs=0.1)
    untouched = Corruption(0.0, 0.0, 0.0)(crop, np.random.default_rng(0))
    assert np.array_equal(untouched, crop) and untouched is not crop
