"""Fine-tuning of UNETR with a pre-trained ViT (Zhou et al. 2023; "UNETR + MAE" in the paper's tables)."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.build import build_unetr
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer


class UNETRTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRTrainer [-p PLANS] [-pretrained_weights FILE]`.

    Takes the ViT of the same pre-training as `TopoMAEFusionTrainer`, and leaves its UNETR++ out.
    """

    supports_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """UNETR shaped by the plan.

        Args:
            plans_manager: not used.
            configuration_manager: the configuration, whose patch, strides and `topomae` section give the shape.
            num_input_channels: image channels.
            num_output_channels: segmentation heads.
            enable_deep_supervision: not used; there is one output.
        """
        plan = read_plan(configuration_manager)
        return build_unetr(plan.shape, num_input_channels, num_output_channels, plan.config.architecture)
