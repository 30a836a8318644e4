import argparse
import json
from pathlib import Path

import pytest

from nnunet_topomae.commands.parameters import add_arguments, run


def parameters(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments))


@pytest.mark.slow
def test_table_of_a_patch(capsys: pytest.CaptureFixture[str]) -> None:
    strides = ("1x2x2", "2x2x2", "2x2x2", "2x2x2", "2x2x2")
    assert parameters("--patch", "64", "128", "128", "--strides", *strides, "--classes", "14", "--vit", "small") == 0
    printed = capsys.readouterr().out
    assert "stem 2x4x4, stages 32x32x32 > 16x16x16 > 8x8x8 > 4x4x4" in printed
    assert "ViT tokens 8x8x8 of 8x16x16 voxels" in printed
    rows = {line[:22].strip(): line[22:].split() for line in printed.splitlines()}
    assert rows["UNETR++"] == ["-", "42.95", "47.45"]
    assert rows["fusion"][0] == rows["co-pre-training"][0] == "small"
    assert float(rows["fusion"][1]) == pytest.approx(66.5, rel=0.01)


@pytest.mark.slow
def test_strides_of_nnunet_and_all_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_topomae.architectures.summary.network_macs", lambda *_: 0)
    assert parameters("--patch", "16", "64", "64", "--spacing", "6", "1.5", "1.5", "--vit", "all") == 0
    printed = capsys.readouterr().out
    assert "stem 1x2x2" in printed
    presets = [line.split()[1] for line in printed.splitlines() if line.startswith("fusion")]
    assert presets == ["tiny", "small", "default", "base"]


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A planned data set with two channels and three classes."""
    folder = tmp_path / "Dataset123_Test"
    folder.mkdir()
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "patch_size": [16, 64, 48],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
        "batch_size": 2,
        "architecture": {
            "network_class_name": "unused",
            "arch_kwargs": {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]},
            "_kw_requires_import": [],
        },
        "topomae": {"architecture": {"vit": "tiny"}},
    }
    plans = {"dataset_name": "Dataset123_Test", "plans_name": "nnUNetPlans"}
    (folder / "nnUNetPlans.json").write_text(json.dumps({**plans, "configurations": {"3d_fullres": configuration}}))
    labels = {"background": 0, "a": 1, "b": 2}
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["123", "Dataset123_Test"])
def test_table_of_a_plan(
    name: str, preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_topomae.architectures.summary.network_macs", lambda *_: 0)
    assert parameters("-d", name) == 0
    printed = capsys.readouterr().out
    assert "patch 16x64x48, channels 2, classes 3" in printed
    assert any(line.split()[:2] == ["fusion", "tiny"] for line in printed.splitlines())


def test_a_plans_own_network_with_and_without_a_vit(
    preprocessed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_topomae.architectures.summary.network_macs", lambda *_: 0)
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    stages = len(strides)
    configuration["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 8, 16, 32, 32, 32][:stages],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": strides,
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "nonlin": "torch.nn.LeakyReLU",
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
    for vit, expected in (
        ("tiny", [("PlainConvUNet", "-"), ("co-pre-training", "tiny"), ("fusion", "tiny")]),
        ("none", [("PlainConvUNet", "-"), ("pre-training", "none")]),
    ):
        configuration["topomae"] = {"architecture": {"partner": "plan", "vit": vit}}
        file.write_text(json.dumps(plans))
        assert parameters("-d", "123") == 0
        table = [tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines() if line.endswith("0.00")]
        assert table == expected


def test_missing_plans_and_configurations_are_named(preprocessed: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plans .*OtherPlans.json; plans of this data set: nnUNetPlans"):
        parameters("-d", "123", "-p", "OtherPlans")
    with pytest.raises(ValueError, match=r"has no configuration '3d_lowres'; it has 3d_fullres"):
        parameters("-d", "123", "-c", "3d_lowres")


def test_nnunet_folder_is_needed_for_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ValueError, match="nnUNet_preprocessed is not set"):
        parameters("-d", "123")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strides", "2x2"), "'2x2' must be three numbers"),
        (("--strides", "2xax2"), "'2xax2' must be three numbers"),
        (("--vit", "huge"), "unknown ViT preset 'huge'; choose from tiny"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters("--patch", "96", "96", "96", *arguments)


def test_patch_or_plan_is_required() -> None:
    with pytest.raises(SystemExit):
        parameters()
