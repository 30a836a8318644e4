import json
from pathlib import Path

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from skimage.metrics import peak_signal_noise_ratio

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopoMAEConfig
from nnunet_topomae.data.boundary_task import BoundaryTask
from nnunet_topomae.data.corruptions import Corruption
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.transforms import Places
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.masking import CropMask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.previews import Preview
from nnunet_topomae.training.spatial_results import SpatialErrors
from nnunet_topomae.training.validation import (
    ReconstructionValidation,
    key_point_error_mm,
    reconstruction_metrics,
)


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


class _Loader(CropLocationLoader):
    """A loader of one volume in memory, padded with 0."""

    def __init__(self, volume: torch.Tensor) -> None:
        self.volume = volume
        self.places = Places((16, 24, 8))
        self.boundaries = None

    def image(self, case: str) -> torch.Tensor:
        return self.volume

    def cut(self, case: str, image: torch.Tensor, location: CropLocation) -> torch.Tensor:
        return crop_and_pad_nd(image, [list(bounds) for bounds in location.bounds], 0)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["vit", "partner"])
def test_validation_shows_what_was_trained_and_measures_no_padding(tmp_path: Path, branch: str) -> None:
    architecture = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
    shape = derive_network_shape((16, 24, 8), [[1, 1, 1], *[[2, 2, 2]] * 3], architecture)
    plan = Plan(TopoMAEConfig(architecture), shape, (3.0, 1.5, 0.5), {})
    wrong = torch.full((1, 9, 3), 0.5)

    def predict(data: torch.Tensor, mask: CropMask) -> CoPretrainingOutput:
        rebuilt = torch.where(data == 0, torch.full_like(data, 1e3), data + 0.1)  # 0.1 off inside, junk in the padding
        return CoPretrainingOutput(**{"vit": None, "partner": None, branch: BranchOutput(rebuilt, wrong)})

    lines: list[str] = []
    volume = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 6, 20, 24)).astype(np.float32))
    validation = ReconstructionValidation(predict, _Loader(volume), plan, torch.device("cpu"))
    summary = validation.run(["a", "b"], tmp_path, lines.append)["reconstruction"]
    assert list(summary["mean"]) == list(summary["cases"]["a"]) == list(summary["cases"]["b"]) == [branch]
    assert summary["mean"][branch]["mse"] == pytest.approx(0.01, rel=1e-3)
    assert summary["mean"][branch]["ssim"] > 0.85
    assert json.loads((tmp_path / "summary.json").read_text())["reconstruction"] == summary
    assert [f"PSNR {name}" in lines[0] for name in ("vit", "partner")] == [branch == "vit", branch == "partner"]
    assert lines[-2].startswith("Mean reconstruction")
    assert lines[-1].startswith("key points of 8 random crops") and lines[-1].endswith("did not learn them")
    assert Preview.load(tmp_path / "previews" / "a.npz").columns == ("input", "masked", branch)


@pytest.mark.slow
def test_the_file_has_the_errors_of_vectors_and_boundaries_and_the_preview_what_was_rebuilt(tmp_path: Path) -> None:
    architecture = ArchitectureConfig(vit="none", dims=(8, 8, 16, 16), depth=1)
    shape = derive_network_shape((16, 24, 8), [[1, 1, 1], *[[2, 2, 2]] * 3], architecture)
    section = PretrainingConfig(target="boundary", spatial="vectors")
    plan = Plan(TopoMAEConfig(architecture, section), shape, (3.0, 1.5, 0.5), {})
    volume = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 14, 30, 24)).astype(np.float32))
    loader = _Loader(volume)
    loader.boundaries = BoundaryTask(Corruption(section.shuffle, section.bezier, section.paint))

    def predict(data: torch.Tensor, mask: CropMask) -> CoPretrainingOutput:
        answer = BranchOutput(data, None, torch.full((1, 9, 3), 0.5), torch.full_like(data, 0.25))
        return CoPretrainingOutput(None, answer)

    lines: list[str] = []
    ReconstructionValidation(predict, loader, plan, torch.device("cpu")).run(["a"], tmp_path, lines.append)
    summary = json.loads((tmp_path / "summary.json").read_text())
    preview = Preview.load(tmp_path / "previews" / "a.npz")
    assert preview.columns == ("input", "masked", "partner", "boundaries", "boundaries_partner")
    assert preview.boundaries is not None and preview.partner is not None and not preview.hidden.any()
    assert np.array_equal(preview.partner, preview.masked) and not np.array_equal(preview.masked, preview.input)
    boundaries = preview.boundaries[1:15]  # without the padding
    assert boundaries.max() > 0.5
    found = summary["reconstruction"]["cases"]["a"]["partner"]
    assert found["boundary_error"] == pytest.approx(np.abs(boundaries - 0.25).mean(), rel=1e-4)
    assert summary["reconstruction"]["mean"]["partner"] == found and "key_point_error_mm" not in found
    (task,) = summary["spatial"]
    vectors = summary["spatial"]["vectors"]
    assert task == "vectors" and set(vectors) == {"partner", "mean_answer", "crops"} and vectors["crops"] == 4
    for errors in (vectors["partner"], vectors["mean_answer"]):
        assert set(errors) == {"mm", "degrees"} and 0 < errors["mm"] < 100 and 0 < errors["degrees"] < 180
    assert lines[-1] == SpatialErrors.read("vectors", vectors).line()


@pytest.mark.slow
def test_a_volume_within_one_token_is_measured_all_the_same(tmp_path: Path) -> None:
    architecture = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
    shape = derive_network_shape((16, 24, 40), [[1, 1, 1], *[[2, 2, 2]] * 3], architecture)
    plan = Plan(TopoMAEConfig(architecture), shape, (1.0, 1.0, 1.0), {})
    loader = _Loader(torch.ones(1, 1, 1, 1))

    def predict(data: torch.Tensor, mask: CropMask) -> CoPretrainingOutput:
        return CoPretrainingOutput(BranchOutput(data + 1, torch.zeros(1, 9, 3)), None)

    validation = ReconstructionValidation(predict, loader, plan, torch.device("cpu"))
    summary = validation.run([str(number) for number in range(5)], tmp_path, lambda _: None)["reconstruction"]
    assert [metrics["vit"]["mse"] for metrics in summary["cases"].values()] == pytest.approx([1.0] * 5)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        reconstruction_metrics(np.zeros((1, 8, 9, 10)), np.zeros((1, 8, 9, 10)), np.zeros((8, 9, 10), bool))


def test_thin_crop_has_no_ssim() -> None:
    target = np.zeros((1, 2, 9, 10), np.float32)
    assert np.isnan(reconstruction_metrics(target, target, np.ones((2, 9, 10), bool))["ssim"])


def test_key_point_error_in_mm() -> None:
    location = CropLocation((0, 0, 0), (4, 5, 6), (10, 20, 40))
    true = location.key_points()
    predicted = true.copy()
    predicted[:, 1] += 0.1  # a tenth of half the volume: 10 voxels of 1.5 mm
    assert key_point_error_mm(predicted, true, location, (3.0, 1.5, 0.5)) == pytest.approx(1.5, rel=1e-5)
