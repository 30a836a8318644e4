"""A training that may end before its last epoch, as if that had been the last one."""

from pathlib import Path

from nnunet_topomae.trainers.resumable import ResumableTrainer
from nnunet_topomae.training.devices import decided_by_first
from nnunet_topomae.training.failures import results_can_be_written
from nnunet_topomae.training.record import add_facts
from nnunet_topomae.training.resume import reopen
from nnunet_topomae.training.stopping import EndOfTraining, asked_to_end, forget_request


class EndableTrainer(ResumableTrainer):
    """Ends between two epochs where `nnunet-topomae stop` has asked for it; not trained itself."""

    def run_epochs(self) -> None:
        """nnU-Net's loop and its end, which may come early."""
        try:
            super().run_epochs()
        except EndOfTraining as end:
            self._end_early(str(end))
        self.leave_if_asked()

    def leave_if_asked(self) -> None:
        """After a signal that came too late for another step: all processes end before the final validation.

        Raises:
            SystemExit: the first process got one; the shell's code for it.
        """
        asked = decided_by_first(self.stop.asked if self.local_rank == 0 else None)
        if asked is not None:
            self.print_to_log_file(f"{asked.name}: ended before the final validation, which --val does.")
            raise SystemExit(128 + asked)

    def on_train_start(self) -> None:
        """nnU-Net's start, without what an earlier training has left behind."""
        super().on_train_start()
        if self.local_rank != 0:
            return
        if not self.continued:
            forget_request(Path(self.output_folder))
        elif self.current_epoch < self.num_epochs:
            reopen(Path(self.output_folder))

    def reason_to_end(self) -> str | None:
        """Why no further epoch shall begin, if so; the first process of a distributed training is asked."""
        return asked_to_end(Path(self.output_folder))

    def on_epoch_start(self) -> None:
        """nnU-Net's start of an epoch.

        Raises:
            EndOfTraining: the epoch before was the last one, and whole.
        """
        if self.current_epoch > 0 and self.resumed_steps == 0:
            reason = decided_by_first(self.reason_to_end() if self.local_rank == 0 else None)
            if reason is not None:
                raise EndOfTraining(reason)
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        """nnU-Net's end of an epoch: log, checkpoints and plot."""
        with results_can_be_written():
            super().on_epoch_end()

    def _end_early(self, reason: str) -> None:
        done = self.current_epoch
        self.print_to_log_file(f"ended after {done} of {self.num_epochs} epochs: {reason}")
        if self.local_rank == 0:
            early = {"epochs": done, "reason": reason}
            steps = done * self.section.iterations_per_epoch
            add_facts(Path(self.output_folder), {"ended_early": early, "steps": steps})
        self.on_train_end()

    def on_train_end(self) -> None:
        """nnU-Net's end; a request has been fulfilled."""
        with results_can_be_written():
            super().on_train_end()
            if self.local_rank == 0:
                forget_request(Path(self.output_folder))
