"""Supervised training of a self-configured UNETR++ from scratch: the baseline."""

from torch import nn

from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.supervised import SupervisedTrainer


class UNETRPPTrainer(SupervisedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRPPTrainer [-p PLANS]`."""

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """UNETR++ shaped by the plan."""
        return build_unetrpp(plan.shape, channels, heads, plan.config.architecture, deep_supervision)
