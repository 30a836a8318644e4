"""Re-exports our trainers, for nnU-Net's search of the folders in ``nnUNet_extTrainer``.

The classes keep their real modules, so that objects made from them can be pickled.
"""

from nnunet_topomae.trainers.fusion_trainer import TopoMAEFusionTrainer
from nnunet_topomae.trainers.monai_trainer import MONAITrainer
from nnunet_topomae.trainers.pretrained_nnunet_trainer import PretrainedNNUNetTrainer
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.trainers.seeded_trainer import SeededNNUNetTrainer
from nnunet_topomae.trainers.unetr_trainer import UNETRTrainer
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.trainers.vectorpose_pretrainer import VectorPOSEPretrainer

__all__ = [
    "MONAITrainer",
    "PretrainedNNUNetTrainer",
    "SeededNNUNetTrainer",
    "TopoMAEFusionTrainer",
    "TopoMAEPretrainer",
    "UNETRPPTrainer",
    "UNETRTrainer",
    "VectorPOSEPretrainer",
]
