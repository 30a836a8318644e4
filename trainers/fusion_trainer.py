"""Fine-tuning of "MAE + UNETR++": two pre-trained encoders, features added scale by scale (paper Sec. II-D, Fig. 2)."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer


class TopoMAEFusionTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr TopoMAEFusionTrainer [-p PLANS] [-pretrained_weights FILE]`."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """ViT encoder, its partner's encoder and decoder, fusion layers; the partner alone where the plan has no ViT.

        Args:
            plans_manager: not used.
            configuration_manager: the configuration, whose patch, strides and `topomae` section give the shape.
            num_input_channels: image channels.
            num_output_channels: segmentation heads.
            enable_deep_supervision: whether the network returns logits of three scales, or full resolution only.
        """
        plan = read_plan(configuration_manager)
        return build_fusion_network(
            plan.shape,
            num_input_channels,
            num_output_channels,
            plan.config.architecture,
            enable_deep_supervision,
            plan.network,
        )
