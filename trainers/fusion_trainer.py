"""Fine-tuning of "MAE + UNETR++": two pre-trained encoders, features added scale by scale (paper Sec. II-D, Fig. 2)."""

from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.pretrained import Target, load_pretraining
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, poly
from nnunet_topomae.training.sources import PretrainingSource
from nnunet_topomae.training.transfer import Parts, fusion_parts


class TopoMAEFusionTrainer(UNETRPPTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr TopoMAEFusionTrainer [-p PLANS] [-pretrained_weights FILE]`.

    Starts from the pre-training of the same data set, plans, configuration and fold, from the file that the plan's
    `topomae.finetuning.pretrained` names, or from the file given to `-pretrained_weights`.
    """

    takes_pretrained_weights = True

    @property
    def parts(self) -> Parts:
        """What of the network and of the checkpoint is not transferred."""
        return fusion_parts(self.plan.config.finetuning.transfer_parts)

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

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW; fresh parts learn faster than pre-trained ones."""
        section = self.plan.config.finetuning
        slow = None if self.source.from_scratch else section.pretrained_learning_rate
        optimizer = build_adamw(
            unwrap(self.network),
            section.learning_rate,
            section.weight_decay,
            slow_learning_rate=slow,
            fast_prefixes=() if slow is None else self.parts.fresh,
        )
        return optimizer, self.build_schedule(optimizer, poly)

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
            self.given_weights,
        )

    def load_initial_weights(self) -> None:
        """Load the pre-trained weights, unless the plan asks for training from scratch."""
        if self.source.from_scratch:
            self.print_to_log_file("training from scratch, as topomae.finetuning.pretrained says")
        else:
            self.load_pretraining(self.source.require())

    def load_pretraining(self, file: Path) -> None:
        """Transfer the weights of a checkpoint that may be used here, and record what became of each."""
        validation_cases = () if self.fold == "all" else tuple(self.do_split()[1])
        target = Target(
            unwrap(self.network),
            self.plan,
            self.num_input_channels,
            self.parts,
            self.plans_manager.dataset_name,
            validation_cases,
        )
        result, source = load_pretraining(file, target, self.print_to_log_file)
        if self.local_rank == 0:
            result.write(Path(self.output_folder) / "transfer.json", source)
