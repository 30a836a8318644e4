import argparse
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from torch import nn
from torch.optim import AdamW

from nnunet_topomae.architectures.memory import GIB, TrainingMemory
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.commands.plan import add_arguments, run
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.plans.explain import explain
from nnunet_topomae.plans.preset import (
    FOLDER,
    apply_preset,
    check_dataset,
    load_preset,
    preset_names,
    table,
    value_in_plans,
)
from nnunet_topomae.plans.variants import make_variant
from nnunet_topomae.training.schedules import WarmupSchedule, poly

DOCS = Path(__file__).parents[3] / "docs"
PUBLISHED: dict[str, tuple[Any, ...]] = {  # window, spacing and crop in (x, y, z), classes: arXiv 2406.10519, Sec. III
    "synapse": ((-175, 250), (1.5, 1.5, 2.0), (96, 96, 96), 8),
    "btcv": ((-175, 250), (1.5, 1.5, 2.0), (96, 96, 96), 13),
    "acdc": (None, (1.52, 1.52, 6.35), (160, 160, 16), 3),
    "msd_spleen": ((-57, 164), (1.5, 1.5, 2.0), (96, 96, 96), 1),
    "msd_lung": ((-1000, 3071), (1.0, 1.0, 1.0), (192, 192, 32), 1),
}


def _plans(spacing: list[float]) -> dict[str, Any]:
    """What TopoMAEPlanner writes, as far as presets are concerned."""
    architecture = {
        "arch_kwargs": {
            "n_stages": 6,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
            "kernel_sizes": [[3, 3, 3]] * 6,
            "features_per_stage": [32, 64, 128, 256, 320, 320],
            "n_conv_per_stage": [2] * 6,
            "n_conv_per_stage_decoder": [2] * 5,
        }
    }
    fullres = {
        "data_identifier": "x_3d_fullres",
        "batch_size": 9,
        "patch_size": [128, 128, 128],
        "spacing": spacing,
        "median_image_size_in_voxels": [100, 200, 200],
        "normalization_schemes": ["CTNormalization"],
        "architecture": architecture,
        "topomae": TopoMAEConfig().to_plan(),
    }
    measured = {"mean": 80.0, "std": 60.0, "percentile_00_5": -50.0, "percentile_99_5": 200.0, "max": 900.0}
    return {
        "plans_name": "TopoMAEPlans_any",
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": measured},
        "configurations": {"2d": {}, "3d_fullres": fullres, "3d_lowres": deepcopy(fullres)},
    }


def test_there_are_the_papers_five() -> None:
    assert set(preset_names()) == set(PUBLISHED)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert all(name in parser.format_help() for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_satisfy_the_schema(name: str) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((FOLDER / f"{name}.json").read_text()), schema)
    keys = [value.key for value in load_preset(name).values]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    window, spacing, crop, classes = PUBLISHED[name]
    preset = load_preset(name)
    assert preset.get("intensity_window") == (list(window) if window else None)
    assert preset.get("spacing") == list(reversed(spacing))
    assert preset.get("patch_size") == list(reversed(crop))
    assert preset.foreground_classes == classes
    lambdas = [preset.get(f"pretraining.{key}") for key in ("lambda1", "lambda2", "lambda3", "mask_ratio")]
    assert lambdas == [0.5, 0.1, 0.1, 0.5]
    assert preset.get("pretraining.weight_decay") == preset.get("finetuning.weight_decay") == 0.005
    assert preset.get("pretraining.epochs") == 2 * preset.get("finetuning.epochs")


