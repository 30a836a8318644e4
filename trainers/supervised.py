"""Supervised training of one of our networks; which one, its subclasses say."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.unetrpp import DEEP_SUPERVISION_WEIGHTS, deep_supervision_scales
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.trainers.base import TopoMAETrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.finetuning import without_pretraining
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, poly
from nnunet_topomae.training.steps import done_steps, supervised_step
from nnunet_topomae.training.supervision import (
    build_loss,
    choose_labelled,
    choose_mirror_axes,
    epoch_terms,
    record_training_cases,
)


class SupervisedTrainer(TopoMAETrainer):
    """Trains on the labels of the fold's training cases, with nnU-Net's loader, augmentation and loss.

    Subclasses define `build_network`.
    """

    role = "finetuning"
    # Whether the network has outputs at coarser scales too.
    supports_deep_supervision = True

    def initialize(self) -> None:
        """Build everything, with deep supervision where the network supports it."""
        if not self.supports_deep_supervision:
            self.enable_deep_supervision = False
        super().initialize()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch it, where there is any."""
        if self.supports_deep_supervision:
            super().set_deep_supervision_enabled(enabled)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split with the plan's fraction of the training cases."""
        training, validation = super().do_split()
        return choose_labelled(self, training, self.plan.config.finetuning), validation

    def record_images(self) -> ImagesRead:
        """Hash and list the training cases."""
        return record_training_cases(self)

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW with linear warm-up and polynomial decay."""
        section = self.plan.config.finetuning
        without_pretraining(section, self.print_to_log_file)
        optimizer = build_adamw(unwrap(self.network), section.learning_rate, section.weight_decay)
        return optimizer, self.build_schedule(optimizer, poly)

    @property
    def has_own_scales(self) -> bool:
        """Whether the network's outputs are UNETR++'s, not those that nnU-Net expects of the plan's network."""
        return self.enable_deep_supervision and self.plan.network is None

    def _get_deep_supervision_scales(self) -> Any:
        if self.has_own_scales:
            return deep_supervision_scales(self.plan.shape)
        return super()._get_deep_supervision_scales()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's augmentation with the plan's mirror axes."""
        augmentation = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return choose_mirror_axes(self, augmentation, self.plan.config.finetuning)

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, for UNETR++ with its weights of the three outputs; nnU-Net would give the coarsest none."""
        loss: nn.Module = build_loss(super()._build_loss)
        if self.has_own_scales:
            loss.weight_factors = DEEP_SUPERVISION_WEIGHTS  # type: ignore[assignment]
        return loss

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One supervised step."""
        self.follow_schedule()
        return supervised_step(self, batch, self.clip)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's mean of the losses, without those of skipped steps."""
        super().on_train_epoch_end(done_steps(train_outputs))

    def on_epoch_end(self) -> None:
        """nnU-Net's log and checkpoints, then our record."""
        epoch, seconds = self.current_epoch, self.epoch_seconds
        super().on_epoch_end()
        self.write_record(epoch, seconds, epoch_terms(self, epoch))
