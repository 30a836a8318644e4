"""Pre-training reads images and nothing else; what it cannot read is named."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_topomae.data.images import open_image
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.selection import JointDataset
from nnunet_topomae.data.worker_errors import CheckedCases, WorkerErrors
from nnunet_topomae.datasets.unlabeled import unlabeled_folder

IMAGE = np.random.default_rng(0).normal(size=(1, 7, 9, 8)).astype(np.float32)


class _Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


def _write(folder: Path, case: str, properties: Any = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in ((case, IMAGE), (f"{case}_seg", np.zeros_like(IMAGE, dtype=np.int8))):
        blosc2.asarray(values, urlpath=str(folder / f"{name}.b2nd"), mode="w")
    (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))


def test_malicious_properties_are_not_read_by_pre_training(tmp_path: Path) -> None:
    folder, executed = tmp_path / "Plans_3d_fullres", tmp_path / "executed"
    _write(folder, "a", _Attack(executed))
    _write(unlabeled_folder(folder), "u", _Attack(executed))
    dataset = JointDataset(nnUNetDatasetBlosc2(str(folder), ["a"]), ["u"])
    loader = CropLocationLoader(dataset, 4, (4, 4, 4), LabelManager({"background": 0, "x": 1}, None), (0,), 1)
    batch = next(loader)
    assert batch["data"].shape == (4, 1, 4, 4, 4) and not executed.exists()
    nnUNetDatasetBlosc2(str(folder), ["a"]).load_case("a")
    assert executed.exists()  # the attack itself works


def test_an_image_that_is_damaged_in_its_middle_ends_pre_training_with_its_case(tmp_path: Path) -> None:
    """Such a file opens; it is decompressed only where a crop is cut."""
    file = tmp_path / "a.b2nd"
    image = np.random.default_rng(0).integers(0, 9, size=(1, 40, 40, 40)).astype(np.float32)
    blosc2.asarray(image, urlpath=str(file), mode="w")
    content = bytearray(file.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    file.write_bytes(content)
    dataset = JointDataset(nnUNetDatasetBlosc2(str(tmp_path), ["a"]), [])
    loader = CropLocationLoader(dataset, 1, (36, 36, 36), LabelManager({"background": 0, "x": 1}, None), (0,), 1)
    with pytest.raises(ValueError, match="preprocessed image of case a is damaged: .*preprocess again"):
        next(loader)


def test_all_kinds_of_files_give_the_same_image(tmp_path: Path) -> None:
    _write(tmp_path / "b2nd", "a")
    for name in ("npy", "npz"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "npy" / "a.npy", IMAGE)
    np.savez_compressed(tmp_path / "npz" / "a.npz", data=IMAGE, seg=IMAGE)
    for name in ("b2nd", "npy", "npz"):
        np.testing.assert_array_equal(open_image(tmp_path / name, "a")[:], IMAGE)
    joint = JointDataset(nnUNetDatasetNumpy(str(tmp_path / "npz"), ["a"]), [])
    np.testing.assert_array_equal(joint["a"][0], IMAGE)


@pytest.mark.parametrize("content", [b"", b"random bytes, not an image" * 20, "half"])
@pytest.mark.parametrize("suffix", [".b2nd", ".npz", ".npy"])
def test_a_damaged_image_is_named_with_the_cure(tmp_path: Path, content: bytes | str, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    if content == "half":
        _write(tmp_path, "whole")
        np.save(tmp_path / "whole.npy", IMAGE)
        np.savez(tmp_path / "whole.npz", data=IMAGE)
        content = (tmp_path / f"whole{suffix}").read_bytes()[:-1000]
    assert isinstance(content, bytes)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} cannot be read .*nnUNetv2_preprocess") as error:
        open_image(tmp_path, "a")
    assert "\n" not in str(error.value)


def test_other_contents(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGE[0])
    with pytest.raises(ValueError, match=r"a.npy has the shape \(7, 9, 8\); an image is \(C, D, H, W\)"):
        open_image(tmp_path, "a")
    with pytest.raises(FileNotFoundError, match="no preprocessed image of case b"):
        open_image(tmp_path, "b")
    np.save(tmp_path / "c.npy", np.array([_Attack(tmp_path / "executed")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="c.npy cannot be read"):
        open_image(tmp_path, "c")
    assert not (tmp_path / "executed").exists()


def test_errors_of_supervised_loaders_name_the_case(tmp_path: Path) -> None:
    _write(tmp_path, "a", {"class_locations": {}})
    description = {"channel_names": dict(enumerate("AB"[: len(IMAGE)]))}
    cases = CheckedCases(nnUNetDatasetBlosc2(str(tmp_path), ["a"]), description)
    assert cases.identifiers == ["a"] and cases["a"][0].shape == IMAGE.shape
    (tmp_path / "a.pkl").unlink()
    with pytest.raises(ValueError, match=f"case a in {tmp_path} cannot be read"):
        cases.load_case("a")


@pytest.mark.parametrize(
    ("image", "labels", "properties", "says"),
    [
        ((2, 7, 9, 8), (1, 7, 9, 8), {"class_locations": {}}, "its image has 2 channels, but dataset.json names 1"),
        (
            (1, 7, 9, 8),
            (1, 7, 9, 9),
            {"class_locations": {}},
            r"label map has the shape \(7, 9, 9\), but .*\(7, 9, 8\)",
        ),
        ((1, 7, 9, 8), (1, 7, 9, 8), {}, "no class_locations"),
    ],
)
def test_files_of_a_case_that_do_not_belong_together(
    image: tuple[int, ...], labels: tuple[int, ...], properties: dict[str, Any], says: str
) -> None:
    """Labels of another shape would be trained on without a word."""
    read = np.zeros(image), np.zeros(labels), None, properties
    dataset = SimpleNamespace(source_folder="folder", load_case=lambda case: read)
    with pytest.raises(ValueError, match=f"case a in folder cannot be read .*{says}.*Preprocess it again"):
        CheckedCases(dataset, {"channel_names": {"0": "CT"}}).load_case("a")


def test_a_long_error_does_not_block_the_worker() -> None:
    errors = WorkerErrors()
    with pytest.raises(ValueError), errors.reported():
        raise ValueError("x" * 1_000_000)
    assert len(errors.last() or "") <= 2000
    with pytest.raises(KeyError), errors.reported():
        raise KeyError
    assert errors.last() == "KeyError"
