"""What every trainer writes about itself, on a data set without a single voxel: facts and the images it has read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.architectures.summary import count_macs
from nnunet_topomae.cli import main
from nnunet_topomae.data.cases import hash_images
from nnunet_topomae.doctor.checkpoint import read_description
from nnunet_topomae.trainers.planned import PlannedTrainer
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.trainers.seeded_trainer import SeededNNUNetTrainer
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.training import supervision
from nnunet_topomae.training.record import read_facts

DATASET = "Dataset007_Tiny"
CASES = [f"c{number}" for number in range(5)]
SPLITS = [{"train": CASES[:4], "val": CASES[4:]}]
DESCRIPTION = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
PATCH = (16, 24, 32)


@pytest.fixture(autouse=True)
def images(nnunet_env: Any, tiny_plans: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of five preprocessed cases, of which only names and hashes are read; training itself does not start."""
    folder = Path(nnunet_env.preprocessed / DATASET / "Plans_3d_fullres")
    folder.mkdir(parents=True)
    (folder.parent / "splits_final.json").write_text(json.dumps(SPLITS))
    (folder.parent / "Plans.json").write_text(json.dumps(tiny_plans(DATASET, patch_size=PATCH)))
    for case in CASES:
        (folder / f"{case}.b2nd").write_bytes(case.encode())
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    return folder


def _trainer(kind: type[PlannedTrainer], folder: Path, **finetuning: Any) -> PlannedTrainer:
    file = folder.parent / "Plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["topomae"] = {
        "architecture": {"vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1},
        "finetuning": {"seed": 1, **finetuning},
    }
    file.write_text(json.dumps(plans))
    return kind(plans, "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UNETRPPTrainer, SeededNNUNetTrainer])
def test_facts_are_those_of_the_network_and_the_first_process_writes_them(
    images: Path, kind: type[PlannedTrainer]
) -> None:
    trainer = _trainer(kind, images)
    folder = Path(trainer.output_folder)
    trainer.local_rank = 1
    trainer.initialize()
    assert read_facts(folder) == {}
    trainer = _trainer(kind, images)
    trainer.initialize()
    facts = read_facts(folder)
    assert facts == {
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "macs": float(count_macs(trainer.network, (1, *PATCH))),
        "steps": trainer.num_epochs * trainer.num_iterations_per_epoch,
        "crops_per_step": trainer.batch_size,
    }
    log = Path(trainer.log_file).read_text()
    assert f"{facts['macs'] / 1e9:.2f} G MACs" in log and "seed 1" in log


@pytest.mark.parametrize("kind", [UNETRPPTrainer, SeededNNUNetTrainer])
@pytest.mark.parametrize(("fraction", "count"), [pytest.param(1.0, 4, marks=pytest.mark.slow), (0.5, 2)])
def test_a_supervised_checkpoint_lists_the_cases_that_were_read(
    images: Path,
    kind: type[PlannedTrainer],
    fraction: float,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(supervision, "labels_present", lambda dataset, cases: dict.fromkeys(cases, "organ"))
    trainer = _trainer(kind, images, label_fraction=fraction)
    trainer.on_train_start()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(file))
    described, _ = read_description(file)
    read = trainer.do_split()[0]
    assert len(read) == count and set(read) <= set(SPLITS[0]["train"])
    assert described["role"] == "finetuning"
    assert described["manifest"]["cases"] == hash_images(images, read)
    assert json.loads((Path(trainer.output_folder) / "cases_read.json").read_text()) == hash_images(images, read)
    capsys.readouterr()
    assert main(["doctor", "--checkpoint", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"{count} cases recorded" in printed and f"all {count} recorded cases are unchanged" in printed
    (images / f"{read[0]}.b2nd").write_bytes(b"preprocessed again")
    assert main(["doctor", "--checkpoint", str(file)]) == 1
    assert f"1 of {count} changed: {read[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, UNETRPPTrainer, SeededNNUNetTrainer])
@pytest.mark.parametrize("empty", [True, False])
def test_a_plan_without_preprocessed_data_names_the_command_that_makes_them(
    images: Path, kind: type[PlannedTrainer], empty: bool
) -> None:
    trainer = _trainer(kind, images)
    shutil.rmtree(images)
    if empty:
        images.mkdir()
    with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess -d 7 -plans_name Plans -c 3d_fullres"):
        trainer.initialize()
