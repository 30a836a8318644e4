"""Supervised training of a self-configured UNETR++ from scratch: the baseline."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.supervised import SupervisedTrainer


class UNETRPPTrainer(SupervisedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRPPTrainer [-p PLANS]`."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """UNETR++ shaped by the plan.

        Args:
            plans_manager: not used.
            configuration_manager: the configuration, whose patch, strides and `topomae` section give the shape.
            num_input_channels: image channels.
            num_output_channels: segmentation heads.
            enable_deep_supervision: whether the network returns logits of three scales, or full resolution only.
        """
        plan = read_plan(configuration_manager)
        return build_unetrpp(
            plan.shape, num_input_channels, num_output_channels, plan.config.architecture, enable_deep_supervision
        )
