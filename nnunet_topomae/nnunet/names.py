"""Names that nnU-Net's commands and files know us by. Standard library only."""

PRETRAINER = "TopoMAEPretrainer"
FUSION_TRAINER = "TopoMAEFusionTrainer"
UNETRPP_TRAINER = "UNETRPPTrainer"
UNETR_TRAINER = "UNETRTrainer"
MONAI_TRAINER = "MONAITrainer"
SEEDED_NNUNET_TRAINER = "SeededNNUNetTrainer"
PLANNER = "TopoMAEPlanner"
PLANS = "TopoMAEPlans"

CONFIGURATION = "3d_fullres"
DATASET_FILE = "dataset.json"
SPLITS_FILE = "splits_final.json"
FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
PREVIOUS_CHECKPOINT = "checkpoint_previous.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"

# Key of a plan's intensity properties of a channel that says where they come from, if not from labels.
INTENSITY_SOURCE = "source"
