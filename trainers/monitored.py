"""What pre-training measures of itself every few epochs."""

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from nnunet_topomae.trainers.base import TopoMAETrainer
from nnunet_topomae.training.gradients import GradientWatch
from nnunet_topomae.training.record import read_epochs
from nnunet_topomae.training.steps import CoPretrainingStep


class MonitoredTrainer(TopoMAETrainer):
    """Pre-training that says where its gradient goes; not trained itself. Subclasses set ``step``."""

    step: CoPretrainingStep

    @cached_property
    def gradients(self) -> GradientWatch:
        """Measures the shares of the loss terms, and adapts the weight of topology where the plan says so."""
        log = self.print_to_log_file if self.local_rank == 0 else str
        return GradientWatch(self.step, self.config, log)

    def records(self) -> list[dict[str, Any]]:
        """Of the epochs that are done, oldest first."""
        return [record for record in read_epochs(Path(self.output_folder)) if record["epoch"] < self.current_epoch]

    def on_train_start(self) -> None:
        """nnU-Net's start, with the adapted weights of the training that continues."""
        super().on_train_start()
        self.gradients.resume(self.records())

    def on_validation_epoch_start(self) -> None:
        """Monitoring; its first batch may be measured."""
        super().on_validation_epoch_start()
        self.gradients.start(self.current_epoch)

    def monitor(self, batch: dict[str, Any], generator: Generator) -> dict[str, Tensor]:
        """All terms of a fixed batch, with the full weight of L_topo.

        Args:
            batch: of monitoring.
            generator: of its masks.
        """
        return self.gradients(batch, generator, 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale())

    def write_record(self, epoch: int) -> None:
        """The epoch's record, with what was measured."""
        self.notes |= self.gradients.found
        super().write_record(epoch)
