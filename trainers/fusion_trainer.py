"""Fine-tuning of "MAE + UNETR++": two pre-trained encoders, features added scale by scale (paper Sec. II-D, Fig. 2)."""

from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.data.plan import read_plan
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.training.checkpoints import ENTRY, unwrap
from nnunet_topomae.training.resample import NetworkSize
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, poly
from nnunet_topomae.training.transfer import (
    FUSION_PARTS,
    PretrainingSource,
    check_no_leak,
    check_same_plan,
    described_size,
    read_checkpoint,
    transfer,
    transfer_resampled,
)


class TopoMAEFusionTrainer(UNETRPPTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr TopoMAEFusionTrainer [-p PLANS] [-pretrained_weights FILE]`.

    Starts from the pre-training of the same data set, plans, configuration and fold, from the file that the plan's
    `topomae.finetuning.pretrained` names, or from the file given to `-pretrained_weights`.
    """

    # What of the network and of the checkpoint has no counterpart.
    parts = FUSION_PARTS

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """ViT encoder, UNETR++ encoder and decoder, fusion layers."""
        plan = read_plan(configuration_manager)
        return build_fusion_network(
            plan.shape, num_input_channels, num_output_channels, plan.config.architecture, enable_deep_supervision
        )

    def initialize(self) -> None:
        """Build the network and notice when nnU-Net loads weights into it."""
        super().initialize()
        self.weights_loaded = False
        unwrap(self.network).register_load_state_dict_post_hook(self._notice_loading)

    def _notice_loading(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.weights_loaded = True

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW; fresh parts learn faster than pre-trained ones."""
        section = self.plan.config.finetuning
        slow = None if self.source.from_scratch else section.pretrained_learning_rate
        optimizer = build_adamw(
            self.network,
            section.learning_rate,
            section.weight_decay,
            slow_learning_rate=slow,
            fast_prefixes=self.parts.fresh,
        )
        return optimizer, WarmupSchedule(optimizer, section.epochs, section.warmup_epochs, poly)

    @property
    def source(self) -> PretrainingSource:
        """Where this fold's pre-trained weights come from."""
        return PretrainingSource(
            Path(self.output_folder_base).parent,
            self.plans_manager.dataset_name,
            self.plans_manager.plans_name,
            self.configuration_name,
            self.fold,
            self.plan.config.finetuning.pretrained,
        )

    def on_train_start(self) -> None:
        """Load the pre-trained weights unless `--c` or `-pretrained_weights` already loaded some."""
        if not self.was_initialized:
            self.initialize()
        if self.weights_loaded:
            self.print_to_log_file("weights were loaded by nnU-Net (--c or -pretrained_weights)")
        elif self.source.from_scratch:
            self.print_to_log_file("training from scratch, as topomae.finetuning.pretrained says")
        else:
            self.load_pretraining()
        super().on_train_start()

    def load_pretraining(self) -> None:
        """Check the checkpoint's description against this training and transfer its weights."""
        file = self.source.require()
        checkpoint = read_checkpoint(file)
        described = checkpoint[ENTRY]
        if self.fold != "all":
            _, validation_cases = self.do_split()
            patients = Patients(self.plan.config.pretraining.patients)
            check_no_leak(described["manifest"], self.plans_manager.dataset_name, validation_cases, file, patients)
        if described["manifest"]["dataset"] != self.plans_manager.dataset_name:
            name = described["manifest"]["dataset"]
            self.print_to_log_file(
                f"pre-trained on {name}, another data set: no list of cases to compare with this one"
            )
        weights, network = checkpoint["network_weights"], unwrap(self.network)
        if self.plan.config.finetuning.transfer == "resample":
            old = described_size(described["plan"], self.plan.facts, file)
            result = transfer_resampled(
                weights, network, old, NetworkSize(self.plan.shape, self.num_input_channels), self.parts
            )
        else:
            check_same_plan(described["plan"], self.plan.facts, file)
            result = transfer(weights, network, self.parts)
        result.write(Path(self.output_folder) / "transfer.json")
        self.print_to_log_file(f"pre-trained weights from {file}: {result}")
