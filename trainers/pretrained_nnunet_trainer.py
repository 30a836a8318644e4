"""nnU-Net's own network and training, starting from our pre-training of that network."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.partner import declare_partner
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.pretrained import PretrainedTrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.schedules import NNUNET_CLIP, WarmupSchedule, build_sgd, poly


class PretrainedNNUNetTrainer(PretrainedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr PretrainedNNUNetTrainer [-p PLANS] [-pretrained_weights FILE]`.

    The network is the plan's, with nnU-Net's loss, augmentation and SGD. Only the start differs: pre-trained weights, a
    warm-up, and the plan's schedule and learning rate for them. Needs plans whose `topomae.architecture.partner` is
    `plan`.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network that the plan names, as nnU-Net builds it.

        Args:
            plans_manager: not used.
            configuration_manager: names the network.
            num_input_channels: image channels.
            num_output_channels: segmentation heads.
            enable_deep_supervision: whether the network returns logits of all scales, or full resolution only.

        Raises:
            ValueError: the plan's partner is another network, or its network has no encoder and decoder.
        """
        planned = read_plan(configuration_manager).network
        if planned is None:
            raise ValueError(
                "PretrainedNNUNetTrainer trains the network that the plan names, but topomae.architecture.partner of "
                "this plan is 'unetrpp', so pre-training trains UNETR++. Write plans for nnU-Net's own network: "
                "nnunet-topomae plan -d ID -p nnUNetPlans --name NAME --set architecture.partner=plan"
            )
        network = planned(num_input_channels, num_output_channels, enable_deep_supervision)
        return declare_partner(network)

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
