import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.config import TopologyConfig, TopoMAEConfig
from nnunet_topomae.data import selection
from nnunet_topomae.data.cases import ImagesRead, hash_images
from nnunet_topomae.data.selection import PretrainingCases
from nnunet_topomae.trainers import pretrainer
from nnunet_topomae.trainers.planned import PlannedTrainer
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer


def test_one_process_of_a_training_hashes_the_images_and_writes_their_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_folder, output_folder = tmp_path / "data", tmp_path / "fold_0"
    for folder in (data_folder, output_folder):
        folder.mkdir()
    for case in "abc":
        (data_folder / f"{case}.b2nd").write_bytes(case.encode())
    expected = hash_images(data_folder, "ab")
    calls: list[tuple[str, ...]] = []

    def count(folder: Path, cases: Any) -> dict[str, str]:
        calls.append(tuple(cases))
        return hash_images(folder, cases)

    monkeypatch.setattr(selection, "hash_images", count)
    monkeypatch.setattr(selection, "read_manifest", lambda *_: {})
    monkeypatch.setattr(pretrainer, "start_workers", lambda loader, *_: loader)
    monkeypatch.setattr(pretrainer, "SingleThreadedAugmenter", lambda loader, _: loader)
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: self.get_dataloaders())
    loaded: list[Any] = []

    def trainer(rank: int) -> Any:
        made = TopoMAEPretrainer.__new__(TopoMAEPretrainer)
        vars(made).update(
            do_split=lambda: (["b", "a"], ["c"]),
            preprocessed_dataset_folder=str(data_folder),
            output_folder=str(output_folder),
            plans_manager=SimpleNamespace(plans={}),
            plan=SimpleNamespace(config=TopoMAEConfig()),
            config=TopoMAEConfig(),
            configuration_name="3d_fullres",
            fold=0,
            print_to_log_file=lambda *_: None,
            current_epoch=0,
            seed=1,
            local_rank=rank,
            device=None,
            build_loader=lambda *arguments: loaded.append(arguments),
            images_read=ImagesRead(),
            was_initialized=True,
        )
        return made

    second = trainer(rank=1)
    PlannedTrainer.on_train_start(second)
    assert calls == [] and list(output_folder.iterdir()) == [] and second.images_read == ImagesRead()
    assert [arguments[0] for arguments in loaded] == [["a", "b"], ["a", "b"]]
    first = trainer(rank=0)
    PlannedTrainer.on_train_start(first)
    assert calls == [("a", "b"), ()]
    assert first.images_read == ImagesRead(cases=expected)
    assert json.loads((output_folder / "cases_read.json").read_text()) == expected


def test_a_step_with_topology_counts_for_those_without_and_for_the_warm_up() -> None:
    made: Any = TopoMAEPretrainer.__new__(TopoMAEPretrainer)
    config = TopoMAEConfig(topology=TopologyConfig(every=3, warmup_epochs=4))
    scales: list[float] = []

    def step(batch: Any, seeds: Any, scale: float) -> dict[str, torch.Tensor]:
        scales.append(scale)
        return {"total": torch.tensor(2.0)}

    doing_nothing = {"follow_schedule": lambda: None, "optimise": lambda *_: None}
    vars(made).update(config=config, current_epoch=3, device=torch.device("cpu"), step=step, **doing_nothing)
    assert made.train_step({"mask_seeds": [1], "keys": ["a"]}) == {"total": 2.0}
    assert scales == [3 * 0.75]


def test_what_a_pre_training_reads_is_known_without_hashing(tmp_path: Path) -> None:
    cases = PretrainingCases(tmp_path, ("a", "b"), ("u",), {"v": "its patient is validated on"})
    assert str(cases).splitlines() == [
        "pre-training reads 2 training cases and 1 unlabelled images",
        "left out v: its patient is validated on",
    ]
