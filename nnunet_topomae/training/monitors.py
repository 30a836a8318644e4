"""What a training shows in TensorBoard, and in nnU-Net's own logger for Weights & Biases."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

VARIABLE = "NNUNET_TOPOMAE_TENSORBOARD"
FOLDER = "tensorboard"
_ON, _OFF = ("1", "true", "True"), ("", "0", "false", "False")
# nnU-Net logs the time of day; the events have it already.
_END = "epoch_end_timestamps"
_NOT_SHOWN = ("epoch_start_timestamps", _END)


class TensorBoardLogger:
    """One of nnU-Net's loggers: scalars and pictures as TensorBoard's events.

    The first value opens the file. A training that begins removes the events of an earlier one; one that continues
    hides those of the epochs that it repeats.

    Args:
        folder: of the events.
        resume: the training continues.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"{VARIABLE}=1 asks for TensorBoard, which is not installed: pip install tensorboard"
            ) from error
        self.folder, self.resume = folder, resume
        self._make = SummaryWriter
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        if self._writer is None:
            if not self.resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._writer = self._make(str(self.folder), purge_step=step if self.resume else None)
        return self._writer

    def update_config(self, config: Mapping[str, Any]) -> None:
        """nnU-Net's settings are in its own files."""

    def log(self, key: str, value: float, step: int) -> None:
        """Show a value over the epochs.

        Args:
            key: its name; what comes before a slash groups the panels.
            value: a number.
            step: the epoch.
        """
        if key not in _NOT_SHOWN:
            self._open(step).add_scalar(key, value, step)
        elif key == _END and self._writer is not None:
            self._writer.flush()

    def log_summary(self, key: str, value: float) -> None:
        """Show a value that a training has once, such as the final Dice."""
        writer = self._open(0)
        writer.add_scalar(key, value, 0)
        writer.flush()

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """Show a picture.

        Args:
            key: its name.
            file: a PNG file.
            step: the epoch.
        """
        from matplotlib.image import imread

        writer = self._open(step)
        writer.add_image(key, imread(file)[..., :3], step, dataformats="HWC")
        writer.flush()


def add_tensorboard(trainer: Any) -> None:
    """Add TensorBoard to a trainer's loggers where the environment asks for it; one process of a training writes.

    Raises:
        ValueError: the variable is neither 0 nor 1.
        ImportError: TensorBoard is not installed.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in (*_ON, *_OFF):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {wanted!r}")
    if wanted in _ON and trainer.local_rank == 0:
        trainer.logger.loggers.append(TensorBoardLogger(Path(trainer.output_folder) / FOLDER, trainer.logger.resume))


def show_previews(loggers: Iterable[Any], folder: Path, epoch: int) -> None:
    """Show the pictures of a folder in TensorBoard and Weights & Biases, where these are on.

    Args:
        loggers: those of nnU-Net's logger; W&B's has its `run`.
        folder: of PNG files, one per case.
        epoch: shown with them.
    """
    for logger in loggers:
        for file in sorted(folder.glob("*.png")):
            name = f"previews/{file.stem}"
            if isinstance(logger, TensorBoardLogger):
                logger.log_picture(name, file, epoch)
            elif hasattr(logger, "run"):
                import wandb  # installed, or nnU-Net would not have made its logger

                logger.run.log({name: wandb.Image(str(file))}, step=epoch)
