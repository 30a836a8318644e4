"""The probe of pre-training: its regression against scikit-free closed forms, and what it makes of known features."""

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.vit import ViTEncoder, ViTPreset
from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.data.labelled_crops import NO_LABEL, LabelledCrop, foreground_location, read_labelled_crop, spread
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.training import probe as probe_module
from nnunet_topomae.training.plots import measured_series
from nnunet_topomae.training.probe import (
    RidgeReadOut,
    encoder_features,
    features_at,
    mean_dice,
    plateau,
    probe,
    probe_all,
    voxels_to_fit,
)

CPU = torch.device("cpu")


def test_ridge_equals_gradient_descent_on_its_own_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + 5
    labels = (features[:, 1] > 5).long() * 2 + (features[:, 0] > 6).long() * 3
    read_out = RidgeReadOut(features, labels, penalty=0.5)
    standard = (features.double() - features.double().mean(0)) / features.double().std(0)
    wanted = (labels[:, None] == labels.unique()).double()
    wanted -= wanted.mean(0)
    weights = torch.zeros(3, len(labels.unique()), dtype=torch.float64)
    for _ in range(2000):
        weights -= 0.01 * (standard.T @ (standard @ weights - wanted) + 20.0 * weights)
    assert torch.allclose(read_out.weights, weights, atol=1e-8)


