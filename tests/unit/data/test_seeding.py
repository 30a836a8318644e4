"""nnU-Net's loader and augmentation: what a sample holds follows from its number, whoever draws it."""

import random
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_topomae.data.seeding import SeededLoader, seed_global_generators
from nnunet_topomae.data.worker_errors import CheckedCases, WorkerErrors
from nnunet_topomae.data.workers import NumberedLoader, Tickets, start_workers
from nnunet_topomae.training.batches import WatchedBatches

PATCH, LARGER = (6, 12, 10), (8, 14, 14)
CPU = torch.device("cpu")


class _Cases:
    """Cases in memory with the interface of nnU-Net's data sets."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.identifiers = ["a", "b", "c"]
        self.errors = WorkerErrors()
        self.images = {case: rng.normal(size=(2, 9, 16, 15)).astype(np.float32) for case in self.identifiers}
        self.labels = {case: (image[:1] > 1.5).astype(np.int16) for case, image in self.images.items()}

    def load_case(self, case: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        return self.images[case], self.labels[case], None, {"class_locations": {1: np.argwhere(self.labels[case])}}


def _loader(batch_size: int = 2, first_sample: int = 0, seed: int = 7, labels: list[int] | None = None) -> SeededLoader:
    """With all of nnU-Net's augmentation, deep supervision included."""
    limits = (-0.5, 0.5)
    transforms = nnUNetTrainer.get_training_transforms(
        PATCH, limits, [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), False, use_mask_for_norm=[False, False]
    )
    manager = LabelManager({"background": 0, "organ": 1}, None)
    # By chance which samples have foreground: one more thing to draw.
    options: dict[str, Any] = {"probabilistic_oversampling": True, "oversample_foreground_percent": 0.5}
    loader = nnUNetDataLoader(_Cases(), batch_size, LARGER, PATCH, manager, transforms=transforms, **options)
    return SeededLoader(loader, seed, first_sample, labels)


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    targets = zip(first["target"], second["target"], strict=True)
    same_targets = all(torch.equal(one, other) for one, other in targets)
    return torch.equal(first["data"], second["data"]) and same_targets and first["keys"] == second["keys"]


@cache
def _expected() -> list[dict[str, Any]]:
    loader = _loader()
    return [next(loader) for _ in range(9)]


def test_a_batch_follows_from_its_number_and_the_seed() -> None:
    loader = _loader()
    seed_global_generators(99)
    for number in (5, 0, 8):
        assert _same(loader.draw(number), _expected()[number])
    assert not _same(_loader(seed=8).draw(0), _expected()[0])
    assert not any(_same(one, other) for one in _expected() for other in _expected() if one is not other)
    assert {case for batch in _expected() for case in batch["keys"]} == {"a", "b", "c"}


def test_samples_of_two_processes_are_those_of_one() -> None:
    parts = [_loader(1, place).draw(3) for place in (0, 1)]
    assert torch.equal(torch.cat([part["data"] for part in parts]), _expected()[3]["data"])
    for scale, whole in enumerate(_expected()[3]["target"]):
        assert torch.equal(torch.cat([part["target"][scale] for part in parts]), whole)


@pytest.mark.parametrize(
    ("value", "labels"), [(7, [0, 1]), (-2, [0, 1]), (3, [0, 1, 255])], ids=["high", "low", "below ignore"]
)
def test_a_label_that_the_data_set_does_not_have_is_named_with_its_case(value: int, labels: list[int]) -> None:
    loader = _loader(labels=labels)
    assert _same(loader.draw(3), _expected()[3])
    for label_map in loader.loader._data.labels.values():
        label_map[:, 4] = value
    known = ", ".join(map(str, labels))
    with pytest.raises(
        ValueError, match=f"case [abc] has voxels of label {value}, but dataset.json has the labels {known}"
    ):
        loader.draw(3)
    assert f"label {value}" in str(loader.errors.last()) and loader.errors.last() is None


def test_an_image_with_nan_is_named() -> None:
    loader = _loader()
    for image in loader.loader._data.images.values():
        image[1, 4] = np.nan
    with pytest.raises(ValueError, match="case [abc] holds NaN or infinite voxels"):
        loader.draw(3)


@pytest.mark.parametrize("file", ["a.b2nd", "a_seg.b2nd"])
def test_a_file_that_is_damaged_in_its_middle_is_reported_with_its_case(tmp_path: Path, file: str) -> None:
    """Such a file opens; it is decompressed only where a crop is cut."""
    image = np.random.default_rng(0).normal(size=(2, 40, 40, 40)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, size=(1, 40, 40, 40)).astype(np.int16)
    properties = {"class_locations": {1: np.argwhere(labels)}}
    nnUNetDatasetBlosc2.save_case(image, labels, properties, str(tmp_path / "a"))
    content = bytearray((tmp_path / file).read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    (tmp_path / file).write_bytes(content)
    cases = CheckedCases(nnUNetDatasetBlosc2(str(tmp_path), ["a"]), {"channel_names": {"0": "CT", "1": "PET"}})
    manager = LabelManager({"background": 0, "organ": 1}, None)
    loader = SeededLoader(nnUNetDataLoader(cases, 2, (36, 36, 36), (36, 36, 36), manager), 7)
    with pytest.raises(ValueError, match="image or label map of case a is damaged: .*preprocess again"):
        loader.draw(0)
    assert "case a is damaged" in str(cases.errors.last())


def test_global_generators_are_put_back() -> None:
    loader = _loader()  # beartype draws which items of a list it checks
    seed_global_generators(5)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    next(loader)
    assert random.getstate() == states[0] and np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_brings_the_same_batches_in_the_same_order(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    batches = WatchedBatches(start_workers(_loader(), CPU, first=2), lambda: None)
    try:
        assert all(_same(next(batches), _expected()[number]) for number in range(2, 9))
    finally:
        batches.close()


class _Slow:
    """Needs long for every third batch; counts how far ahead the others are."""

    number, errors = 0, None

    def draw(self, number: int) -> dict[str, Any]:
        time.sleep(0.1 if number % 3 == 0 else 0.0)
        return {"is": number, "at": time.monotonic()}

    def __next__(self) -> dict[str, Any]:
        raise NotImplementedError


def test_workers_wait_for_a_slow_one_and_the_order_is_kept() -> None:
    tickets = Tickets(first=4, most=3)
    assert [tickets.take() for _ in range(3)] == [4, 5, 6]
    assert not tickets._room.acquire(block=False), "a fourth batch before the first one is used"
    tickets.used()
    assert tickets.take() == 7
    augmenter = NonDetMultiThreadedAugmenter(NumberedLoader(_Slow(), Tickets(0, 4), 0), None, 3, 2, wait_time=0.002)
    batches = WatchedBatches(augmenter, lambda: None)
    try:
        found = [next(batches) for _ in range(10)]
    finally:
        batches.close()
    assert [batch["is"] for batch in found] == list(range(10))
    came = [batch["at"] for batch in found]
    assert came != sorted(came), "batches came in order by themselves: the test shows nothing"
