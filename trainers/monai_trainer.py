"""Supervised training of one of MONAI's networks, as a baseline of a benchmark."""

from torch import nn

from nnunet_topomae.architectures.baselines import build_baseline
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.supervised import SupervisedTrainer


class MONAITrainer(SupervisedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr MONAITrainer -p PLANS`.

    The plan's `topomae.finetuning.network` says which network. Optimiser, schedule, loss and augmentation are those of
    `UNETRPPTrainer`, without deep supervision.
    """

    supports_deep_supervision = False

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """The network that `topomae.finetuning.network` names, with one output.

        Raises:
            ValueError: the plan names none.
        """
        name = plan.config.finetuning.network
        if name is None:
            raise ValueError(
                "the plan names no network for MONAITrainer. Write a variant: nnunet-topomae plan -d ID --name NAME "
                "--set finetuning.network=swin_unetr (or unetr, attention_unet)"
            )
        return build_baseline(name, plan.shape.patch_size, channels, heads)