def test_a_whole_crop_is_segmented_as_its_voxels_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are interpolated instead of features; classes are read in parts."""
    monkeypatch.setattr(probe_module, "CLASSES_AT_ONCE", 2)
    generator, shape = torch.Generator().manual_seed(0), (5, 6, 7)
    maps = [torch.randn(1, 3, *size, generator=generator) * 10 + 50 for size in (shape, (3, 3, 4), (1, 2, 2))]
    voxels = torch.cartesian_prod(*map(torch.arange, shape))
    features = features_at(maps, voxels, shape)
    labels = torch.randint(4, (len(voxels),), generator=generator) * 2 + 1
    read_out = RidgeReadOut(features, labels)
    standard = (features.double() - read_out.mean) / read_out.scale
    wanted = read_out.classes[(standard @ read_out.weights + read_out.offset).argmax(1)]
    assert len(wanted.unique()) == 4 and torch.equal(read_out.segment(maps, shape).flatten(), wanted)


def test_features_are_those_of_the_voxels_grid_and_of_coarser_ones() -> None:
    shape = (3, 4, 6)
    fine = torch.arange(2.0 * 72).reshape(1, 2, *shape)
    coarse = torch.arange(3.0).reshape(1, 1, 1, 1, 3)
    voxels = torch.tensor([[0, 0, 0], [2, 3, 5], [1, 2, 3], [0, 1, 2]])
    found = features_at([fine, coarse], voxels, shape)
    assert torch.allclose(found[:, :2], fine[0][:, *voxels.T].T, atol=1e-4)
    # Centres of coarse cells are at 0.5, 2.5, 4.5; beyond them the border's value holds.
    assert torch.allclose(found[:, 2], torch.tensor([0.0, 2.0, 1.25, 0.75]), atol=1e-5)


class _Intensity(nn.Module):
    """An encoder whose features are the image itself, at full and at half resolution."""

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [data, nn.functional.avg_pool3d(data, 2)]


class _Alone(nn.Module):
    """An encoder whose only feature is the image itself."""

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [data]


def _crops(count: int, noise: float = 0.0) -> list[LabelledCrop]:
    """Boxes of two structures, whose intensities are their labels."""
    rng, crops = np.random.default_rng(0), []
    for number in range(count):
        labels = np.zeros((8, 10, 12), dtype=np.int64)
        labels[2:5, 2:6, 1:5], labels[5:7, 6:9, 7 : 10 + number % 2], labels[:, :, -1] = 1, 2, NO_LABEL
        image = np.eye(3)[labels].transpose(3, 0, 1, 2) + noise * rng.normal(size=(3, *labels.shape))
        crops.append(LabelledCrop(f"c{number}", torch.from_numpy(image).float(), labels))
    return crops


def test_a_read_out_of_separable_features_is_perfect_and_one_of_noise_is_not() -> None:
    assert probe(_Intensity(), _crops(4), CPU) == 1.0
    assert probe(_Intensity(), _crops(4, noise=30.0), CPU) < 0.5
    assert probe(_Intensity(), _crops(4, 0.5), CPU) == probe(_Intensity(), _crops(4, 0.5), CPU)


def test_features_of_the_vit_are_maps_of_its_middle_and_last_layer() -> None:
    encoder = ViTEncoder((2, 1, 3), (4, 6, 2), 1, ViTPreset(12, 4, 2, 6, 1, 1)).eval()
    maps = encoder_features(encoder, torch.rand(1, 8, 6, 6))
    assert [tuple(features.shape) for features in maps] == [(1, 12, 2, 1, 3)] * 2


def test_voxels() -> None:
    labels = _crops(1)[0].labels
    fitted = voxels_to_fit(labels, 40, seed=1)
    counts = np.bincount(labels[tuple(fitted.T)])
    assert counts.tolist() == [20, 10, 10] and np.array_equal(fitted, voxels_to_fit(labels, 40, seed=1))


@pytest.mark.parametrize(("shape", "size"), [((96, 96, 96), (3, 3, 3)), ((16, 160, 160), (1, 40, 40))])
def test_a_small_structure_in_the_middle_of_a_large_crop_is_scored(
    shape: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    crops = []
    for number in range(2):
        labels = np.zeros(shape, dtype=np.int64)
        labels[tuple(slice(n // 2 - 1, n // 2 - 1 + edge) for n, edge in zip(shape, size, strict=True))] = 1
        crops.append(LabelledCrop(f"c{number}", torch.from_numpy(labels[None]).float(), labels))
    assert probe(_Alone(), crops, CPU) == 1.0
    crops[1].data[0, 0] = 1.0  # the first slice looks like the structure
    false = np.prod(shape[1:])
    assert probe(_Alone(), crops, CPU) == pytest.approx(2 * np.prod(size) / (2 * np.prod(size) + false))


def test_dice_averages_the_structures_that_there_are() -> None:
    true, predicted = np.array([0, 1, 1, 2, 2, 0]), np.array([3, 1, 0, 2, 2, 2])
    assert mean_dice(predicted, true) == pytest.approx((2 * 1 / 3 + 2 * 2 / 5) / 2)
    assert np.isnan(mean_dice(true * 0, true * 0))


def test_the_record_has_the_scores_and_the_log_the_cost() -> None:
    lines: list[str] = []
    crops = _crops(2)

    def read() -> list[LabelledCrop]:
        time.sleep(0.01)
        return crops

    record = probe_all({"partner": _Intensity()}, read, CPU, 10.0, lines.append)["probe"]
    assert record["partner"] == 1.0 and 0.01 < record["seconds"] < 5
    assert "partner 1.000" in lines[0] and "% of the epoch" in lines[0]
    assert probe_all({"partner": _Intensity()}, lambda: crops[:1], CPU, 10.0, lines.append) == {}
    assert "needs two training cases with labelled voxels" in lines[1]
    assert measured_series([{"epoch": 3, "probe": record}]) == {"probe, mean Dice": {"partner": [(3, 1.0)]}}


def test_a_probe_without_a_structure_to_score_is_not_measured_and_ends_nothing() -> None:
    lines: list[str] = []
    crops = _crops(2)
    crops[1].labels[crops[1].labels > 0] = 0
    record = probe_all({"partner": _Intensity()}, lambda: crops, CPU, 1e3, lines.append)
    assert list(record["probe"]) == ["seconds"] and "partner not measured" in lines[0] and len(lines) == 1
    assert plateau([{"epoch": epoch, **record} for epoch in range(3)], 1) is None
    nothing = {"probe": {"vit": float("nan"), "seconds": 1.0}}  # as earlier versions have written it
    scored = {"probe": {"vit": 0.5, "seconds": 1.0}}
    records = [{"epoch": epoch, **found} for epoch, found in enumerate([scored, nothing, nothing, scored])]
    assert plateau(records, 2) is None
    reason = plateau(records, 1)
    assert reason is not None and "1 probes after epoch 1, with Dice 0.500," in reason


def test_a_probe_that_costs_much_of_its_epoch_is_named_with_the_cure() -> None:
    def logged(epoch_seconds: float) -> list[str]:
        lines: list[str] = []
        probe_all({"partner": _Intensity()}, lambda: _crops(2), CPU, epoch_seconds, lines.append)
        return lines[1:]

    assert logged(1e6) == []
    (line,) = logged(1e-6)
    assert line.startswith("warning: the probe took more than 5 % of its epoch's time") and "probe_every" in line


def test_crops_lie_around_what_is_labelled() -> None:
    labels = np.full((1, 6, 20, 20), -1, dtype=np.int8)
    labels[0, 2:4, 15:19, 0:3] = 1
    labels[0, 0, 0, 0] = 7
    crop = read_labelled_crop("a", labels, (8, 8, 8), 7, lambda where: torch.zeros(1, 8, 8, 8))
    assert crop is not None and np.sum(crop.labels == 1) == 24
    assert (crop.labels[0] == NO_LABEL).all() and (crop.labels[1:7] >= 0).all()  # padded, and -1 is background
    assert read_labelled_crop("b", labels * 0, (8, 8, 8), None, lambda where: torch.zeros(1, 8, 8, 8)) is None
    location = foreground_location(labels[0].clip(0), (4, 8, 8))
    assert location is not None and location.lower[1:] == (12, 0)
    two = np.zeros((20, 20, 20), dtype=np.int64)
    two[1, 1, 1:3] = two[18, 18, 17:19] = 1  # half-way there is nothing
    location = foreground_location(two, (6, 6, 6))
    assert location is not None and (location.lower, location.upper) == ((0, 0, 0), (6, 6, 6))
    assert spread([f"c{n:02}" for n in range(20)], 3) == ["c00", "c10", "c19"] and spread("ba", 3) == ["a", "b"]


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([0.5, 0.6, 0.6, 0.601], 2, True),
        ([0.5, 0.6, 0.6, 0.601], 0, False),
        ([0.5, 0.6, 0.59, 0.7], 2, False),
        ([0.5], 1, False),
        ([0.5, 0.501, 0.502, 0.503], 3, False),  # small gains add up
    ],
)
def test_a_plateau_is_so_many_probes_without_a_gain(scores: list[float], patience: int, ends: bool) -> None:
    records: list[dict[str, Any]] = []
    for number, score in enumerate(scores):
        records += [{"epoch": 2 * number, "probe": {"vit": score, "partner": score, "seconds": 9.0}}]
        records += [{"epoch": 2 * number + 1}]
    reason = plateau(records, patience)
    assert (reason is not None) == ends
    if reason is not None:
        assert reason.startswith("the probe is on a plateau: 2 probes after epoch 3, with Dice 0.600, ")


def test_the_trainer_reads_training_cases_only_and_keeps_their_crops() -> None:
    labels = np.zeros((1, 8, 8, 8), dtype=np.int8)
    labels[0, 3:5, 3:5, 3:5] = 1
    read: list[str] = []

    def load_case(case: str) -> tuple[Any, ...]:
        read.append(case)
        return None, labels if case != "b" else labels * 0, None, {}

    trainer: Any = TopoMAEPretrainer.__new__(TopoMAEPretrainer)
    loader = SimpleNamespace(image=lambda case: None, cut=lambda case, image, where: torch.zeros(1, 4, 4, 4))
    vars(trainer).update(
        chosen=SimpleNamespace(labelled=("a", "b", "c")),
        preprocessed_dataset_folder="",
        label_manager=SimpleNamespace(ignore_label=None),
        build_loader=lambda cases: loader,
        dataset_class=lambda folder, cases: SimpleNamespace(load_case=load_case),
        plan=SimpleNamespace(shape=SimpleNamespace(patch_size=(4, 4, 4))),
    )
    assert [crop.case for crop in trainer.labelled_crops] == ["a", "c"] and read == ["a", "b", "c"]
    assert trainer.labelled_crops is trainer.labelled_crops


def test_a_plateau_without_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="plateau_probes = 3 needs topomae.pretraining.probe_every above 0"):
        PretrainingConfig(plateau_probes=3)
    due = partial(PretrainingConfig.probe_after, PretrainingConfig(probe_every=5))
    assert [epoch for epoch in range(1, 12) if due(epoch)] == [5, 10]
