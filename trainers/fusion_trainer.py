"""Fine-tuning of "MAE + UNETR++": two pre-trained encoders, features added scale by scale (paper Sec. II-D, Fig. 2)."""

from torch import nn

from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer


class TopoMAEFusionTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr TopoMAEFusionTrainer [-p PLANS] [-pretrained_weights FILE]`."""

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """ViT encoder, its partner's encoder and decoder, and fusion layers; without a ViT, the partner alone."""
        return build_fusion_network(
            plan.shape, channels, heads, plan.config.architecture, deep_supervision, plan.network
        )
