"""Bad inputs, one per line, each with the part of the message that a user needs. Checkpoints: training/test_loading.py
and test_leaks.py; images: data/test_images.py; names in benchmarks: benchmark/test_hostile_names.py."""

import errno
import json
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_topomae.benchmark.spec import read_spec
from nnunet_topomae.cli import USER_ERROR, main
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.data.workers import start_workers
from nnunet_topomae.datasets.msd import find_msd
from nnunet_topomae.nnunet.dataset import check_dataset_json, read_dataset_json
from nnunet_topomae.nnunet.plan_checks import (
    TRAINING_KEYS,
    check_fingerprint,
    check_plans,
    check_splits,
    check_training,
)
from nnunet_topomae.nnunet.plans_file import read_plans
from nnunet_topomae.plans.variants import make_variant, parse_setting
from nnunet_topomae.training import failures

CONFIGURATION = {
    "data_identifier": "Plans_3d_fullres",
    "patch_size": [16, 24, 32],
    "spacing": [2.0, 1.0, 1.0],
    "batch_size": 2,
    "normalization_schemes": ["CTNormalization"],
    "architecture": {"arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}},
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_A",
    "plans_name": "Plans",
    "configurations": {
        "3d_fullres": CONFIGURATION,
        "child": {"inherits_from": "3d_fullres", "batch_size": 3},
        "loop": {"inherits_from": "pool"},
        "pool": {"inherits_from": "loop"},
        "orphan": {"inherits_from": "nobody"},
        "text": "3d",
    },
}
ABSENT = object()


def _fails(action: Callable[[], Any], *says: str) -> None:
    """One line that says all of this."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        action()
    message = str(error.value)
    assert all(part in message for part in says), message
    assert "\n" not in message, message


@pytest.mark.parametrize(
    ("plans", "says"),
    [
        (None, "not a table"),
        ([], "not a table"),
        ("Plans", "not a table"),
        ({}, "no configurations"),
        ({"configurations": {}}, "no configurations"),
        ({"configurations": None}, "no configurations"),
        ({"configurations": ["3d_fullres"]}, "no configurations"),
        ({**PLANS, "dataset_name": None}, "dataset_name = None"),
        ({**PLANS, "plans_name": 3}, "plans_name = 3"),
    ],
)
def test_plans_that_are_none(plans: Any, says: str) -> None:
    _fails(lambda: check_plans(plans, "3d_fullres", "/data/Plans.json"), "/data/Plans.json", says)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("patch_size", value) for value in (None, 96, [], [96], [0, 96, 96], [96.0, 96, 96], ["96"] * 3, [True] * 3)),
        *(("spacing", value) for value in (None, 1.0, [], [0, 1, 1], [-1, 1, 1], [float("nan"), 1, 1], ["1", 1, 1])),
        *(("batch_size", value) for value in (None, 0, -1, 2.0, "2", True, [2])),
        *(("data_identifier", value) for value in (None, "", 3)),
        *(("normalization_schemes", value) for value in (None, [], "CTNormalization")),
        *((key, ABSENT) for key in ("patch_size", "spacing", "batch_size", "data_identifier", "normalization_schemes")),
    ],
)  # fmt: skip
def test_values_of_plans(key: str, value: Any) -> None:
    plans = deepcopy(PLANS)
    check_plans(plans, "3d_fullres", "Plans.json")
    if value is ABSENT:
        del plans["configurations"]["3d_fullres"][key]
        _fails(lambda: check_plans(plans, "3d_fullres", "Plans.json"), f"configuration 3d_fullres has no {key}")
        return
    plans["configurations"]["3d_fullres"][key] = value
    _fails(lambda: check_plans(plans, "3d_fullres", "Plans.json"), "Plans.json", f"{key} = {value!r}", "must be")


@pytest.mark.parametrize(
    "architecture",
    [
        None, 3, [], {}, {"arch_kwargs": None}, {"arch_kwargs": []}, {"arch_kwargs": {}},
        *({"arch_kwargs": {"strides": strides}}
          for strides in ([], 2, {}, [2, 2], [[1, 1, 1], [2, 2]], [[0, 2, 2]], [["2", 2, 2]], [[2.0, 2, 2]], [[]])),
    ],
)  # fmt: skip
def test_the_architecture_of_plans(architecture: Any) -> None:
    plans = deepcopy(PLANS)
    plans["configurations"]["3d_fullres"]["architecture"] = architecture
    _fails(lambda: check_plans(plans, "3d_fullres", "Plans.json"), "Plans.json: architecture", "strides", "plan again")
    _fails(lambda: make_variant(plans, "new", ["3d_fullres"], {}), "architecture of 3d_fullres", "plan again")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": [16, 24]}, "one number per axis each"),
        ({"spacing": [1.0, 1.0]}, "one number per axis each"),
        ({"architecture": {"arch_kwargs": {"strides": [[1, 1], [2, 2]]}}}, "one number per axis each"),
    ],
)
def test_patch_spacing_and_strides_belong_together(changes: dict[str, Any], says: str) -> None:
    plans = deepcopy(PLANS)
    plans["configurations"]["3d_fullres"] |= changes
    _fails(lambda: check_plans(plans, "3d_fullres", "Plans.json"), "Plans.json", says)


def test_plans_and_data_set_belong_together() -> None:
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    whole = deepcopy(PLANS)
    network = {"network_class_name": "Network", "_kw_requires_import": []}
    whole["configurations"]["3d_fullres"]["architecture"] |= network
    whole["configurations"]["3d_fullres"] |= dict.fromkeys(key for key in TRAINING_KEYS if "." not in key)
    whole |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO"}
    assert check_training(whole, "3d_fullres", description) == "Plans.json"
    two = {**description, "channel_names": {"0": "T1", "1": "T2"}}
    _fails(lambda: check_training(whole, "3d_fullres", two), "normalises 1 channels", "dataset.json names 2")
    _fails(lambda: check_training(whole, "3d_fullres", {**description, "labels": []}), "dataset.json: labels = []")
    _fails(lambda: check_training(PLANS, "3d_fullres", description), "has no image_reader_writer, transpose_forward")


@pytest.mark.parametrize("order", [None, 3, [], [1], [1, 2, 3]])
def test_regions_need_an_order(order: Any) -> None:
    labels: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    regions = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "regions_class_order": order}
    _fails(lambda: check_dataset_json(regions, Path("dataset.json")), "dataset.json: regions_class_order =", "2 labels")
    check_dataset_json({**regions, "regions_class_order": [1, 2]}, Path("dataset.json"))
    check_dataset_json({**regions, "labels": {"background": 0, "a": [1], "b": 2}}, Path("dataset.json"))


class _Loader:
    number, errors = 0, None

    def draw(self, number: int) -> dict[str, Any]:
        raise AssertionError

    def __next__(self) -> dict[str, Any]:
        raise AssertionError


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "two", "1 2"])
def test_numbers_of_loader_workers(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    _fails(lambda: start_workers(_Loader(), torch.device("cpu")), f"nnUNet_n_proc_DA = {value!r}")


def test_a_missing_fingerprint(tmp_path: Path) -> None:
    def copy(name: str) -> None:
        with failures.preprocessed_files_are_there():
            (tmp_path / name).read_text()

    _fails(lambda: copy("dataset_fingerprint.json"), str(tmp_path), "is missing", "nnUNetv2_extract_fingerprint")
    with pytest.raises(FileNotFoundError, match="No such file"):
        copy("another.json")


@pytest.mark.parametrize("value", [None, 3, "012", [0, 1], [0, 1, 1], [1, 2, 3], [0.0, 1, 2], [True, 0, 2]])
def test_orders_of_axes(value: Any) -> None:
    for key in ("transpose_forward", "transpose_backward"):
        _fails(lambda key=key: check_plans({**PLANS, key: value}, "3d_fullres", "Plans.json"), "Plans.json", f"{key} =")
    check_plans({**PLANS, "transpose_forward": [2, 0, 1]}, "3d_fullres", "Plans.json")


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ("3d", "no configuration '3d'; it has 3d_fullres"),
        ("loop", "inherits from itself"),
        ("orphan", "no configuration 'nobody'"),
        ("text", "is damaged"),
    ],
)
def test_configurations_of_plans(configuration: str, says: str) -> None:
    check_plans(PLANS, "child", "Plans.json")
    _fails(lambda: check_plans(PLANS, configuration, "Plans.json"), "Plans.json", says)
    _fails(lambda: make_variant(PLANS, "new", [configuration], {}), "plans Plans", says)


@pytest.mark.parametrize(
    ("content", "says"), [("", "is not JSON"), ('{"a": ', "is not JSON"), ("[]", "no configurations"),
                          ('{"configurations": {}}', "no configurations"), ("\x00\xff", "is not JSON")]
)  # fmt: skip
def test_files_of_plans(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "Plans.json"
    file.write_bytes(content.encode("latin-1"))
    _fails(lambda: read_plans(file), str(file), says)
    _fails(lambda: read_plans(tmp_path / "None.json"), "plans of this data set: Plans")


@pytest.mark.parametrize(
    ("content", "says"), [("[1]", "must be a table"), ("{", "is not JSON"), ("3", "must be a table")]
)
def test_dataset_json(tmp_path: Path, content: str, says: str) -> None:
    _fails(lambda: read_dataset_json(tmp_path), "does not exist")
    (tmp_path / "dataset.json").write_text(content)
    _fails(lambda: read_dataset_json(tmp_path), str(tmp_path / "dataset.json"), says)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("channel_names", value) for value in (ABSENT, None, {}, ["CT"], "CT")),
        *(("labels", value) for value in (ABSENT, None, {}, ["background"], {"a": 1}, {"background": 1})),
        *(("labels", {"background": 0, "a": value}) for value in (-1, "x", None, 1.5, [], [1, -1], [[1]], 2, [2, 3])),
        ("labels", {"background": 0, "a": 1, "b": 2, "ignore": 2}),
        *(("file_ending", value) for value in (ABSENT, None, "", "nii.gz", 3)),
    ],
)  # fmt: skip
def test_what_a_raw_data_set_says_of_itself(key: str, value: Any) -> None:
    labels = {"background": 0, "a": [1, 2], "b": "2"}
    whole = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "regions_class_order": [1, 2]}
    check_dataset_json(whole, Path("dataset.json"))
    check_dataset_json({**whole, "labels": {**labels, "ignore": 255}}, Path("dataset.json"))
    # nnU-Net goes by the order of the channels, and takes 1.0 for 1.
    unusual = {
        "channel_names": {"1": "T1", "2": "T2"},
        "labels": {"background": 0, "a": 1.0},
        "regions_class_order": None,
    }
    check_dataset_json({**whole, **unusual}, Path("dataset.json"))
    damaged = {name: entry for name, entry in {**whole, key: value}.items() if entry is not ABSENT}
    named = "modality" if key == "channel_names" and value is ABSENT else key
    _fails(lambda: check_dataset_json(damaged, Path("dataset.json")), "dataset.json", f"{named} = ", "must be")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("spacings", value) for value in (ABSENT, None, [], [1, 1, 1], [[1, 1, 0]], [[1, 1, None]])),
        *(("shapes_after_crop", value) for value in (ABSENT, {}, [[]], [["1", 1, 1]])),
        *(("median_relative_size_after_cropping", value) for value in (ABSENT, 0, float("nan"), "1")),
        *(("foreground_intensity_properties_per_channel", value) for value in (ABSENT, {}, [], {"0": 3})),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 1.0, "std": float("nan")}}),
    ],
)  # fmt: skip
def test_fingerprints(tmp_path: Path, key: str, value: Any) -> None:
    whole = {
        "spacings": [[1.0, 1.0, 1.0]],
        "shapes_after_crop": [[20, 30, 30]],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 0.5}},
    }
    file = tmp_path / "dataset_fingerprint.json"
    file.write_text(json.dumps(whole))
    check_fingerprint(file)
    file.write_text(json.dumps({name: entry for name, entry in {**whole, key: value}.items() if entry is not ABSENT}))
    _fails(lambda: check_fingerprint(file), str(file), f"{key} must be", "Delete the file")


@pytest.mark.parametrize(("content", "says"), [("", "is not JSON"), ("[]", "spacings must be"), ("{", "is not JSON")])
def test_files_of_fingerprints(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "dataset_fingerprint.json"
    _fails(lambda: check_fingerprint(file), str(file))
    file.write_text(content)
    _fails(lambda: check_fingerprint(file), str(file), says)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": ["a"], "val": ["b"]}, "must be a list of folds"),
        ([], "must be a list of folds"),
        (None, "must be a list of folds"),
        ([["a"], ["b"]], "train of fold 0"),
        ([None], "train of fold 0"),
        ([{"train": [], "val": ["b"]}], "train of fold 0"),
        ([{"train": ["a"], "val": []}], "val of fold 0"),
        ([{"train": ["a"]}], "val of fold 0"),
        ([{"train": "a", "val": ["b"]}], "train of fold 0"),
        ([{"train": [1], "val": ["b"]}], "train of fold 0"),
        ([{"train": {"a": 1}, "val": ["b"]}], "train of fold 0"),
        ([{"train": ["a", "x"], "val": ["y"]}], "names 2 cases without preprocessed images, first x"),
        ("{", "is not JSON"),
    ],
)
def test_splits(tmp_path: Path, splits: Any, says: str) -> None:
    file = tmp_path / "splits_final.json"
    check_splits(file, 0, "ab")
    file.write_text(splits if isinstance(splits, str) else json.dumps(splits))
    _fails(lambda: check_splits(file, 0, "ab"), str(file), says)
    check_splits(file, "all", "ab")
    file.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    for fold in (0, 1):
        check_splits(file, fold, "ab")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (None, "topomae must be a table"),
        ([], "topomae must be a table"),
        ("auto", "topomae must be a table"),
        ({"pretraining": None}, "topomae.pretraining must be a table"),
        ({"pretraining": []}, "topomae.pretraining must be a table"),
        ({"pretrainig": {}}, "Did you mean pretraining?"),
        ({"pretraining": {"epoch": 3}}, "Did you mean epochs?"),
        ({"pretraining": {"epochs": 0}}, "topomae.pretraining.epochs = 0"),
        ({"pretraining": {"epochs": "3"}}, "must be of type int"),
        ({"pretraining": {"epochs": 3.5}}, "must be of type int"),
        ({"pretraining": {"epochs": True}}, "must be of type int"),
        ({"pretraining": {"mask_ratio": 0.0}}, "mask_ratio = 0.0"),
        ({"pretraining": {"mask_ratio": 1.0}}, "mask_ratio = 1.0"),
        ({"pretraining": {"mask_ratio": float("nan")}}, "a finite number"),
        ({"pretraining": {"learning_rate": -1e-3}}, "learning_rate = -0.001"),
        ({"pretraining": {"learning_rate": float("inf")}}, "a finite number"),
        ({"pretraining": {"seed": -1}}, "seed = -1"),
        ({"pretraining": {"flip_axes": [3]}}, "flip_axes"),
        ({"pretraining": {"flip_axes": 0}}, "must be a list"),
        ({"pretraining": {"betas": "0.9"}}, "must be a list"),
        ({"topology": {"backend": "ripser"}}, "is not one of"),
        ({"topology": {"region_size": 0}}, "region_size = 0"),
        ({"topology": {"weight": -1}}, "weight = -1"),
        ({"finetuning": {"label_fraction": 0}}, "label_fraction = 0"),
        ({"finetuning": {"label_fraction": 1.5}}, "label_fraction = 1.5"),
        ({"finetuning": {"network": "resnet"}}, "is not one of"),
        ({"finetuning": {"transfer": "magic"}}, "is not one of"),
        ({"finetuning": {"clip": 0}}, "clip = 0"),
        ({"architecture": {"vit": "giant"}}, "architecture.vit = 'giant'"),
        ({"architecture": {"dims": [8, "16", 32, 64]}}, "architecture.dims"),
    ],
)
def test_the_section_of_the_plan(section: Any, says: str) -> None:
    _fails(lambda: TopoMAEConfig.from_configuration({"topomae": section}), says)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epochs", "must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("pretraining.epochs=0", "pretraining.epochs = 0"),
        ("pretraining.epochs.more=3", "unknown plan key pretraining.epochs.more"),
        ("epochs=3", "Did you mean"),
        ("spacing=[1,1,1]", "decides how images are preprocessed"),
        ("patch_size=25", "patch_size = 25"),
        ("patch_size=[25,24,32]", "multiples of the network's total strides"),
        ("patch_size=[16,24]", "three whole numbers"),
        ("patch_size=null", "three whole numbers"),
        ("batch_size=0", "batch_size = 0"),
        ("batch_size=two", "batch_size = 'two'"),
    ],
)
def test_settings_of_a_variant(setting: str, says: str) -> None:
    _fails(lambda: make_variant(PLANS, "new", ["3d_fullres"], dict([parse_setting(setting)])), says)


def test_a_setting_below_a_number() -> None:
    plans = deepcopy(PLANS)
    plans["configurations"]["3d_fullres"]["topomae"] = {"pretraining": 3}
    _fails(lambda: make_variant(plans, "new", ["3d_fullres"], {"pretraining.epochs": 3}), "have 3 in its place")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "datasets is missing"),
        ("datasets = [5]", "recipes is missing"),
        ("datasets = [5", "is not TOML"),
        ('datasets = 5\nrecipes = ["nnunet"]', "must be a list"),
        ('datasets = []\nrecipes = ["nnunet"]', "must be a list"),
        ('datasets = ["5"]\nrecipes = ["nnunet"]', "must be of type int"),
        ('datasets = [5, 5]\nrecipes = ["nnunet"]', "twice"),
        ('datasets = [5]\nrecipes = ["unknown"]', "no recipe 'unknown'"),
        ('datasets = [5]\nrecipes = ["nnunet"]\nbaseline = "x"', "baseline = 'x'"),
        ('datasets = [5]\nrecipes = ["nnunet"]\nfolds = [-1]', "at least 0"),
        ('datasets = [5]\nrecipes = ["nnunet"]\ndevice = "tpu"', "device = 'tpu'"),
        ('datasets = [5]\nrecipes = ["nnunet"]\nout = 3', "out = 3"),
        ('datasets = [5]\nrecipes = ["nnunet"]\nrecipe = 3', "recipe = 3"),
        ('datasets = [5]\nrecipes = ["x"]\n[recipe]\nx = 3', "recipe.x = 3"),
        ('datasets = [5]\nrecipes = ["x"]\n[recipe.x]\nbase = 3', "recipe.x.base = 3"),
        ('datasets = [5]\nrecipes = ["x"]\n[recipe.x]\ntrainer = "T"\nplans = ["a"]', "recipe.x.plans"),
        ('datasets = [5]\nrecipes = ["x"]\n[recipe.x]\nsettings = 3\ntrainer = "T"', "recipe.x.settings = 3"),
        ('datasets = [5]\nrecipes = ["nnunet"]\nlabel_fractions = [0]', "label_fractions"),
        ('datasets = [5]\nrecipes = ["nnunet"]\npreset = "none"', "preset = 'none'"),
        ('datasets = [5]\nrecipes = ["nnunet"]\n[settings]\nfinetuning = 3', "must be a table"),
        ('datasets = [5]\nrecipes = ["nnunet"]\n[settings.finetuning]\nepochs = 0', "finetuning.epochs = 0"),
        ('datasets = [5]\nrecipes = ["nnunet"]\n[settings.finetuning]\nseed = 1', "is set by seeds"),
        ('datasets = [5]\nrecipes = ["nnunet"]\n[settings]\n"topology.x" = 1\n"topology.x.y" = 1', "keys below"),
        ('datasets = [5]\nrecipes = ["nnunet"]\n[settings]\n"topology.x.y" = 1\n"topology.x" = 1', "keys below"),
    ],
)  # fmt: skip
def test_files_of_benchmarks(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "b.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        read_spec(file)
    # TOML's own message may have a line of its own.
    assert says in str(error.value) and (str(file) in str(error.value) or "no recipe" in says)


_TASK: dict[str, Any] = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "spleen"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": [],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, ABSENT) for key in ("modality", "labels", "training")),
        *(("labels", value) for value in (["background"], {}, None, {"x": "y"}, {"-1": "y"}, {"300": "y"}, {"0": 3})),
        *(("modality", value) for value in (["CT"], {}, {"1": "CT"}, {"0": "A", "2": "B"}, {"0": None}, "CT")),
        *(("training", value) for value in (["a.nii.gz"], None, {}, [{"image": "a"}], [{"image": 3, "label": "b"}])),
        *(("test", value) for value in ({}, [3], [{"image": "a"}], None)),
    ],
)  # fmt: skip
def test_tasks_of_the_decathlon(tmp_path: Path, key: str, value: Any) -> None:
    task = {name: entry for name, entry in {**_TASK, key: value}.items() if entry is not ABSENT}
    (tmp_path / "dataset.json").write_text(json.dumps(task))
    _fails(lambda: find_msd(tmp_path), str(tmp_path / "dataset.json"), repr(key))


@pytest.mark.parametrize(("content", "says"), [("[]", "must be a table"), ("{", "is not JSON")])
def test_task_files(tmp_path: Path, content: str, says: str) -> None:
    _fails(lambda: find_msd(tmp_path), "is missing")
    (tmp_path / "dataset.json").write_text(content)
    _fails(lambda: find_msd(tmp_path), says)


@pytest.mark.parametrize("image", ["../outside.nii.gz", "/etc/hostname"])
def test_tasks_stay_in_their_folder(tmp_path: Path, image: str) -> None:
    folder = tmp_path / "Task09_Spleen"
    folder.mkdir()
    (tmp_path / "outside.nii.gz").touch()
    entry = {"image": image, "label": "./labelsTr/a.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**_TASK, "training": [entry]}))
    _fails(lambda: find_msd(folder), "lies outside")


@pytest.mark.parametrize(
    ("rule", "says"),
    [("(", "not a regular expression"), ("abc", "0 groups"), ("(a)(b)", "2 groups"), ("none.json", "does not exist")],
)
def test_rules_for_patients(rule: str, says: str) -> None:
    _fails(lambda: Patients(rule), "pretraining.patients", says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "-d", "1", "-gpu_memory_target", "0"], "-gpu_memory_target 0"),
        (["plan", "-d", "1", "-gpu_memory_target", "nan"], "-gpu_memory_target nan"),
        (["plan", "-d", "1", "-gpu_memory_target", "-3"], "-gpu_memory_target -3"),
        (["benchmark", "status", "-b", "none.toml"], "none.toml does not exist"),
        (["convert", "msd", "none"], "none is not a folder"),
    ],
)
def test_commands_end_with_one_line_or_with_the_traceback(
    arguments: list[str],
    says: str,
    nnunet_env: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(arguments) == USER_ERROR
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and says in errors and "Traceback" not in errors
    with pytest.raises((ValueError, OSError)):
        main([*arguments, "--debug"])


def _hook(action: Callable[[], Any]) -> None:
    try:
        action()
    except Exception:
        failures._show(*sys.exc_info())  # type: ignore[arg-type]


def test_nnunets_commands_show_our_failures_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _hook(lambda: check_plans({}, "3d_fullres", "Plans.json"))
    printed = capsys.readouterr().err
    assert printed.startswith("error: Plans.json has no configurations") and "Traceback" not in printed
    monkeypatch.setenv(failures.DEBUG_VARIABLE, "1")
    _hook(lambda: check_plans({}, "3d_fullres", "Plans.json"))
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.delenv(failures.DEBUG_VARIABLE)
    # What we did not raise ourselves may be a bug, and keeps its traceback.
    for mistake in (lambda: int("x"), lambda: {}["x"], lambda: json.loads("{")):
        _hook(mistake)
        assert "Traceback" in capsys.readouterr().err


def test_an_excepthook_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", print)
    failures.show_expected_failures_in_one_line()
    assert sys.excepthook is print
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    failures.show_expected_failures_in_one_line()
    assert sys.excepthook is failures._show


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_results_that_cannot_be_written(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "/shared/results")

    def make_folder() -> None:
        with failures.results_can_be_written():
            raise OSError(number, os.strerror(number), "/shared/results/fold_0")

    with pytest.raises(OSError, match="cannot be written: .*fold_0.* below /shared/results.* nnUNet_results") as error:
        make_folder()
    assert "\n" not in str(error.value) and failures.is_expected(error.value)