@pytest.mark.parametrize(
    ("name", "passes", "steps_per_pass"),
    [  # Six cases per step, the last one smaller: 18, 24, 140 (70 patients, two frames each), 33 and 51 cases.
        ("synapse", 10_000, 3),
        ("btcv", 10_000, 4),
        ("acdc", 2_000, 24),
        ("msd_spleen", 10_000, 6),
        ("msd_lung", 10_000, 9),
    ],
)
def test_epochs_by_hand(name: str, passes: int, steps_per_pass: int) -> None:
    assert load_preset(name).get("pretraining.epochs") * 250 == passes * steps_per_pass


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_read_the_same_batch_as_the_steps(name: str) -> None:
    preset = load_preset(name)
    reasons = {value.key: value.reason for value in preset.values}
    assert "6 per step" in reasons["pretraining.epochs"]
    assert preset.get("pretraining.learning_rate") == pytest.approx(6.4e-3 * 6 / 256)
    assert preset.get("finetuning.learning_rate") == pytest.approx(0.1 * 6 / 256)
    assert preset.get("finetuning.pretrained_learning_rate") == preset.get("finetuning.learning_rate")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_warm_up_is_a_tenth_and_takes_effect(name: str, stage: str) -> None:
    preset = load_preset(name)
    epochs, warmup = preset.get(f"{stage}.epochs"), preset.get(f"{stage}.warmup_steps")
    assert 10 * warmup == 250 * epochs
    peak = preset.get(f"{stage}.learning_rate")
    schedule = WarmupSchedule(AdamW([nn.Parameter(torch.zeros(1))], lr=peak), epochs, 250, warmup, poly)
    assert schedule.factor(0) < 0.001
    assert schedule.factor(warmup) == 1.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_applied_presets_can_be_trained(name: str) -> None:
    preset = load_preset(name)
    before = _plans(preset.get("spacing"))
    kept = deepcopy(before)
    plans = apply_preset(before, preset)
    assert before == kept
    configuration = plans["configurations"]["3d_fullres"]
    config = TopoMAEConfig.from_configuration(configuration)
    assert config.pretraining.epochs == preset.get("pretraining.epochs")
    assert config.finetuning.learning_rate == preset.get("finetuning.learning_rate")
    assert config.finetuning.pretrained_learning_rate == preset.get("finetuning.pretrained_learning_rate")
    kwargs = configuration["architecture"]["arch_kwargs"]
    shape = derive_network_shape(configuration["patch_size"], kwargs["strides"], config.architecture)
    assert shape.patch_size == tuple(preset.get("patch_size"))
    assert len({len(kwargs[key]) for key in ("strides", "kernel_sizes", "features_per_stage", "n_conv_per_stage")}) == 1
    assert plans["plans_name"] == f"TopoMAEPlans_{name}"
    assert configuration["data_identifier"] == f"TopoMAEPlans_{name}_3d_fullres"
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}


@pytest.mark.parametrize(("order", "axes"), [([0, 1, 2], (0, 1)), ([2, 0, 1], (1, 2)), ([1, 0, 2], (0, 1))])
def test_organs_of_the_left_and_the_right_are_not_mirrored(order: list[int], axes: tuple[int, ...]) -> None:
    for name in PUBLISHED:
        preset = load_preset(name)
        before = _plans([preset.get("spacing")[axis] for axis in order]) | {"transpose_forward": order}
        plans = apply_preset(before, preset)
        config = TopoMAEConfig.from_configuration(plans["configurations"]["3d_fullres"])
        # In LPS and (z, y, x), axis 2 runs from right to left.
        assert config.finetuning.mirror_axes == (axes if name in ("synapse", "btcv") else None), name
        assert value_in_plans("finetuning.mirror_axes", plans, plans["configurations"]["3d_fullres"]) == preset.get(
            "finetuning.mirror_axes"
        )


@pytest.mark.slow
def test_an_explanation_has_the_presets_reasons_and_the_warm_up_that_is_used() -> None:
    preset = load_preset("synapse")
    plans = apply_preset(_plans(preset.get("spacing")), preset)
    plans |= {"dataset_name": "Dataset018_Synapse", "image_reader_writer": "SimpleITKIO"}
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    explained = _rows(plans, description)
    for value in preset.values:
        assert any(f"preset synapse, {value.source}: {value.reason}" in row for row in explained[value.key]), value.key
    assert "after a warm-up of 3000 steps" in explained["pretraining.learning_rate"][0]
    variant = make_variant(plans, "short", ["3d_fullres"], {"pretraining.epochs": 20, "finetuning.mirror_axes": None})
    explained = _rows(variant, description)
    assert "after a warm-up of 500 steps, a tenth of all; the plan asks for 3000" in "".join(
        explained["pretraining.learning_rate"]
    )
    assert explained["pretraining.epochs"][1].endswith("changed: preset synapse has 120")
    assert explained["finetuning.mirror_axes"][0].split()[1:3] == ["null", "changed:"]


