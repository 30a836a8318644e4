"""Copies of validation cases under other names, and manifests that prove nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_topomae.data import sources
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.data.sources import CACHE_FILE, hash_sources
from nnunet_topomae.training.checks import check_no_copies, images_of
from nnunet_topomae.training.sources import read_checkpoint

FILE = Path("checkpoint_final.pth")


@pytest.mark.parametrize("part", ["cases", "unlabeled", "sources"])
@pytest.mark.parametrize("known", ["cases", "sources"])
def test_the_same_content_is_found_under_another_name(part: str, known: str) -> None:
    validation = ImagesRead(**{known: {"v1": "a" * 64, "v2": "b" * 64}})
    check_no_copies(ImagesRead(**{part: {"v1": "c" * 64}}), validation, "this training")  # the name alone is no copy
    with pytest.raises(ValueError, match=r"this training reads .*\(other is v2; same content.*fold 'all'"):
        check_no_copies(ImagesRead(**{part: {"other": "b" * 64}}), validation, "this training")


def _manifest(**changes: Any) -> dict[str, Any]:
    manifest = {"dataset": "Dataset001_A", "cases": {"a": "0" * 64}, "unlabeled": {}, **changes}
    return {key: value for key, value in manifest.items() if value != "absent"}


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ({}, "no manifest"),
        ({"manifest": None}, "no manifest"),
        ({"manifest": ["a"]}, "no manifest"),
        ({"manifest": {}}, "no usable dataset"),
        ({"manifest": _manifest(cases={})}, "an empty manifest"),
        ({"manifest": _manifest(cases="absent")}, "an empty manifest"),
        ({"manifest": _manifest(cases=["a"])}, "no usable cases"),
        ({"manifest": _manifest(cases={"a": None})}, "no usable cases"),
        ({"manifest": _manifest(cases={1: "0"})}, "no usable cases"),
        ({"manifest": _manifest(unlabeled=None)}, "no usable unlabeled"),
        ({"manifest": _manifest(sources=3)}, "no usable sources"),
        ({"manifest": _manifest(dataset=None)}, "no usable dataset"),
        ({"manifest": _manifest(dataset="absent", cases=0)}, "no usable cases, dataset"),
    ],
)
def test_a_manifest_that_is_missing_empty_or_damaged_is_refused(
    tmp_path: Path, described: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=f"has {says}.*nothing says which cases.*Pre-train again"):
        images_of(described, FILE)
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"topomae": {"role": "pretraining", **described}}, file)
    with pytest.raises(ValueError, match=f"{file} has {says}"):
        read_checkpoint(file)


@pytest.mark.parametrize("absent", ["plan", "config", "network_weights"])
def test_a_checkpoint_with_a_manifest_and_nothing_else(tmp_path: Path, absent: str) -> None:
    entry = {"role": "pretraining", "manifest": _manifest(), "plan": {}, "config": {}}
    checkpoint: dict[str, Any] = {"topomae": entry, "network_weights": {}}
    assert images_of(entry, FILE) == ImagesRead({"a": "0" * 64})
    torch.save(checkpoint, tmp_path / "whole.pth")
    assert read_checkpoint(tmp_path / "whole.pth") == checkpoint
    (checkpoint if absent in checkpoint else entry)[absent] = None
    torch.save(checkpoint, tmp_path / "damaged.pth")
    with pytest.raises(ValueError, match=f"damaged.pth is damaged: it has no usable {absent}"):
        read_checkpoint(tmp_path / "damaged.pth")


def _raw(folder: Path, cases: dict[str, bytes]) -> None:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    for case, content in cases.items():
        for channel in range(2):
            (folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz").write_bytes(content + bytes([channel]))


def test_raw_files_tell_copies_in_other_data_sets(nnunet_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, preprocessed = nnunet_env.raw, nnunet_env.preprocessed
    for name, cases in (("Dataset001_A", {"a": b"1", "b": b"2"}), ("Dataset002_B", {"x": b"2", "y": b"3"})):
        _raw(raw / name, cases)
        (preprocessed / name).mkdir()
    first = hash_sources(preprocessed / "Dataset001_A", ["a", "b", "not there"])
    second = hash_sources(preprocessed / "Dataset002_B", ["x", "y"])
    assert sorted(first) == ["a", "b"] and second["x"] == first["b"] and second["y"] not in first.values()
    # What is unchanged is not hashed again; what has changed is.
    hashed: list[Path] = []
    original = sources.hash_file
    monkeypatch.setattr(sources, "hash_file", lambda file: hashed.append(file) or original(file))
    assert hash_sources(preprocessed / "Dataset001_A", ["a", "b"]) == first and hashed == []
    (raw / "Dataset001_A" / "imagesTr" / "a_0001.nii.gz").write_bytes(b"another image")
    assert hash_sources(preprocessed / "Dataset001_A", ["a"])["a"] != first["a"] and len(hashed) == 2
    for damage in ("{", "[]", '{"a": 3}'):
        (preprocessed / "Dataset001_A" / CACHE_FILE).write_text(damage)
        assert hash_sources(preprocessed / "Dataset001_A", ["b"]) == {"b": first["b"]}
    assert hash_sources(preprocessed / "Dataset003_C", ["a"]) == {}
    monkeypatch.delenv("nnUNet_raw")
    assert hash_sources(preprocessed / "Dataset001_A", ["a"]) == {}
