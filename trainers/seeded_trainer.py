"""Stock nnU-Net with a seed, a budget and a fraction of the labels, as a baseline of a benchmark."""

from typing import Any

from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.trainers.checked_weights import CheckedWeightsTrainer
from nnunet_topomae.training.schedules import NNUNET_CLIP
from nnunet_topomae.training.steps import done_steps, supervised_step
from nnunet_topomae.training.supervision import (
    build_loss,
    choose_labelled,
    choose_mirror_axes,
    epoch_terms,
    record_training_cases,
)


class SeededNNUNetTrainer(CheckedWeightsTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr SeededNNUNetTrainer [-p PLANS]`.

    Network, optimiser, loss and augmentation are nnU-Net's. The plan's `topomae.finetuning` says for how many epochs
    and iterations, from which initial weights, and on which fraction of the training cases; its defaults are nnU-Net's.
    """

    role = "finetuning"
    trains_plans_network = True

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split with the plan's fraction of the training cases."""
        training, validation = super().do_split()
        return choose_labelled(self, training, self.config.finetuning), validation

    def record_images(self) -> ImagesRead:
        """Hash and list the training cases."""
        return record_training_cases(self)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's augmentation with the plan's mirror axes."""
        augmentation = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return choose_mirror_axes(self, augmentation, self.config.finetuning)

    def _build_loss(self) -> Any:
        """nnU-Net's loss, also for a network of two stages."""
        return build_loss(super()._build_loss)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; skipped, counted and logged where loss or gradient is not finite."""
        return supervised_step(self, batch, NNUNET_CLIP)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's mean of the losses, without those of skipped steps."""
        super().on_train_epoch_end(done_steps(train_outputs))

    def on_epoch_end(self) -> None:
        """nnU-Net's log and checkpoints, then our record."""
        epoch, seconds = self.current_epoch, self.epoch_seconds
        super().on_epoch_end()
        self.write_record(epoch, seconds, epoch_terms(self, epoch))
