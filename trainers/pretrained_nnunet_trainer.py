"""nnU-Net's own network and training, starting from our pre-training of that network."""

from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.partner import declare_partner
from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.schedules import NNUNET_CLIP, WarmupSchedule, build_sgd, poly


class PretrainedNNUNetTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr PretrainedNNUNetTrainer [-p PLANS] [-pretrained_weights FILE]`.

    The network is the plan's, with nnU-Net's loss, augmentation and SGD. Only the start differs: a pre-trained encoder,
    a warm-up, and the plan's schedule and learning rate for it. The decoder starts fresh, because SGD learns slowly
    from one that has rebuilt images. Needs plans whose `topomae.architecture.partner` is `plan`.
    """

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """The network that the plan names, as nnU-Net builds it.

        Raises:
            ValueError: the plan's partner is another network, or its network has no encoder and decoder.
        """
        if plan.network is None:
            raise ValueError(
                "PretrainedNNUNetTrainer trains the network that the plan names, but topomae.architecture.partner of "
                "this plan is 'unetrpp', so pre-training trains UNETR++. Write plans for nnU-Net's own network: "
                "nnunet-topomae plan -d ID -p nnUNetPlans --name NAME --set architecture.partner=plan"
            )
        return declare_partner(plan.network(channels, heads, deep_supervision))

    @property
    def takes_decoder(self) -> bool:
        """Whether a pre-trained decoder comes with its encoder: if the plan says so, or where heads alone learn."""
        section: FinetuningConfig = self.plan.config.finetuning
        heads_alone = section.transfer_decoder == "auto" and section.schedule == "head_only"
        return heads_alone or section.transfer_decoder == "yes"

    @property
    def clip(self) -> float:
        """Largest gradient norm: nnU-Net's."""
        return NNUNET_CLIP

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """nnU-Net's SGD with a warm-up; pre-trained weights may learn more slowly."""
        section = self.plan.config.finetuning
        groups = self.pretrained_groups(section.sgd_pretrained_learning_rate)
        optimizer = build_sgd(unwrap(self.network), section.sgd_learning_rate, **groups)
        return optimizer, self.build_schedule(optimizer, poly)
