"""Segmentation metrics against two other libraries (extra `crosscheck`)."""

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_topomae.evaluation.metrics import hd95, nsd, voxel_hd95

SPACINGS = [(3.0, 1.5, 0.8), (1.0, 1.0, 1.0)]


def blobs(seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    first = gaussian_filter(generator.standard_normal((20, 30, 34)), 2)
    second = first + 0.6 * gaussian_filter(generator.standard_normal(first.shape), 2)
    return first > np.quantile(first, 0.8), second > np.quantile(second, 0.8)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_surface_distance(seed: int, spacing: tuple[float, float, float]) -> None:
    library = pytest.importorskip("surface_distance")
    truth, prediction = blobs(seed)
    distances = library.compute_surface_distances(truth, prediction, spacing)
    expected = library.compute_robust_hausdorff(distances, 95)
    assert hd95(truth, prediction, spacing) == pytest.approx(expected, rel=1e-9)
    for tolerance in (0.5, 2.0):
        # Its table triangulates ambiguous blocks otherwise, so that some areas differ a little.
        expected = library.compute_surface_dice_at_tolerance(distances, tolerance)
        assert nsd(truth, prediction, spacing, tolerance) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_published_hd95_is_that_of_medpy(seed: int) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    truth, prediction = blobs(seed)
    assert voxel_hd95(truth, prediction) == pytest.approx(binary.hd95(truth, prediction), rel=1e-12)
