import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.commands.plan import add_arguments, run
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
from nnunet_topomae.plans.explain import explain
from nnunet_topomae.plans.variants import make_variant, parse_setting

DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def _plans() -> dict[str, Any]:
    return {
        "dataset_name": "Dataset005_Described",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {
            "3d_lowres": {
                "data_identifier": "nnUNetPlans_3d_lowres",
                "batch_size": 2,
                "patch_size": [48, 64, 56],
                "spacing": [2.0, 1.5, 1.5],
                "median_image_size_in_voxels": [40, 80, 80],
                "normalization_schemes": ["CTNormalization"],
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]},
                    "_kw_requires_import": [],
                },
                "topomae": {"architecture": {"vit": "tiny", "depth": 1}},  # quick to estimate
            },
            "3d_fullres": {"inherits_from": "3d_lowres", "data_identifier": "nnUNetPlans_3d_fullres"},
        },
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretraining.epochs=7", ("pretraining.epochs", 7)),
        ("patch_size=[8,16,24]", ("patch_size", [8, 16, 24])),
        ("topology.region=full", ("topology.region", "full")),
        ("finetuning.pretrained=/data/a=b.pth", ("finetuning.pretrained", "/data/a=b.pth")),
        ("pretraining.seed=null", ("pretraining.seed", None)),
    ],
)
def test_settings(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["pretraining.epochs", "=7"])
def test_settings_without_key_or_value(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_setting(text)


def test_a_variant_shares_the_data_and_leaves_the_original_alone() -> None:
    plans = _plans()
    settings = {"pretraining.epochs": 7, "topology.region": "full", "patch_size": [32, 64, 48], "batch_size": 5}
    variant = make_variant(plans, "other", ["3d_fullres"], settings)
    assert plans == _plans()
    changed = variant["configurations"]["3d_fullres"]
    config = TopoMAEConfig.from_configuration(changed)
    assert (config.pretraining.epochs, config.topology.region) == (7, "full")
    assert (changed["patch_size"], changed["batch_size"]) == ([32, 64, 48], 5)
    assert changed["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert changed["spacing"] == [2.0, 1.5, 1.5]
    assert variant["configurations"]["3d_lowres"] == _plans()["configurations"]["3d_lowres"]
    assert variant["plans_name"] == "other"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretraining.epoch": 7}, "Did you mean pretraining.epochs"),
        ({"pretraining.epochs.x": 7}, "unknown plan key pretraining.epochs.x"),
        ({"pretraining.warmup_epochs": 7}, "Did you mean pretraining.warmup_steps"),
        ({"pretraining.mask_ratio": 1.5}, "out of range"),
        ({"topology.region": "half"}, "'full', 'crop', 'pool'"),
        ({"spacing": [1, 1, 1]}, "Plan again"),
        ({"data_identifier": "x"}, "Plan again"),
        ({"patch_size": [30, 64, 48]}, r"multiples of the network's total strides \[8, 8, 8\]"),
        ({"patch_size": "96"}, "three whole numbers"),
        ({"patch_size": [48, 64, 0]}, r"3d_fullres: patch_size = \[48, 64, 0\] must be three whole numbers above 0"),
        ({"batch_size": 0}, "batch_size = 0 must be a whole number above 0"),
        ({"batch_size": 2.5}, "batch_size = 2.5 must be a whole number"),
        ({"patch_size": [8, 8, 8]}, "one cell"),
    ],
)
def test_what_a_variant_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_variant(_plans(), "other", ["3d_fullres"], settings)


@pytest.mark.parametrize("name", ["", "a__b", "nnUNetPlans", "a/b"])
def test_names_that_nnunet_could_not_use(name: str) -> None:
    with pytest.raises(ValueError, match="choose another name|cannot be a name"):
        make_variant(_plans(), name, ["3d_fullres"], {"batch_size": 3})


def test_a_2d_configuration_is_refused() -> None:
    plans = _plans()
    plans["configurations"]["2d"] = flat = {**plans["configurations"]["3d_fullres"], "patch_size": [64, 48]}
    flat["architecture"] = {"arch_kwargs": {"strides": [[1, 1], [2, 2], [2, 2]]}}
    with pytest.raises(ValueError, match="2d is a 2D configuration. Choose a 3D one, for example -c 3d_fullres"):
        make_variant(plans, "other", ["2d"], {"pretraining.epochs": 3})


def test_unknown_configuration() -> None:
    with pytest.raises(ValueError, match="it has 3d_lowres, 3d_fullres"):
        make_variant(_plans(), "other", ["2d"], {"batch_size": 3})


def test_writing_twice_is_safe_and_other_content_is_kept(tmp_path: Path) -> None:
    first = make_variant(_plans(), "other", ["3d_fullres"], {"batch_size": 3})
    path = write_plans(first, tmp_path)
    assert write_plans(first, tmp_path) == path
    assert read_plans(path) == first
    with pytest.raises(FileExistsError, match="exists with other content"):
        write_plans(make_variant(_plans(), "other", ["3d_fullres"], {"batch_size": 4}), tmp_path)
    assert read_plans(path) == first
    with pytest.raises(FileNotFoundError, match="plans of this data set: "):
        read_plans(tmp_path / "absentPlans.json")


@pytest.mark.slow
def test_explanation_names_every_number() -> None:
    text = explain(_plans(), DATASET_JSON, "3d_fullres")
    rows = {line.split("  ")[0]: line for line in text.splitlines()[2:]}
    assert "48x64x56" in rows["patch"] and "padded along D" in rows["patch"]
    assert "6x8x7 of 8x8x8" in rows["ViT tokens"]
    assert "GB" in rows["memory, pre-training"] and "GB" in rows["memory, fine-tuning"]
    assert {"spacing", "batch", "stem", "stage 1", "stage 3", "pretraining.epochs", "mask_ratio", "topology"} <= set(
        rows
    )
    with pytest.raises(ValueError, match="the plans have"):
        explain(_plans(), DATASET_JSON, "2d")


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    folder = tmp_path / "Dataset005_Described"
    folder.mkdir()
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path))
    (folder / "nnUNetPlans.json").write_text(json.dumps(_plans()))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["-d", "5", "-p", "nnUNetPlans", "--set", "pretraining.epochs=7"]
    with pytest.raises(ValueError, match="--name"):
        run(parser.parse_args(given))
    assert run(parser.parse_args([*given, "--name", "short", "--explain"])) == 0
    written = read_plans(folder / "short.json")
    assert written["configurations"]["3d_fullres"]["topomae"]["pretraining"]["epochs"] == 7
    printed = capsys.readouterr().out
    assert "Train with -p short" in printed
    assert "of 250 steps: 1750 in all" in printed
