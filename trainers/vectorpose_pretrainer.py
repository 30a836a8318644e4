"""VectorPOSE: vector prediction and boundary-focused reconstruction (Zhang et al. 2022), on any partner network."""

from typing import Any

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer


class VectorPOSEPretrainer(TopoMAEPretrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr VectorPOSEPretrainer [-p PLANS]`.

    Trains the partner alone, that is UNETR++ or the plan's own network. Images, schedule, checkpoints and checks are
    those of `TopoMAEPretrainer`; the plan's section `vectorpose` replaces some of its settings.
    """

    @staticmethod
    def read_config(configuration: dict[str, Any]) -> TopoMAEConfig:
        """The plan's settings with VectorPOSE's tasks."""
        return TopoMAEConfig.from_configuration(configuration).for_vectorpose()
