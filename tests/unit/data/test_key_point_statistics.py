"""The statistics against the variance of a discrete uniform distribution, written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import PretrainingConfig, TopoMAEConfig
from nnunet_topomae.data.key_point_statistics import key_point_statistics, report_key_points
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.spatial_task import report_spatial_task
from nnunet_topomae.data.transforms import Places
from nnunet_topomae.nnunet.plan import Plan

SHAPE, PATCH = (20, 31, 46), (8, 20, 15)
ALL = (0, 1, 2)


def location_variance(shape: tuple[int, ...], patch: tuple[int, ...]) -> float:
    """Variance of 2 lower / N - 1 with lower uniform on 0..N - P, mean over the axes."""
    return float(np.mean([(2 / n) ** 2 * ((n - p + 1) ** 2 - 1) / 12 for n, p in zip(shape, patch, strict=True)]))


@pytest.mark.slow
def test_without_flips_the_targets_are_the_places_alone() -> None:
    found = key_point_statistics([SHAPE], Places(PATCH))
    assert found.targets == found.location == pytest.approx(location_variance(SHAPE, PATCH), rel=0.05)
    assert found.share == pytest.approx(3 * found.location)
    assert (found.crops, found.cases) == (4000, 1)


@pytest.mark.slow
def test_flips_of_the_volume_add_no_variance() -> None:
    found = key_point_statistics([SHAPE], Places(PATCH, ALL, "volume"))
    assert found.targets == pytest.approx(location_variance(SHAPE, PATCH), rel=0.05)


@pytest.mark.slow
def test_flips_of_the_crop_add_the_distance_of_its_corners() -> None:
    found = key_point_statistics([SHAPE], Places(PATCH, ALL, "crop"))
    # A corner is at either end of the crop, half its length P / N away from the middle; the centre never moves.
    of_flips = 8 / 9 * np.mean([(p / n) ** 2 for n, p in zip(SHAPE, PATCH, strict=True)])
    assert found.location == pytest.approx(location_variance(SHAPE, PATCH), rel=0.05)
    assert found.targets == pytest.approx(found.location + of_flips, rel=0.05)


@pytest.mark.parametrize("frame", ["volume", "crop"])
def test_a_patch_as_large_as_the_images_is_warned_of(frame: Any) -> None:
    large = key_point_statistics([(20, 31, 46), (19, 30, 45)], Places((20, 32, 46), ALL, frame), crops=400)
    assert large.share < 0.01
    assert large.lines()[-1].startswith("warning: the place of a crop carries only")
    assert len(key_point_statistics([SHAPE], Places(PATCH, ALL, frame), crops=400).lines()) == 1


@pytest.mark.slow
def test_one_percent_is_a_crop_that_moves_by_a_tenth() -> None:
    assert key_point_statistics([(1000, 1000, 1000)], Places((900, 900, 900))).share == pytest.approx(0.01, rel=0.1)


def test_same_seed_same_numbers() -> None:
    arguments = ([SHAPE], Places(PATCH, ALL, "crop"), 300)
    assert key_point_statistics(*arguments, seed=3) == key_point_statistics(*arguments, seed=3)
    assert key_point_statistics(*arguments, seed=3) != key_point_statistics(*arguments, seed=4)


def test_no_volume() -> None:
    with pytest.raises(ValueError, match="at least one volume"):
        key_point_statistics([], Places(PATCH))


class _Unread:
    """An image on disk: reading its voxels fails."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = (2, *shape)

    def __getitem__(self, index: Any) -> None:
        raise AssertionError("voxels were read")


class _Cases(nnUNetDatasetNumpy):
    def __init__(self, count: int) -> None:
        self.identifiers = [f"case{number}" for number in range(count)]
        self.opened: list[str] = []

    def load_case(self, case: str) -> tuple[_Unread, None, None, dict[str, Any]]:
        self.opened.append(case)
        return _Unread(SHAPE), None, None, {}


@pytest.mark.slow
def test_a_loaders_cases_are_opened_not_read_and_at_most_a_hundred(tmp_path: Path) -> None:
    cases = _Cases(130)
    loader = CropLocationLoader(cases, 2, PATCH, LabelManager({"background": 0, "organ": 1}, None), (0,), 5, "crop")
    lines: list[str] = []
    cases.opened.clear()  # nnU-Net's loader opens one case for its channels
    report_key_points(loader, tmp_path, lines.append)
    assert len(cases.opened) == len(set(cases.opened)) == 100
    found = key_point_statistics([SHAPE] * 100, Places(PATCH, (0,), "crop"))
    assert json.loads((tmp_path / "key_points.json").read_text()) == {
        "targets": found.targets,
        "location": found.location,
        "share": found.share,
        "crops": 4000,
        "cases": 100,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["key_points.json"]
    assert lines == found.lines() and f"{found.targets:.4f}" in lines[0]


@pytest.mark.parametrize(("scale", "said"), [((1.0, 1.0), None), ((1.0, 1.5), 0.9), ((0.5, 1.0), 0.0)])
def test_the_share_of_crops_made_smaller_is_logged_whatever_the_task(
    tmp_path: Path, scale: tuple[float, float], said: float | None
) -> None:
    labels = LabelManager({"background": 0, "organ": 1}, None)
    loader = CropLocationLoader(_Cases(3), 1, (16, 30, 40), labels, (), 5, scale=scale)
    config = TopoMAEConfig(pretraining=PretrainingConfig(spatial="none", scale=scale))
    shape = derive_network_shape((8, 16, 24), [[1, 1, 1], *[[2, 2, 2]] * 3], config.architecture)
    plan = Plan(config, shape, (1.0, 1.0, 1.0), {})
    lines: list[str] = []
    report_spatial_task(loader, plan, tmp_path, lines.append)
    assert len(lines) == (said is not None)
    if said is not None:  # thirty voxels grow beyond the image's 31 from a factor of 1.05 on
        share, _, rest = lines[0].partition(" % of scaled crops")
        assert float(share) == pytest.approx(100 * said, abs=3) and rest.endswith("made smaller")
