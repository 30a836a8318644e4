"""The trainers inside nnU-Net, in one process, on tiny data with regions, an ignore label and a constant image."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

DATASET = "Dataset901_Tiny"
SHAPE = (20, 36, 28)
SECTION: dict[str, Any] = {
    "architecture": {"vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1},
    "pretraining": {"epochs": 3, "iterations_per_epoch": 2, "validation_iterations": 1, "seed": 1},
    "topology": {"warmup_epochs": 0, "region_size": 12},
    "finetuning": {"epochs": 3, "iterations_per_epoch": 2, "validation_iterations": 1, "seed": 1},
}


def _write_case(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint8)
    z, y, x = (int(rng.integers(2, size // 2)) for size in SHAPE)
    labels[z : z + 8, y : y + 14, x : x + 12] = 1
    labels[z + 2 : z + 6, y + 4 : y + 10, x + 3 : x + 9] = 2
    labels[:2] = 3  # not annotated
    image = labels.astype(np.float32) + 0.3 * rng.normal(size=SHAPE)
    if number == 0:
        image = np.full(SHAPE, 7.0)  # a scan that failed
    for values, name in ((image.astype(np.float32), f"imagesTr/c{number}_0000"), (labels, f"labelsTr/c{number}")):
        written = sitk.GetImageFromArray(values)
        written.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(written, str(folder / f"{name}.nii.gz"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net folders with the planned and preprocessed data set."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        raw = root / "raw" / DATASET
        for name in ("imagesTr", "labelsTr"):
            (raw / name).mkdir(parents=True)
        for number in range(6):
            _write_case(raw, number)
        description = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
            "regions_class_order": [1, 2],
            "numTraining": 6,
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess_dataset,
        )

        extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        assert plan_experiments([901], "TopoMAEPlanner") == "TopoMAEPlans"
        plans = root / "preprocessed" / DATASET / "TopoMAEPlans.json"
        values = json.loads(plans.read_text())
        assert values["configurations"]["3d_fullres"]["topomae"]["pretraining"]["mask_ratio"] == 0.5
        values["configurations"]["3d_fullres"]["topomae"] = SECTION
        plans.write_text(json.dumps(values))
        preprocess_dataset(901, "TopoMAEPlans", ("3d_fullres",), num_processes=(1,), show_progress_bar=False)
        with chdir(root):
            yield root


def _variant(root: Path, name: str, patch_size: list[int] | None = None, **finetuning: Any) -> str:
    folder = root / "preprocessed" / DATASET
    values = json.loads((folder / "TopoMAEPlans.json").read_text())
    values["plans_name"] = name
    values["configurations"]["3d_fullres"]["topomae"]["finetuning"] |= finetuning
    if patch_size is not None:
        values["configurations"]["3d_fullres"]["patch_size"] = patch_size
    (folder / f"{name}.json").write_text(json.dumps(values))
    return name


def _train(
    trainer: str, plans: str = "TopoMAEPlans", configuration: str = "3d_fullres", fold: int = 0, **options: Any
) -> None:
    import torch
    from nnunetv2.run.run_training import run_training

    run_training("901", configuration, fold, trainer, plans, device=torch.device("cpu"), **options)


def _fold(root: Path, trainer: str, plans: str = "TopoMAEPlans") -> Path:
    return root / "results" / DATASET / f"{trainer}__{plans}__3d_fullres" / "fold_0"


def _epochs(fold: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]


def _interrupt(monkeypatch: pytest.MonkeyPatch, module: str, trainer: str, epoch: int) -> None:
    """Let a trainer die at the start of an epoch, as by a power cut."""
    import importlib

    found = getattr(importlib.import_module(module), trainer)
    original = found.on_train_epoch_start

    def on_train_epoch_start(self: Any) -> None:
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(found, "on_train_epoch_start", on_train_epoch_start)


def test_the_fusion_trainer_says_what_to_run_first(workspace: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr TopoMAEPretrainer"):
        _train("TopoMAEFusionTrainer", _variant(workspace, "untrained"))


def test_2d_configuration_is_refused(workspace: Path) -> None:
    with pytest.raises(ValueError, match="3D configurations only"):
        _train("TopoMAEPretrainer", configuration="2d")


def test_pre_training_is_interrupted_continued_and_fine_tuned(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    with monkeypatch.context() as patch:
        _interrupt(patch, "nnunet_topomae.trainers.pretrainer", "TopoMAEPretrainer", 2)
        with pytest.raises(KeyboardInterrupt):
            _train("TopoMAEPretrainer")
    fold = _fold(workspace, "TopoMAEPretrainer")
    before = _epochs(fold)
    assert [epoch["epoch"] for epoch in before] == [0, 1]
    with pytest.raises(FileNotFoundError, match="no finished pre-training .*\n.*--c"):
        _train("TopoMAEFusionTrainer")
    _train("TopoMAEPretrainer", continue_training=True)
    assert [epoch["epoch"] for epoch in _epochs(fold)] == [0, 1, 2]
    assert _epochs(fold)[:2] == before

    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    described = checkpoint["topomae"]
    splits = json.loads((workspace / "preprocessed" / DATASET / "splits_final.json").read_text())
    assert sorted(described["manifest"]["cases"]) == sorted(splits[0]["train"])
    assert described["role"] == "pretraining" and described["plan"]["channels"] == 1
    summary = json.loads((fold / "validation" / "summary.json").read_text())["reconstruction"]
    assert sorted(summary["cases"]) == sorted(splits[0]["train"])
    assert not {path.stem for path in (fold / "validation" / "previews").iterdir()} & set(splits[0]["val"])

    capsys.readouterr()
    with monkeypatch.context() as patch:
        _interrupt(patch, "nnunet_topomae.trainers.fusion_trainer", "TopoMAEFusionTrainer", 2)
        with pytest.raises(KeyboardInterrupt):
            _train("TopoMAEFusionTrainer")
    assert "weights matched" in capsys.readouterr().out
    _train("TopoMAEFusionTrainer", continue_training=True)
    fold = _fold(workspace, "TopoMAEFusionTrainer")
    assert [epoch["epoch"] for epoch in _epochs(fold)] == [0, 1, 2]
    assert set(json.loads((fold / "validation" / "summary.json").read_text())["mean"]) == {"(1, 2)", "2"}

    # -pretrained_weights takes the same file, also where the fold has no pre-training of its own; it counts and checks.
    capsys.readouterr()
    name = _variant(workspace, "given", transfer_parts="vit")
    weights = str(_fold(workspace, "TopoMAEPretrainer") / "checkpoint_final.pth")
    _train("TopoMAEFusionTrainer", name, pretrained_weights=weights)
    assert f"pre-trained weights from {weights}: " in capsys.readouterr().out
    became = json.loads((_fold(workspace, "TopoMAEFusionTrainer", name) / "transfer.json").read_text())["weights"]
    assert {name.split(".")[0] for name, what in became.items() if what == "copied"} == {"vit_encoder"}
    with pytest.raises(ValueError, match="validation cases of this fold"):
        _train("TopoMAEFusionTrainer", name, fold=1, pretrained_weights=weights)

    # The same file for a plan with another patch: refused, or adapted where the plan asks for it.
    name = _variant(workspace, "otherpatch", patch_size=[16, 24, 24], pretrained=weights)
    with pytest.raises(ValueError, match=r"another plan \(patch_size.*finetuning.transfer=resample"):
        _train("TopoMAEFusionTrainer", name)
    name = _variant(workspace, "adapted", patch_size=[16, 24, 24], pretrained=weights, transfer="resample")
    capsys.readouterr()
    _train("TopoMAEFusionTrainer", name)
    assert "of them resampled" in capsys.readouterr().out
    became = json.loads((_fold(workspace, "TopoMAEFusionTrainer", name) / "transfer.json").read_text())["weights"]
    assert became["encoder.stages.0.embeddings.0.position"].startswith("resampled (8, ")
    assert became["vit_encoder.blocks.0.attn.qkv.weight"] == "copied"

    # UNETR takes its ViT.
    name = _variant(workspace, "unetr", pretrained=weights)
    _train("UNETRTrainer", name)
    became = json.loads((_fold(workspace, "UNETRTrainer", name) / "transfer.json").read_text())["weights"]
    assert {name.split(".")[0] for name, what in became.items() if what == "copied"} == {"vit_encoder"}
    assert {name.split(".")[0] for name, what in became.items() if what == "fresh"} == {"unetr_decoder"}

    # The same file named in the plan; but another fold's validation cases are in it.
    name = _variant(workspace, "named", pretrained=weights)
    other = json.loads((workspace / "preprocessed" / DATASET / "splits_final.json").read_text())[1]["val"]
    with pytest.raises(ValueError, match=f"validation cases of this fold.*{sorted(other)[0]}"):
        _train("TopoMAEFusionTrainer", name, fold=1)


def test_same_seed_same_pre_training(workspace: Path) -> None:
    names = [_variant(workspace, name) for name in ("first", "second")]
    for name in names:
        _train("TopoMAEPretrainer", name)
    first, second = ([epoch["train"] for epoch in _epochs(_fold(workspace, "TopoMAEPretrainer", n))] for n in names)
    assert first == second


def test_pre_training_of_the_vit_alone(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from nnunet_topomae.architectures.build import build_copretraining_network
    from nnunet_topomae.architectures.rule import derive_network_shape
    from nnunet_topomae.config import TopoMAEConfig
    from nnunet_topomae.training.previews import Preview

    name = _variant(workspace, "vitalone")
    plans = workspace / "preprocessed" / DATASET / f"{name}.json"
    values = json.loads(plans.read_text())
    section = values["configurations"]["3d_fullres"]["topomae"]
    section["pretraining"] |= {"lambda1": 0.0, "lambda3": 0.0, "learning_rate": 0.01, "weight_decay": 0.5}
    section["topology"] |= {"every": 2}
    plans.write_text(json.dumps(values))
    _train("TopoMAEPretrainer", name)
    fold = _fold(workspace, "TopoMAEPretrainer", name)
    printed = capsys.readouterr().out
    assert "the error L_spa of always answering the mean" in printed
    assert "warning: the place of a crop carries only" in printed  # the planned patch is as large as these images
    assert json.loads((fold / "key_points.json").read_text())["share"] < 0.01

    terms = {"mse_vit", "spa_vit", "topo_vit", "total"}
    assert all(set(epoch[part]) == terms for epoch in _epochs(fold) for part in ("train", "validation"))
    assert (fold / "progress.png").is_file()
    summary = json.loads((fold / "validation" / "summary.json").read_text())["reconstruction"]
    assert set(summary["mean"]) == {"vit"}
    previews = sorted((fold / "validation" / "previews").glob("*.npz"))
    assert previews and Preview.load(previews[0]).columns == ("input", "masked", "vit")

    # The checkpoint has all weights; those of UNETR++ are the initial ones, without decay.
    trained = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    stage = values["configurations"]["3d_fullres"]
    architecture = TopoMAEConfig.from_configuration(stage).architecture
    strides = stage["architecture"]["arch_kwargs"]["strides"]
    shape = derive_network_shape(tuple(stage["patch_size"]), strides, architecture)
    torch.manual_seed(SECTION["pretraining"]["seed"])
    initial = build_copretraining_network(shape, 1, architecture).state_dict()
    same = {name for name, value in initial.items() if torch.equal(value, trained[name])}
    assert {name for name in initial if name.startswith(("encoder.", "decoder.", "key_points."))} <= same
    assert "vit_encoder.blocks.0.attn.qkv.weight" not in same


@pytest.mark.parametrize(
    ("trainer", "mirror_axes", "in_prediction"),
    [
        ("TopoMAEFusionTrainer", [0, 1], (0, 1)),
        ("UNETRPPTrainer", None, (0, 1, 2)),
        ("UNETRPPTrainer", [], None),
        ("UNETRTrainer", None, (0, 1, 2)),
    ],
)
def test_training_from_scratch(
    workspace: Path,
    trainer: str,
    mirror_axes: list[int] | None,
    in_prediction: tuple[int, ...] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    mirrored = "default" if mirror_axes is None else len(mirror_axes)
    name = _variant(workspace, f"scratch{trainer}{mirrored}", pretrained="scratch", mirror_axes=mirror_axes)
    _train(trainer, name)
    fold = _fold(workspace, trainer, name)
    assert (fold / "validation" / "summary.json").is_file()
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] == in_prediction
    assert "weights matched" not in capsys.readouterr().out


def test_unlabelled_images_are_read_and_listed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from nnunet_topomae.cli import main

    unlabelled = workspace / "raw" / DATASET / "imagesUn"
    unlabelled.mkdir()
    for name, case in (("u1", 20), ("u2", 21)):
        _write_case(workspace / "raw" / DATASET, case)
        moved = workspace / "raw" / DATASET / "imagesTr" / f"c{case}_0000.nii.gz"
        moved.rename(unlabelled / f"{name}_0000.nii.gz")
        (workspace / "raw" / DATASET / "labelsTr" / f"c{case}.nii.gz").unlink()
    splits = json.loads((workspace / "preprocessed" / DATASET / "splits_final.json").read_text())
    copied = splits[0]["val"][0]
    image = (workspace / "raw" / DATASET / "imagesTr" / f"{copied}_0000.nii.gz").read_bytes()
    (unlabelled / "copy_0000.nii.gz").write_bytes(image)
    assert main(["preprocess-unlabeled", "-d", "901"]) == 0
    assert "3 unlabelled images" in capsys.readouterr().out
    name = _variant(workspace, "unlabelled")
    _train("TopoMAEPretrainer", name)
    printed = capsys.readouterr().out
    assert "and 2 unlabelled images" in printed
    assert f"left out copy: the same image as validation case {copied}" in printed
    checkpoint = torch.load(_fold(workspace, "TopoMAEPretrainer", name) / "checkpoint_final.pth", weights_only=False)
    assert sorted(checkpoint["topomae"]["manifest"]["unlabeled"]) == ["u1", "u2"]
    assert checkpoint["topomae"]["manifest"]["intensity_statistics"] == "of each image alone"
