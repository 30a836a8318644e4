"""Supervised training of one of MONAI's networks, as a baseline of a benchmark."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.baselines import build_baseline
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.supervised import SupervisedTrainer


class MONAITrainer(SupervisedTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr MONAITrainer -p PLANS`.

    The plan's `topomae.finetuning.network` says which network. Optimiser, schedule, loss and augmentation are those of
    `UNETRPPTrainer`, without deep supervision.
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
        """The plan's network.

        Args:
            plans_manager: not used.
            configuration_manager: the configuration; `topomae.finetuning.network` names the network.
            num_input_channels: image channels.
            num_output_channels: segmentation heads.
            enable_deep_supervision: not used; there is one output.

        Raises:
            ValueError: the plan names none.
        """
        plan = read_plan(configuration_manager)
        name = plan.config.finetuning.network
        if name is None:
            raise ValueError(
                "the plan names no network for MONAITrainer. Write a variant: nnunet-topomae plan -d ID --name NAME "
                "--set finetuning.network=swin_unetr (or unetr, attention_unet)"
            )
        return build_baseline(name, plan.shape.patch_size, num_input_channels, num_output_channels)
