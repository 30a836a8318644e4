import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)

from nnunet_topomae.architectures.memory import GIB
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, TopoMAEConfig
from nnunet_topomae.plans import planner as planner_module
from nnunet_topomae.plans.planner import TRAININGS, TopoMAEPlanner, estimate_need, large_enough, network_shape

pytestmark = pytest.mark.usefixtures("light_nnunet")

DATA = {  # spacing in mm, median shape, voxels
    "hippocampus": ((1.0, 1.0, 1.0), (36, 50, 35)),
    "cine": ((9.0, 1.3, 1.3), (11, 256, 256)),
    "abdomen": ((2.0, 1.5, 1.5), (160, 260, 330)),
    "microscopy": ((0.3, 0.3, 0.3), (1200, 1500, 1500)),
    "thin slab": ((5.0, 0.5, 0.5), (5, 512, 512)),
    "tiny": ((1.0, 1.0, 1.0), (16, 16, 16)),
}
# Networks of the usual channels that are quick to estimate, where a test is not about memory.
SHALLOW = TopoMAEConfig(architecture=ArchitectureConfig(vit="tiny", depth=1))
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A planner of a data set that consists of its descriptions."""
    name = "Dataset005_Described"
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind / name).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    (tmp_path / "raw" / name / "imagesTr").mkdir()
    (tmp_path / "preprocessed" / name / "dataset_fingerprint.json").write_text(
        json.dumps(
            {
                "spacings": [[1.0, 1.0, 1.0]],
                "shapes_after_crop": [[20, 20, 20]],
                "median_relative_size_after_cropping": 1.0,
                "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0}},
            }
        )
    )

    def planner(kind: type[ExperimentPlanner], channels: int = 1, gb: float = 8.0) -> ExperimentPlanner:
        description = {
            "channel_names": {str(c): "MR" for c in range(channels)},
            "labels": {"background": 0, "organ": 1},
            "numTraining": 20,
            "file_ending": ".nii.gz",
        }
        (tmp_path / "raw" / name / "dataset.json").write_text(json.dumps(description))
        return kind(5, gb)

    return planner


def _plan(planner: Any, data: str, cases: int = 60) -> dict[str, Any]:
    spacing, median = DATA[data]
    voxels = float(np.prod(median)) * cases
    plan: dict[str, Any] = planner.get_plans_for_configuration(
        np.array(spacing), np.array(median), "identifier", voxels, {}
    )
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "data", "gb"),
    [
        (TopoMAEConfig(), "hippocampus", 8.0),
        (SHALLOW, "cine", 3.0),  # the patch has to shrink
        (SHALLOW, "thin slab", 6.0),
        *(
            pytest.param(TopoMAEConfig(), data, gb, marks=pytest.mark.slow)
            for data, gb in (("cine", 8.0), ("thin slab", 24.0), ("abdomen", 8.0), ("microscopy", 24.0))
        ),
    ],
)
def test_both_trainings_fit_and_the_patch_suits_the_image(
    make: Make, config: TopoMAEConfig, data: str, gb: float
) -> None:
    planner = make(TopoMAEPlanner, gb=gb)
    planner.config = config
    plan = _plan(planner, data)
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    shape = network_shape(plan["patch_size"], strides, config.architecture)
    needs = [estimate_need(training, shape, config.architecture, 1, 2) for training in TRAININGS]
    assert len(needs) == 2
    assert all(need.total(plan["batch_size"]) <= gb * GIB for need in needs)
    assert plan["batch_size"] >= 2
    total = np.prod(strides, axis=0)
    assert all(
        patch < image + stride for patch, image, stride in zip(plan["patch_size"], DATA[data][1], total, strict=True)
    )
    derive_network_shape([int(size) for size in plan["patch_size"]], strides, config.architecture)
    assert TopoMAEConfig.from_configuration(plan) == config


@pytest.mark.slow
def test_more_memory_is_used(make: Make) -> None:
    plans = []
    for gb in (3.0, 6.0):
        planner = make(TopoMAEPlanner, gb=gb)
        planner.config = SHALLOW
        plans.append(_plan(planner, "cine"))
    small, large = plans
    assert np.prod(large["patch_size"]) * large["batch_size"] > np.prod(small["patch_size"]) * small["batch_size"]


@pytest.mark.slow
def test_small_data_sets_get_small_batches(make: Make) -> None:
    planner = make(TopoMAEPlanner, gb=24.0)
    assert _plan(planner, "hippocampus", cases=5)["batch_size"] == 2
    assert _plan(planner, "hippocampus", cases=400)["batch_size"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("median", [(16, 16, 16), (3, 40, 44), (9, 30, 20)])
def test_images_too_small_for_three_stages_are_padded(make: Make, median: tuple[int, int, int]) -> None:
    planner = make(TopoMAEPlanner)
    planner.config = SHALLOW
    plan = planner.get_plans_for_configuration(np.ones(3), np.array(median), "identifier", 1e6, {})
    assert all(patch >= image for patch, image in zip(plan["patch_size"], median, strict=True))
    assert tuple(plan["median_image_size_in_voxels"]) == median
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    derive_network_shape([int(size) for size in plan["patch_size"]], strides, TopoMAEConfig().architecture)


def test_2d_configurations_are_nnunets(make: Make) -> None:
    arguments = (np.array((1.3, 1.3)), np.array((256, 200)), "identifier", 1e7, {})
    ours = make(TopoMAEPlanner).get_plans_for_configuration(*arguments)
    theirs = make(ExperimentPlanner).get_plans_for_configuration(*arguments)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 1, 1)])
def test_padding_ends(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]) -> None:
    assert np.prod(large_enough(np.ones(3), np.array(shape))) > 1
    refused = []

    def refuse(patch_size: Any, *_: Any) -> None:
        refused.append(tuple(patch_size))
        raise ValueError("never large enough.")

    monkeypatch.setattr(planner_module, "derive_network_shape", refuse)
    with pytest.raises(
        ValueError, match=r"median image of .* voxels of \[1.0, 1.0, 1.0\] mm.*never large enough.*spacing"
    ):
        large_enough(np.ones(3), np.array(shape))
    assert max(refused[-1]) > 30 * max(shape)


@pytest.mark.slow
def test_too_little_memory_is_an_error_that_says_how_much(make: Make) -> None:
    planner = make(TopoMAEPlanner)
    planner.config = SHALLOW
    patch = _plan(planner, "tiny")
    strides = patch["architecture"]["arch_kwargs"]["strides"]
    shape = network_shape(patch["patch_size"], strides, SHALLOW.architecture)
    weights = max(estimate_need(training, shape, SHALLOW.architecture, 1, 2).fixed for training in TRAININGS)
    planner.UNet_vram_target_GB = weights / GIB + 0.001
    with pytest.raises(ValueError, match=rf"{weights / GIB + 0.001:g} GB are too little.*larger -gpu_memory_target"):
        _plan(planner, "tiny")
    planner.UNet_vram_target_GB = 1.0
    with pytest.raises(ValueError, match=r"weights alone need .* larger -gpu_memory_target"):
        _plan(planner, "tiny")


@pytest.mark.slow
def test_what_does_not_fit_one_training_is_not_estimated_for_the_other(make: Make) -> None:
    """The answer for a patch that fits is that of the training that needs more."""
    planner = make(TopoMAEPlanner, gb=8.0)
    planner.config = SHALLOW
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    shape = network_shape((40, 56, 40), strides, SHALLOW.architecture)
    shares = {}
    for training in TRAININGS:
        need = estimate_need(training, shape, SHALLOW.architecture, 1, 2)
        shares[training] = need.per_sample / (8.0 * GIB - need.fixed)
    estimate = planner.static_estimate_VRAM_usage((40, 56, 40), 1, 2, "", {"strides": strides}, ())
    assert estimate == max(shares.values()) < 0.5
    planner.UNet_vram_target_GB = need.fixed / GIB + 1e-6
    estimate_need.cache_clear()
    assert planner.static_estimate_VRAM_usage((40, 56, 40), 1, 2, "", {"strides": strides}, ()) > 0.5
    assert estimate_need.cache_info().currsize == 1


@pytest.mark.slow
@pytest.mark.parametrize("data", ["hippocampus", "cine", "thin slab"])
def test_resenc_plans_can_be_taken(make: Make, data: str) -> None:
    plan = _plan(make(nnUNetPlannerResEncM), data)
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    shape = derive_network_shape([int(size) for size in plan["patch_size"]], strides, TopoMAEConfig().architecture)
    assert shape.patch_size == tuple(plan["patch_size"])
