"""A training that can be killed at any moment, and asked to stop, without losing more than it must."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_topomae.data.worker_errors import CheckedCases
from nnunet_topomae.nnunet.names import FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT
from nnunet_topomae.nnunet.process import end_forks_with_this_process
from nnunet_topomae.trainers.recorded import RecordedTrainer
from nnunet_topomae.training.batches import WatchedBatches, close_loaders
from nnunet_topomae.training.checkpoints import ENTRY, write_checkpoint
from nnunet_topomae.training.loading import load_checkpoint_file
from nnunet_topomae.training.resume import (
    check_same_training,
    clean,
    drop_previous,
    keep_previous,
    newer_of_previous_and_best,
    newest_whole,
    restore,
    save_best_first,
)
from nnunet_topomae.training.stopping import StopSignals


class ResumableTrainer(RecordedTrainer):
    """Keeps the previous checkpoint, continues from the newest whole one, and stops on SIGTERM; not trained itself."""

    # Whether this training continues an earlier one, with weights of its own.
    continued = False
    # How many steps of the current epoch were done before this process began.
    first_step = 0
    resumed_steps: int
    resumed_outputs: Sequence[Any]
    stop = StopSignals()
    dataloader_train: Any
    dataloader_val: Any

    @property
    def latest(self) -> Path:
        """The checkpoint that is written every few epochs."""
        return Path(self.output_folder) / LATEST_CHECKPOINT

    def run_training(self) -> None:
        """nnU-Net's loop. SIGTERM and SIGUSR1 end it after a step, with a checkpoint; workers end with this process."""
        previous = self.latest.with_name(PREVIOUS_CHECKPOINT)
        if self.logger.resume and not self.continued and previous.is_file():  # nnU-Net does not know this file
            self.load_checkpoint(str(previous))
        if self.local_rank == 0:
            clean(self.latest.parent, self.continued, self.print_to_log_file)
        end_forks_with_this_process()
        try:
            with StopSignals() as self.stop:
                self.run_epochs()
        except Exception:
            self.print_to_log_file(traceback.format_exc(), also_print_to_console=False)
            raise
        finally:
            close_loaders(self.dataloader_train, self.dataloader_val)

    def run_epochs(self) -> None:
        """nnU-Net's loop and its end."""
        super().run_training()

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's data sets, whose errors reach this process from the workers."""
        training, validation = super().get_tr_and_val_datasets()
        return CheckedCases(training, self.dataset_json), CheckedCases(validation, self.dataset_json)

    def on_train_start(self) -> None:
        """nnU-Net's start; from now on somebody watches the workers that load batches."""
        super().on_train_start()
        self.dataloader_train = WatchedBatches(self.dataloader_train, self.stop_if_asked, self.begin_step)
        self.dataloader_val = WatchedBatches(self.dataloader_val, self.stop_if_asked)

    def on_train_epoch_start(self) -> None:
        """nnU-Net's start of an epoch, of which a stopped training may have done some steps."""
        super().on_train_epoch_start()
        self.first_step = self.resumed_steps
        self.num_iterations_per_epoch = self.section.iterations_per_epoch - self.first_step
        self.noted.outputs = list(self.resumed_outputs)
        self.resumed_steps, self.resumed_outputs = 0, ()
        self.dataloader_train.taken = 0

    def steps_taken(self) -> int:
        """Steps of the current epoch that were begun, in this process or an earlier one."""
        return int(self.first_step + self.dataloader_train.taken)

    def begin_step(self) -> None:
        """A batch has come."""
        self.seed_network(self.steps_taken())

    def stop_if_asked(self) -> None:
        """Between two steps: after a signal, write a checkpoint and end.

        Raises:
            SystemExit: a signal has come; the shell's code for it.
        """
        self.stop.ready = True
        if self.stop.asked is None or self.local_rank != 0:
            return
        steps, epoch = self.steps_taken(), self.current_epoch
        self.current_epoch -= 1  # a checkpoint counts complete epochs
        self._write(str(self.latest), steps)
        self.print_to_log_file(
            f"{self.stop.asked.name}: stopped after {steps} of {self.section.iterations_per_epoch} steps of epoch "
            f"{epoch}. Continue with --c."
        )
        raise SystemExit(128 + self.stop.asked)

    def on_train_end(self) -> None:
        """nnU-Net's end; the final checkpoint makes the others unnecessary."""
        super().on_train_end()
        if self.local_rank == 0 and self.latest.with_name(FINAL_CHECKPOINT).is_file():
            drop_previous(self.latest.parent)

    def save_checkpoint(self, filename: str) -> None:
        """Write a stock nnU-Net checkpoint plus the entry that describes it; never half of it."""
        if filename == str(self.latest):
            save_best_first(self)
        self._write(filename)

    def _write(self, filename: str, steps: int = 0) -> None:
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        if filename == str(self.latest):
            keep_previous(self.latest)
        write_checkpoint(self, filename, self.role, self.config, self.images_read, self.progress(steps))

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Continue a training from a checkpoint; where it is broken, from the next older one."""
        if not self.was_initialized:
            self.initialize()
        file, checkpoint = Path(str(filename_or_checkpoint)), filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            # `--val` asks for the final checkpoint, `--val_best` for the best one, and for no other.
            older, log = self.logger.resume or file.name == LATEST_CHECKPOINT, self.print_to_log_file
            file = newer_of_previous_and_best(file) if self.logger.resume and not self.continued else file
            file, checkpoint = newest_whole(file, log) if older else (file, load_checkpoint_file(file))
        own = {"dataset": self.plans_manager.dataset_name, "plans_name": self.plans_manager.plans_name}
        own |= {"configuration": self.configuration_name, "fold": self.fold}
        check_same_training(checkpoint.get(ENTRY, {}).get("manifest", {}), own, file)
        self.continue_from(checkpoint.get(ENTRY, {}))
        restore(self, checkpoint, file)
        self.continued = True
