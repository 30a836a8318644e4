import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.training.reconstruction import key_point_error_mm, reconstruction_metrics


def test_metrics_against_skimage_on_hidden_voxels() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 8, 9, 10)).astype(np.float32)
    reconstruction = target + 0.1 * rng.normal(size=target.shape).astype(np.float32)
    hidden = rng.random((8, 9, 10)) < 0.5
    metrics = reconstruction_metrics(reconstruction, target, hidden)
    pair = target[:, hidden].astype(np.float64), reconstruction[:, hidden].astype(np.float64)
    assert metrics["mse"] == pytest.approx(np.mean((pair[0] - pair[1]) ** 2), rel=1e-6)
    data_range = float(target.max() - target.min())
    assert metrics["psnr"] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=data_range), rel=1e-6)
    assert 0.5 < metrics["ssim"] < 1.0


def test_visible_voxels_do_not_count() -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=(1, 8, 9, 10)).astype(np.float32)
    hidden = rng.random((8, 9, 10)) < 0.5
    wrong_where_visible = np.where(hidden, target, 100.0).astype(np.float32)
    metrics = reconstruction_metrics(wrong_where_visible, target, hidden)
    assert metrics["mse"] == 0.0 and metrics["psnr"] == float("inf") and metrics["ssim"] == pytest.approx(1.0)


def test_thin_crop_has_no_ssim() -> None:
    target = np.zeros((1, 2, 9, 10), np.float32)
    assert np.isnan(reconstruction_metrics(target, target, np.ones((2, 9, 10), bool))["ssim"])


def test_key_point_error_in_mm() -> None:
    location = CropLocation((0, 0, 0), (4, 5, 6), (10, 20, 40))
    true = location.key_points()
    predicted = true.copy()
    predicted[:, 1] += 0.1  # a tenth of half the volume: 10 voxels of 1.5 mm
    assert key_point_error_mm(predicted, true, location, (3.0, 1.5, 0.5)) == pytest.approx(1.5, rel=1e-5)
