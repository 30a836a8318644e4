"""Fine-tuning of UNETR with a pre-trained ViT (Zhou et al. 2023; "UNETR + MAE" in the paper's tables)."""

from torch import nn

from nnunet_topomae.architectures.build import build_unetr
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer


class UNETRTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr UNETRTrainer [-p PLANS] [-pretrained_weights FILE]`.

    Takes the ViT of the same pre-training as `TopoMAEFusionTrainer`, and leaves its UNETR++ out.
    """

    supports_deep_supervision = False

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """UNETR shaped by the plan, with one output."""
        return build_unetr(plan.shape, channels, heads, plan.config.architecture)
