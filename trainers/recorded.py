"""A training that says in its files what every epoch took and measured."""

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from nnunet_topomae.trainers.reproducible import ReproducibleTrainer
from nnunet_topomae.training.checkpoints import SECONDS
from nnunet_topomae.training.devices import record_gpu_memory
from nnunet_topomae.training.progress import describe_progress
from nnunet_topomae.training.record import write_epoch


class RecordedTrainer(ReproducibleTrainer):
    """Times its epochs, also those of several processes, and writes ``metrics.jsonl``; not trained itself."""

    # When the current epoch began, in seconds; earlier by what another process has spent on it.
    epoch_began = 0.0
    resumed_seconds = 0.0

    def on_epoch_start(self) -> None:
        """nnU-Net's start of an epoch; from now on its time counts."""
        super().on_epoch_start()
        self.epoch_began = monotonic() - self.resumed_seconds
        self.resumed_seconds = 0.0

    @property
    def epoch_seconds(self) -> float:
        """What the current epoch has taken so far, also in an earlier process; changes of the clock do not count."""
        return monotonic() - self.epoch_began

    def progress(self, steps: int) -> dict[str, Any]:
        """What a checkpoint needs for continuing, with the seconds that the steps of the next epoch took."""
        return {**super().progress(steps), SECONDS: self.epoch_seconds if steps else 0.0}

    def continue_from(self, progress: Mapping[str, Any]) -> None:
        """Go on after the steps that a checkpoint's :meth:`progress` counts, with its seed and its seconds."""
        super().continue_from(progress)
        self.resumed_seconds = float(progress.get(SECONDS, 0.0))

    def write_record(self, epoch: int, seconds: float, terms: Mapping[str, Any]) -> None:
        """Add an epoch to ``metrics.jsonl``; log the time that it took and that is left. The first process alone.

        Args:
            epoch: its number, counted from 0.
            seconds: that it took.
            terms: further entries of the record, such as ``train`` with the terms of the loss.
        """
        if self.local_rank != 0:
            return
        rate = self.logger.get_value("lrs", step=epoch)
        record = {"epoch": epoch, "seconds": seconds, "learning_rate": rate, **terms}
        if self.skipped.total:
            record["skipped_steps"] = self.skipped.total
        records = write_epoch(Path(self.output_folder), record)
        self.print_to_log_file(describe_progress(records, self.num_epochs))

    def on_train_end(self) -> None:
        """nnU-Net's end; records the memory that training took."""
        super().on_train_end()
        record_gpu_memory(self)