def _rows(plans: dict[str, Any], description: dict[str, Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for line in explain(plans, description, "3d_fullres").splitlines()[2:]:
        rows.setdefault(line.split("  ")[0], []).append(line)
    return rows


@pytest.mark.parametrize("name", [name for name, values in PUBLISHED.items() if values[0]])
def test_the_window_becomes_zero_to_one(name: str) -> None:
    low, high = PUBLISHED[name][0]
    plans = apply_preset(_plans(load_preset(name).get("spacing")), load_preset(name))
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    normalise = CTNormalization(use_mask_for_norm=False, intensityproperties=properties)
    values = np.array([low - 500.0, low, (low + high) / 2, high, high + 500.0], np.float32)
    np.testing.assert_allclose(normalise.run(values.copy()), [0.0, 0.0, 0.5, 1.0, 1.0], atol=1e-6)
    assert properties["source"] == f"published window {low}..{high}"


@pytest.mark.parametrize(
    ("name", "channels", "labels", "message"),
    [
        ("synapse", ["MR"], 8, "one CT channel"),
        ("acdc", ["CT"], 3, "one MR channel"),
        ("msd_lung", ["CT", "PET"], 1, "one CT channel"),
        ("synapse", ["CT"], 13, "for 8 labels, the data set has 13"),
    ],
)
def test_other_data_sets_are_refused(name: str, channels: list[str], labels: int, message: str) -> None:
    description = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {"background": 0, **{f"organ {number}": number for number in range(1, labels + 1)}},
    }
    with pytest.raises(ValueError, match=message):
        check_dataset(load_preset(name), description)


def test_unknown_preset_and_other_spacing() -> None:
    with pytest.raises(ValueError, match="there are acdc, btcv, msd_lung, msd_spleen, synapse"):
        load_preset("brats")
    with pytest.raises(ValueError, match="have spacing"):
        apply_preset(_plans([1.0, 1.0, 1.0]), load_preset("synapse"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_documentation_shows_what_the_files_hold(name: str) -> None:
    assert table(load_preset(name)) in (DOCS / "datasets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("raw", "preprocessed", "message"),
    [
        ([["a"], ["b"]], [["a"], ["c"]], "fold 1 of .*raw.* is not that of .*preprocessed"),
        (None, [["a"], ["b"]], "has 2 folds, so the published split cannot be fold 5"),
        ([["a"], ["b"]], None, "has 2 folds, so the published split cannot be fold 5"),
    ],
)
def test_folds_that_do_not_fit_stop_the_command_before_it_plans(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raw: list[list[str]] | None,
    preprocessed: list[list[str]] | None,
    message: str,
) -> None:
    for kind, folds in (("raw", raw), ("preprocessed", preprocessed)):
        folder = tmp_path / kind / "Dataset006_Lung"
        folder.mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
        if folds is not None:
            content = [{"train": ["t"], "val": cases} for cases in folds]
            (folder / "splits_final.json").write_text(json.dumps(content))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "cancer": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "raw" / "Dataset006_Lung" / "dataset.json").write_text(json.dumps(description))
    monkeypatch.setattr("nnunet_topomae.commands.plan._training_cases", lambda _: {f"lung_{n}": {} for n in range(64)})
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ValueError, match=message):
        run(parser.parse_args(["-d", "6", "--preset", "msd_lung"]))
    assert not list(tmp_path.rglob("*Plans*"))


@pytest.mark.usefixtures("light_nnunet")
def test_plan_and_preprocess_with_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw" / "Dataset009_Spleen"
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for number in range(2):
        labels = np.zeros((12, 20, 24), np.uint8)
        labels[3:8, 5:12, 6:15] = 1
        hu = np.where(labels, 90, -900) + np.random.default_rng(number).normal(0, 30, labels.shape)
        for values, name in ((hu.astype(np.int16), f"imagesTr/s{number}_0000"), (labels, f"labelsTr/s{number}")):
            image = sitk.GetImageFromArray(values)
            image.SetSpacing((1.5, 1.5, 4.0))
            sitk.WriteImage(image, str(raw / f"{name}.nii.gz"))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "spleen": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    (raw / "patients.json").write_text('{"s0": "anna", "s1": "anna"}')
    folder = tmp_path / "preprocessed" / "Dataset009_Spleen"
    folder.mkdir()
    by_hand = {"configurations": {"mine": {"inherits_from": "3d_fullres", "batch_size": 7}}}
    (folder / "TopoMAEPlans_msd_spleen.json").write_text(json.dumps(by_hand))
    # The preset has sizes of its own, whatever the planner finds.
    need = TrainingMemory(fixed=0, per_sample=GIB)
    monkeypatch.setattr("nnunet_topomae.plans.planner.estimate_need", lambda *_: need)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["-d", "9", "--preset", "msd_spleen", "-npfp", "1", "-np", "1"])) == 0

    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    plans = json.loads((folder / "TopoMAEPlans_msd_spleen.json").read_text())
    assert plans["plans_name"] == "TopoMAEPlans_msd_spleen"
    assert json.loads((folder / "patients.json").read_text()) == {"s0": "anna", "s1": "anna"}
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [96, 96, 96]
    assert plans["configurations"]["mine"] == by_hand["configurations"]["mine"]
    data = nnUNetDatasetBlosc2(str(folder / "TopoMAEPlans_msd_spleen_3d_fullres")).load_case("s0")[0][:]
    assert data.shape == (1, 24, 20, 24)
    assert data.min() == 0.0
    assert data.max() <= 1.1  # cubic resampling overshoots a little
    assert np.median(data[0, 8:14, 7:10, 9:12]) == pytest.approx((90 + 57) / 221, abs=0.1)
