import json
import math
import pickle
import re
import runpy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.config import (
    ArchitectureConfig,
    FinetuningConfig,
    PretrainingConfig,
    TopologyConfig,
    TopoMAEConfig,
    check_settings,
)


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
        ({"architecture": {"vit": "huge"}}, "topomae.architecture.vit = 'huge' is not one of 'none', 'tiny', 'small'"),
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
        ({"pretraining": {"spatial": "vector"}}, "topomae.pretraining.spatial = 'vector' is not one of 'keypoints'"),
        ({"pretraining": {"target": True}}, "topomae.pretraining.target = True is not one of 'masked', 'boundary'"),
        ({"pretraining": {"scale": [1.5, 0.5]}}, "topomae.pretraining.scale .* the lower first"),
        ({"pretraining": {"scale": [0.0, 1.0]}}, "topomae.pretraining.scale .* two factors from 0.25 to 4"),
        ({"pretraining": {"scale": [1.0]}}, "topomae.pretraining.scale .* two factors"),
        ({"pretraining": {"paint": 1.5}}, "topomae.pretraining.paint = 1.5 is out of range: 0 to 1"),
        ({"pretraining": {"slice_axis": "Z"}}, "topomae.pretraining.slice_axis = 'Z' is not one of 'auto', 'D'"),
        ({"pretraining": {"flip_frame": "crop", "rotate": True}}, "flip_frame = 'crop' is for key points of flipped"),
        ({"pretraining": {"flip_frame": "crop", "spatial": "both"}}, "Set it to 'volume' to use vectors"),
        ({"vectorpose": {"tasks": "none"}}, "topomae.vectorpose.tasks = 'none' is not one of 'both', 'vectors'"),
        ({"vectorpose": {"warmup_steps": -1}}, "topomae.vectorpose.warmup_steps = -1 is out of range"),
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


@pytest.mark.parametrize(("earlier", "now"), [(True, "keypoints"), (False, "none"), ("vectors", "vectors")])
def test_the_spatial_task_of_earlier_plans_was_a_switch(earlier: bool | str, now: str) -> None:
    assert read(pretraining={"spatial": earlier, "warmup_epochs": 2}).pretraining.spatial == now


def test_vectorpose_takes_the_budget_of_pre_training_and_settings_of_its_own() -> None:
    config = read(
        architecture={"vit": "base"},
        pretraining={"epochs": 7, "seed": 3, "learning_rate": 0.5, "lambda1": 0.0, "partner_learning_rate": 0.1},
        vectorpose={"scale": [0.75, 1.25], "tasks": "both"},
    ).for_vectorpose()
    pretraining = config.pretraining
    assert (pretraining.epochs, pretraining.seed, pretraining.lambda1) == (7, 3, 1.0)
    assert (pretraining.learning_rate, pretraining.partner_learning_rate) == (1e-4, None)
    assert (pretraining.scale, pretraining.rotate, pretraining.flip_axes) == ((0.75, 1.25), True, (0, 1, 2))
    assert (config.architecture.vit, config.topology.enabled) == ("none", False)
    assert config.for_vectorpose() == config
    alone = read(vectorpose={"tasks": "vectors"}).for_vectorpose().pretraining
    assert (alone.shuffle, alone.bezier, alone.paint) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainingConfig(mask_ratio=7.0), "topomae.pretraining.mask_ratio = 7.0 is out of range: above 0"),
        (lambda: FinetuningConfig(learning_rate=math.inf), "topomae.finetuning.learning_rate = inf .* a finite number"),
        (lambda: ArchitectureConfig(gamma=math.nan), "topomae.architecture.gamma = nan .* a finite number"),
        (lambda: replace(TopologyConfig(), every=0), "topomae.topology.every = 0 is out of range: at least 1"),
        (lambda: ArchitectureConfig(heads=5), r"dims = \(32, .* is out of range: even multiples of .*heads = 5"),
        (lambda: ArchitectureConfig(dims=(7, 14, 28, 56), heads=7), "even multiples of topomae.architecture.heads = 7"),
    ],
)
def test_values_are_checked_without_a_plan_too(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_no_number_may_be_infinite(stage: str) -> None:
    """JSON has no infinity, but Python reads one."""
    with pytest.raises(ValueError, match=f"topomae.{stage}.clip = inf is out of range: a finite number"):
        read(**{stage: json.loads('{"clip": Infinity}')})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"pretraining": {"maskratio": 0.5}}, r"Did you mean mask_ratio\?"),
        ({"architecture": {"zzz": 1}}, r"vit$"),
    ],
)
def test_a_misspelt_key_gets_the_closest_one(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**section)


def test_settings_with_right_keys_and_values() -> None:
    check_settings({})
    check_settings(
        {
            "finetuning.epochs": 3,
            "topomae.topology.weight": 2,
            "pretraining.flip_axes": [0, 2],
            "finetuning.mirror_axes": None,
            "patch_size": [96, 96, 96],
            "batch_size": 2,
            "topology": {"enabled": False},
            # Fits other heads, which another setting or the plan may hold.
            "architecture.dims": [6, 12, 24, 48],
        }
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning.epoch": 3}, r"unknown plan key finetuning.epoch. Did you mean finetuning.epochs\?"),
        ({"finetunning.epochs": 3}, r"finetunning.epochs. Did you mean finetuning.epochs\?"),
        ({"epochs": 3}, r"Did you mean pretraining.epochs or finetuning.epochs\?"),
        ({"pretraining.warmup_epochs": 3}, r"Did you mean pretraining.warmup_steps\?"),
        ({"patchsize": [8, 8, 8]}, r"Did you mean patch_size\?"),
        ({"patch_size": "96"}, r"^patch_size = '96' must be three whole numbers above 0, for example \[96,96,96\]$"),
        ({"patch_size": [96, 96, 0]}, "must be three whole numbers"),
        ({"patch_size": [96, 96, True]}, "must be three whole numbers"),
        ({"patch_size": [96, 96]}, "must be three whole numbers"),
        ({"batch_size": 0}, "^batch_size = 0 must be a whole number above 0$"),
        ({"batch_size": 2.0}, "must be a whole number"),
        ({"zzz": 1}, "unknown plan key zzz$"),
        ({"finetuning.epochs.x": 3}, "unknown plan key finetuning.epochs.x"),
        ({"finetuning.epochs": 3, "pretraining.mask_ratio": 1.5}, "topomae.pretraining.mask_ratio = 1.5 is out of"),
        ({"finetuning.epochs": "3"}, "topomae.finetuning.epochs = '3' must be of type int"),
        ({"topology.region": "half"}, "topomae.topology.region = 'half' is not one of 'full', 'crop', 'pool'"),
        ({"topology": {"enabld": False}}, "unknown plan key topomae.topology.enabld; .* Did you mean enabled"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(settings)


def test_sections_are_values() -> None:
    """They are keys of caches and cross to other processes."""
    config = read(topology={"dimensions": [0, 1]}, finetuning={"mirror_axes": [0, 1]})
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(replace(config))


def test_the_reference_page_shows_what_the_sections_hold(repository: Path) -> None:
    """Made again, the page would be the same; every key has a meaning."""
    script = runpy.run_path(str(repository / "docs" / "make_plan_keys.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert page == script["page"](), "run python docs/make_plan_keys.py"
    for name, section in TopoMAEConfig().to_plan().items():
        for key in section:
            row = re.search(rf"^\| `{name}\.{key}` .*\| ([^|]+) \|$", page, flags=re.MULTILINE)
            assert row is not None and row[1].endswith("."), key


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TopoMAEConfig().architecture.depth = 5  # type: ignore[misc]
