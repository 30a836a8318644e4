"""Supervised training of a self-configured UNETR++ from scratch: the baseline, and the base of the fusion trainer."""

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.build import DEEP_SUPERVISION_WEIGHTS, build_unetrpp, deep_supervision_scales
from nnunet_topomae.data.fractions import choose_fraction, labels_present
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.base import TopoMAETrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, poly
from nnunet_topomae.training.steps import optimise


class UNETRPPTrainer(TopoMAETrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRPPTrainer [-p PLANS]`."""

    role = "finetuning"
    # Whether the network has no outputs but the one at full resolution.
    one_output = False

    def initialize(self) -> None:
        """Build everything, without deep supervision where the network has one output."""
        if self.one_output:
            self.enable_deep_supervision = False
        super().initialize()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch it, where there is any."""
        if not self.one_output:
            super().set_deep_supervision_enabled(enabled)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split with the plan's fraction of the training cases."""
        training, validation = super().do_split()
        section = self.plan.config.finetuning
        if section.label_fraction < 1:
            present = labels_present(self.dataset_class(self.preprocessed_dataset_folder, training), training)
            training = choose_fraction(present, section.label_fraction, section.label_seed)
            self.print_to_log_file(f"training on {len(training)} of {len(present)} labelled cases")
        return training, validation

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """UNETR++ shaped by the plan."""
        plan = read_plan(configuration_manager)
        return build_unetrpp(
            plan.shape, num_input_channels, num_output_channels, plan.config.architecture, enable_deep_supervision
        )

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW with linear warm-up and polynomial decay."""
        section = self.plan.config.finetuning
        optimizer = build_adamw(unwrap(self.network), section.learning_rate, section.weight_decay)
        return optimizer, self.build_schedule(optimizer, poly)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return deep_supervision_scales(self.plan.shape) if self.enable_deep_supervision else None

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's augmentation with the plan's mirror axes, which the checkpoint hands on to prediction."""
        *augmentation, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        chosen = self.plan.config.finetuning.mirror_axes
        # None, not an empty tuple, stands for no mirroring in nnU-Net's predictor.
        self.inference_allowed_mirroring_axes = mirror_axes if chosen is None else (chosen or None)
        return (*augmentation, self.inference_allowed_mirroring_axes)

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss with UNETR++'s weights of the three outputs; nnU-Net would give the coarsest one none."""
        loss: Any = super()._build_loss()
        if self.enable_deep_supervision:
            loss.weight_factors = DEEP_SUPERVISION_WEIGHTS
        return loss  # type: ignore[no-any-return]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One supervised step."""
        self.follow_schedule()
        data = batch["data"].to(self.device, non_blocking=True)
        target = _to_device(batch["target"], self.device)
        losses: list[torch.Tensor] = []

        def compute_loss() -> torch.Tensor:
            losses.append(self.loss(self.network(data), target))
            return losses[0]

        clip = self.plan.config.finetuning.clip
        optimise(compute_loss, self.network, self.optimizer, self.grad_scaler, clip, self.device, batch["keys"])
        return {"loss": losses[0].detach().cpu().numpy()}

    def on_epoch_end(self) -> None:
        """nnU-Net's log and checkpoints, then our record."""
        epoch = self.current_epoch
        super().on_epoch_end()
        values = {name: float(self.logger.get_value(name, step=epoch)) for name in ("train_losses", "val_losses")}
        dice = float(self.logger.get_value("mean_fg_dice", step=epoch))
        self.epoch_terms = {
            "train": {"loss": values["train_losses"]},
            "validation": {"loss": values["val_losses"], "pseudo_dice": dice},
        }
        self.write_record(epoch)


def _to_device(target: Any, device: torch.device) -> Any:
    """Label maps of all scales, or the one of a network without deep supervision."""
    if isinstance(target, list):
        return [scale.to(device, non_blocking=True) for scale in target]
    return target.to(device, non_blocking=True)
