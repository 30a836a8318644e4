"""What trainings show in TensorBoard and in nnU-Net's logger for Weights & Biases."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from matplotlib.image import imsave
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_topomae.training.monitors import FOLDER, VARIABLE, add_tensorboard, show_previews


class Writer:
    """Stands for torch's SummaryWriter."""

    made: ClassVar["list[Writer]"] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.values: list[tuple[str, float, int]] = []
        self.pictures: dict[str, tuple[tuple[int, ...], int]] = {}
        self.flushed = 0
        Writer.made.append(self)

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.values.append((key, value, step))

    def add_image(self, key: str, picture: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures[key] = picture.shape, step

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setenv(VARIABLE, "1")
    return Writer.made


def trainer(folder: Path, resume: bool = False, rank: int = 0) -> Any:
    return SimpleNamespace(local_rank=rank, output_folder=str(folder), logger=MetaLogger(str(folder), resume))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "previews"
    folder.mkdir()
    imsave(folder / "case_1.png", np.zeros((4, 6, 3)))
    return folder


def test_nnunet_s_values_our_terms_and_pictures_are_shown(
    tmp_path: Path, writers: list[Writer], pictures: Path
) -> None:
    old = tmp_path / FOLDER / "events.old"
    old.parent.mkdir()
    old.touch()
    one = trainer(tmp_path)
    add_tensorboard(one)
    assert old.exists()  # a training that fails before its first epoch removes nothing
    one.logger.log("epoch_start_timestamps", 1e9, 0)
    one.logger.log("train_losses", 0.5, 0)
    for logger in one.logger.loggers:
        logger.log("train/mse_vit", 0.25, 0)
    one.logger.log("dice_per_class_or_region", [0.1, 0.2], 0)
    one.logger.log("epoch_end_timestamps", 1e9, 0)
    show_previews(one.logger.loggers, pictures, 0)
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path / FOLDER), None)
    assert not old.exists()
    assert writer.values == [
        ("train_losses", 0.5, 0),
        ("train/mse_vit", 0.25, 0),
        ("dice_per_class_or_region/class_1", 0.1, 0),
        ("dice_per_class_or_region/class_2", 0.2, 0),
    ]
    assert writer.pictures == {"previews/case_1": ((4, 6, 3), 0)}
    assert writer.flushed == 2


def test_a_training_that_continues_hides_the_epochs_that_it_repeats(tmp_path: Path, writers: list[Writer]) -> None:
    old = tmp_path / FOLDER / "events.old"
    old.parent.mkdir()
    old.touch()
    one = trainer(tmp_path, resume=True)
    add_tensorboard(one)
    for logger in one.logger.loggers:
        logger.log("train/total", 0.5, 7)
    assert old.exists() and writers[0].purge_step == 7


def test_it_is_asked_for_and_written_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setenv(VARIABLE, "1")
    second = trainer(tmp_path, rank=1)
    add_tensorboard(second)
    assert second.logger.loggers == []
    with pytest.raises(ImportError, match="pip install tensorboard"):
        add_tensorboard(trainer(tmp_path))
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match="must be 0 or 1, got 'yes'"):
        add_tensorboard(trainer(tmp_path))
    monkeypatch.setenv(VARIABLE, "0")
    add_tensorboard(trainer(tmp_path))


def test_weights_and_biases_gets_terms_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    """nnU-Net's own logger, with a stand-in for the package."""
    from nnunetv2.training.logging import nnunet_logger

    from nnunet_topomae.trainers.base import TopoMAETrainer

    logged: list[tuple[dict[str, Any], int]] = []
    run = SimpleNamespace(config={}, summary={}, step=0, log=lambda values, step: logged.append((values, step)))
    wandb = SimpleNamespace(init=lambda **_: run, Image=lambda file: f"picture {Path(file).name}")
    monkeypatch.setattr(nnunet_logger, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    one = TopoMAETrainer.__new__(TopoMAETrainer)
    vars(one).update(vars(trainer(tmp_path)), is_ddp=False, role="pretraining", current_epoch=3, epoch_terms={})
    one.record_terms("train", [{"total": 1.0, "mse_vit": 2.0}, {"total": 3.0, "mse_vit": 4.0}])
    one.record_terms("validation", [{"total": 5.0}])
    show_previews(one.logger.loggers, pictures, 3)
    assert logged == [
        ({"train/total": 2.0}, 3),
        ({"train/mse_vit": 3.0}, 3),
        ({"monitoring/total": 5.0}, 3),
        ({"previews/case_1": "picture case_1.png"}, 3),
    ]
