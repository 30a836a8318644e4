import json
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.nnunet.plan import read_plan


def _configuration(**changes: Any) -> ConfigurationManager:
    values: dict[str, Any] = {
        "patch_size": [16, 32, 24],
        "spacing": [3.0, 1.5, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {
            "arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]},
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "_kw_requires_import": [],
        },
    }
    return ConfigurationManager(values | changes)


def test_stock_plan_takes_the_defaults() -> None:
    plan = read_plan(_configuration(), channels=2)
    assert plan.config.pretraining.mask_ratio == 0.5
    assert plan.shape.patch_size == (16, 32, 24)
    assert plan.spacing == (3.0, 1.5, 1.0)
    assert plan.facts["channels"] == 2 and plan.facts["patch_size"] == [16, 32, 24]


def test_what_ct_is_clipped_and_scaled_by_is_a_fact_and_survives_json() -> None:
    statistics = {"percentile_00_5": -57.0, "percentile_99_5": 164.0, "mean": 50.1, "std": 40.5}
    other = {"mean": 7.0, "std": 1.0}
    schemes = ["ZScoreNormalization", "CTNormalization"]
    configuration = _configuration(normalization_schemes=schemes)
    for name in ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"):
        plans = {name: {"0": other, "1": {**statistics, "min": -900.0, "max": 2000.0, "median": 51.0}}}
        facts = read_plan(configuration, 2, plans).facts
        assert facts["intensities"] == [None, statistics]
        assert json.loads(json.dumps(facts)) == facts
    assert read_plan(configuration, 2).facts["intensities"] is None
    assert read_plan(configuration, 2, {}).facts["intensities"] == [None, dict.fromkeys(statistics)]


def test_vectors_are_measured_along_the_slices_of_the_plan() -> None:
    frame = read_plan(_configuration()).vector_frame()
    assert (frame.slice_axis, frame.polar_axis, frame.spacing) == (0, 2, (3.0, 1.5, 1.0))
    isotropic = _configuration(spacing=[1.0, 1.0, 1.0])
    assert read_plan(isotropic, plans={"transpose_forward": [2, 0, 1]}).vector_frame()[1:] == (1, 2, True)
    section = {"pretraining": {"slice_axis": "W", "polar_axis": "slice", "angle_weights": "equal"}}
    plan = read_plan(_configuration(topomae=section))
    assert plan.vector_frame()[1:] == (2, 2, False) and "says so" in plan.slice_axis()[1]
    section["pretraining"]["polar_axis"] = "in_plane"
    assert read_plan(_configuration(topomae=section)).vector_frame().polar_axis == 1


def test_facts_are_those_of_the_plan_whatever_a_training_makes_of_it() -> None:
    configuration = _configuration()
    changed = TopoMAEConfig().for_vectorpose()
    plan = read_plan(configuration, 1, config=changed)
    assert plan.config == changed and plan.facts == read_plan(configuration, 1).facts


def test_section_is_read() -> None:
    plan = read_plan(_configuration(topomae={"pretraining": {"epochs": 7}}))
    assert plan.config.pretraining.epochs == 7


def test_2d_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="3D configurations only"):
        read_plan(_configuration(patch_size=[32, 24], spacing=[1.5, 1.0]))


def test_cascade_is_refused() -> None:
    with pytest.raises(ValueError, match="second stage of a cascade"):
        read_plan(_configuration(previous_stage="3d_lowres"))


def test_patch_that_does_not_fit_its_strides_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match="TopoMAEPlanner"):
        read_plan(_configuration(patch_size=[16, 30, 24]))


def test_misspelt_key_names_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"topomae\.pretraining\.epoch; allowed: .*epochs"):
        read_plan(_configuration(topomae={"pretraining": {"epoch": 7}}))
