"""Bad arguments and damaged files, given to the real commands: one line that names what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.cli import USER_ERROR, main

RECORD = {"epoch": 0, "seconds": 1.0, "learning_rate": 1e-3, "train": {"total": 1.0}, "validation": {"total": 1.0}}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a command that must end with one line, and no traceback."""

    def run(arguments: list[str], *says: str) -> None:
        assert main(arguments) == USER_ERROR
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert all(part in error for part in says), error

    return run


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """Folder of a pre-training of one epoch."""
    fold = tmp_path / "Dataset007_T" / "TopoMAEPretrainer__Plans__3d_fullres" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "training_log_1.txt").touch()
    (fold / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    return fold


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "{}", '{"epoch": "x"}', '{"epoch": 0, "train": null}', '{"epoch": 0, "validation": 3}', "\x00", "",
     '{"epoch": 0, "sec'],
)  # fmt: skip
def test_a_damaged_record_of_an_epoch(fold: Path, refused: Callable[..., None], line: str) -> None:
    file = fold / "metrics.jsonl"
    file.write_text(f"{line}\n{json.dumps(RECORD)}\n")
    refused(["report", str(fold)], f"{file}: line 1 of 2", "Restore or delete it")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("training.json", content) for content in ("[]", "3", "{", "null")),
        *(("debug.json", content) for content in ("[]", "{")),
        *(("validation/summary.json", content) for content in ("[]", '"x"', "")),
    ],
)
def test_a_damaged_file_of_a_training(fold: Path, refused: Callable[..., None], name: str, content: str) -> None:
    (fold / name).write_text(content)
    refused(["report", str(fold)], str(fold / name))


def test_a_page_that_cannot_be_written(fold: Path, refused: Callable[..., None]) -> None:
    for target in (fold, fold / "missing" / "page.html"):
        refused(["report", str(fold), "-o", str(target)], str(target), "name a file in a folder that exists")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"topomae": []}, "does not describe itself"),
        ({"topomae": {}}, "has no plan"),
        ({"topomae": {"plan": {}, "manifest": None}}, "has no manifest"),
        ({"init_args": None}, "init_args"),
        ({"init_args": {}}, "init_args"),
    ],
)
def test_a_checkpoint_that_lacks_something(
    tmp_path: Path, refused: Callable[..., None], changes: dict[str, Any], says: str
) -> None:
    import torch

    whole = {"topomae": {"plan": {}, "manifest": {}}, "init_args": {"plans": {}}, "network_weights": {}}
    torch.save({**whole, **changes}, tmp_path / "c.pth")
    refused(["doctor", "--checkpoint", str(tmp_path / "c.pth")], str(tmp_path / "c.pth"), says)


@pytest.mark.parametrize(
    "options",
    [
        ["--patch", "0", "64", "64"], ["--patch", "-16", "64", "64"], ["--channels", "0"], ["--channels", "-1"],
        ["--classes", "0"], ["--spacing", "0", "1", "1"], ["--spacing", "-1", "1", "1"], ["--spacing", "nan", "1", "1"],
    ],
)  # fmt: skip
def test_sizes_that_are_none(refused: Callable[..., None], options: list[str]) -> None:
    refused(["parameters", "--patch", "64", "64", "64", *options], f"{' '.join(options)}: all of it must be above 0")


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"configuration": 3}', '{"configuration": {"architecture": {}}}']
)
def test_an_encoder_whose_description_is_damaged(tmp_path: Path, refused: Callable[..., None], content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    refused(["push", str(tmp_path), "a/b"], str(tmp_path / "config.json"))


def test_arguments_that_name_something_else(tmp_path: Path, nnunet_env: Any, refused: Callable[..., None]) -> None:
    file = tmp_path / "bench.toml"
    file.write_bytes(b"\xff\xfe\x00")
    refused(["benchmark", "status", "-b", str(file)], f"{file} is not TOML")
    refused(["demo", "--out", str(file), "--device", "cpu"], f"{file} is a file", "--out")
    for folder in (file, tmp_path):
        refused(["push", str(folder), "a/b"], f"{folder} holds no config.json", "export-encoder")
    for fold in ("x", "-1", "1.5", ""):
        refused(["train", "7", "3d_fullres", "-tr", "X", "-device", "cpu", "--", fold], f"fold {fold!r}", "or all")
