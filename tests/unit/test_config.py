import json
import re
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopologyConfig, TopoMAEConfig


def read(**sections: Any) -> TopoMAEConfig:
    return TopoMAEConfig.from_configuration({"patch_size": [96, 96, 96], "topomae": sections})


def test_a_stock_plan_gives_the_defaults() -> None:
    assert TopoMAEConfig.from_configuration({"patch_size": [96, 96, 96]}) == TopoMAEConfig()


def test_the_papers_values_are_the_defaults() -> None:
    section = TopoMAEConfig().pretraining
    assert (section.mask_ratio, section.lambda1, section.lambda2, section.lambda3) == (0.5, 0.5, 0.1, 0.1)
    assert TopoMAEConfig().architecture.dims == (32, 64, 128, 256)


def test_values_replace_defaults_one_by_one() -> None:
    config = read(pretraining={"mask_ratio": 0.75, "epochs": 7, "flip_axes": []}, architecture={"vit": "base"})
    assert config.pretraining == PretrainingConfig(mask_ratio=0.75, epochs=7, flip_axes=())
    assert config.architecture == ArchitectureConfig(vit="base")
    assert config.topology == TopologyConfig()


def test_plan_round_trip_through_json() -> None:
    config = read(
        topology={"region": "pool", "dimensions": [0, 2], "enabled": False},
        finetuning={"pretrained": "scratch", "seed": 3},
        architecture={"dims": [8, 16, 24, 32], "share_embeddings": True},
    )
    plan = json.loads(json.dumps(config.to_plan()))
    assert TopoMAEConfig.from_configuration({"topomae": plan}) == config


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_a_warm_up_in_epochs_of_an_earlier_version_is_read_as_steps(stage: str) -> None:
    """Plans and checkpoints of that version hold it; models trained with them must go on predicting."""
    section = getattr(read(**{stage: {"warmup_epochs": 3, "iterations_per_epoch": 20}}), stage)
    assert section.warmup_steps == 60
    assert getattr(read(**{stage: {"warmup_epochs": 3}}), stage).warmup_steps == 750
    assert "warmup_epochs" not in TopoMAEConfig().to_plan()[stage]


def test_whole_numbers_are_accepted_as_floats() -> None:
    value = read(pretraining={"lambda1": 1}).pretraining.lambda1
    assert value == 1.0
    assert type(value) is float


def test_null_means_not_set() -> None:
    assert read(pretraining={"seed": None}).pretraining.seed is None
    assert read(finetuning={"pretrained": None}).finetuning.pretrained is None


def test_warmup_of_the_topological_term_is_linear() -> None:
    section = TopologyConfig(warmup_epochs=4)
    factors = [section.warmup_factor(epoch) for epoch in range(7)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert TopologyConfig(warmup_epochs=0).warmup_factor(0) == 1.0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pretrainng": {}}, "unknown plan key topomae.pretrainng; allowed: architecture, finetuning, pretraining"),
        ({"pretraining": {"maskratio": 0.5}}, "unknown plan key topomae.pretraining.maskratio; allowed: .*mask_ratio"),
        ({"architecture": {"vit": "huge"}}, "topomae.architecture.vit = 'huge' is not one of 'tiny', 'small'"),
        ({"architecture": {"dims": "32"}}, "topomae.architecture.dims = '32' must be a list"),
        ({"architecture": {"dims": [32, 64]}}, "topomae.architecture.dims .* four positive numbers"),
        ({"architecture": {"projections": [64, 64, 0, 32]}}, "topomae.architecture.projections .* out of range"),
        ({"architecture": {"dims": [32, 64, 128, 256.5]}}, "topomae.architecture.dims = 256.5 must be of type int"),
        ({"architecture": {"depth": 0}}, "topomae.architecture.depth = 0 is out of range: at least 1"),
        ({"architecture": {"drop_path": 1.0}}, "topomae.architecture.drop_path = 1.0 is out of range"),
        ({"architecture": {"share_embeddings": 1}}, "topomae.architecture.share_embeddings = 1 must be of type bool"),
        ({"pretraining": {"mask_ratio": 1.0}}, "topomae.pretraining.mask_ratio = 1.0 is out of range"),
        ({"pretraining": {"mask_ratio": True}}, "topomae.pretraining.mask_ratio = True must be of type float"),
        ({"pretraining": {"mask_ratio": "0.5"}}, "topomae.pretraining.mask_ratio = '0.5' must be of type float"),
        ({"pretraining": {"lambda1": -0.1}}, "topomae.pretraining.lambda1 = -0.1 is out of range: 0 to 1"),
        ({"pretraining": {"lambda2": 0.6}}, "topomae.pretraining.lambda2 = 0.6 is out of range: 0 to 0.5"),
        ({"pretraining": {"learning_rate": float("nan")}}, "topomae.pretraining.learning_rate = nan is out of range"),
        ({"pretraining": {"betas": [0.9, 1.0]}}, "topomae.pretraining.betas .* two numbers"),
        ({"pretraining": {"flip_axes": [0, 0]}}, "topomae.pretraining.flip_axes .* distinct axes"),
        ({"pretraining": {"flip_axes": [3]}}, "topomae.pretraining.flip_axes .* out of range"),
        ({"pretraining": {"epochs": True}}, "topomae.pretraining.epochs = True must be of type int"),
        (
            {"pretraining": {"warmup_epochs": None}},
            "unknown plan key topomae.pretraining.warmup_epochs; allowed: .*steps",
        ),
        ({"pretraining": {"seed": -1}}, "topomae.pretraining.seed = -1 is out of range"),
        ({"pretraining": [1]}, r"topomae.pretraining must be a table of keys, got \[1\]"),
        ({"topology": {"dimensions": []}}, "topomae.topology.dimensions .* distinct dimensions"),
        ({"topology": {"region_size": 1}}, "topomae.topology.region_size = 1 is out of range"),
        ({"finetuning": {"pretrained": 5}}, "topomae.finetuning.pretrained = 5 must be of type str"),
        ({"finetuning": {"pretrained_learning_rate": 0}}, "topomae.finetuning.pretrained_learning_rate = 0"),
        ({"finetuning": {"iterations_per_epoch": 0}}, "topomae.finetuning.iterations_per_epoch = 0"),
    ],
)
def test_wrong_values_are_named(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**sections)


def test_every_documented_value_exists() -> None:
    """The docstrings are the reference of the plan's keys: each names exactly the fields of its section."""
    for section in (ArchitectureConfig, TopologyConfig, PretrainingConfig, type(TopoMAEConfig().finetuning)):
        attributes = (section.__doc__ or "").partition("Attributes:")[2]
        documented = set(re.findall(r"^ {8}(\w+):", attributes, flags=re.MULTILINE))
        assert documented == {item.name for item in fields(section)}


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TopoMAEConfig().architecture.depth = 5  # type: ignore[misc]
