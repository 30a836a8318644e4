"""Fine-tuning of UNETR with a pre-trained ViT (Zhou et al. 2023; "UNETR + MAE" in the paper's tables)."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.build import build_unetr
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.fusion_trainer import TopoMAEFusionTrainer
from nnunet_topomae.training.transfer import Parts, unetr_parts


class UNETRTrainer(TopoMAEFusionTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRTrainer [-p PLANS]`.

    Takes the ViT of the same pre-training as `TopoMAEFusionTrainer`, and leaves its UNETR++ out.
    """

    one_output = True

    @property
    def parts(self) -> Parts:
        """All but the ViT."""
        return unetr_parts(self.plan.config.finetuning.transfer_parts)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """UNETR shaped by the plan."""
        plan = read_plan(configuration_manager)
        return build_unetr(plan.shape, num_input_channels, num_output_channels, plan.config.architecture)
