"""VectorPOSE: vector prediction and boundary-focused reconstruction (Zhang et al. 2022), on any partner network."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.training.networks import pretraining_network


class VectorPOSEPretrainer(TopoMAEPretrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr VectorPOSEPretrainer [-p PLANS]`.

    Trains the partner alone, that is UNETR++ or the plan's own network. Images, schedule, checkpoints and checks are
    those of `TopoMAEPretrainer`; the plan's section `vectorpose` replaces some of its settings.
    """

    @staticmethod
    def read_config(configuration: dict[str, Any]) -> TopoMAEConfig:
        """The plan's settings with VectorPOSE's tasks."""
        return TopoMAEConfig.from_configuration(configuration).for_vectorpose()

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The partner with a head for vectors, rebuilding the image and its boundaries. Labels do not matter."""
        config = VectorPOSEPretrainer.read_config(configuration_manager.configuration)
        return pretraining_network(read_plan(configuration_manager, config=config), num_input_channels)
