"""Names that nnU-Net's commands and files know us by. Standard library only."""

import re

PRETRAINER = "TopoMAEPretrainer"
VECTORPOSE_PRETRAINER = "VectorPOSEPretrainer"
FUSION_TRAINER = "TopoMAEFusionTrainer"
UNETRPP_TRAINER = "UNETRPPTrainer"
UNETR_TRAINER = "UNETRTrainer"
MONAI_TRAINER = "MONAITrainer"
PRETRAINED_NNUNET_TRAINER = "PretrainedNNUNetTrainer"
SEEDED_NNUNET_TRAINER = "SeededNNUNetTrainer"
PLANNER = "TopoMAEPlanner"
PLANS = "TopoMAEPlans"

CONFIGURATION = "3d_fullres"
DATASET_FILE = "dataset.json"
SPLITS_FILE = "splits_final.json"
FINGERPRINT_FILE = "dataset_fingerprint.json"
# From case to patient, where a patient has several cases.
PATIENTS_FILE = "patients.json"
FINAL_CHECKPOINT = "checkpoint_final.pth"
LATEST_CHECKPOINT = "checkpoint_latest.pth"
PREVIOUS_CHECKPOINT = "checkpoint_previous.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"

# Key of a plan's intensity properties of a channel that says where they come from, if not from labels.
INTENSITY_SOURCE = "source"

_NAME = re.compile(r"\w[\w.+-]*")


def check_name(name: object, what: str) -> str:
    """A name that a user gives and that becomes part of a file's name or of a command.

    Args:
        name: letters, digits and `_ . + -`, at least one, the first of them a letter, digit or `_`.
        what: for the error, such as the file and the key.

    Returns:
        The name.

    Raises:
        ValueError: other characters: it could leave its folder, or end a line of a script.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{what} = {name!r} cannot be a name: use letters, digits and _ . + - only")
    return name


def one_line(text: str) -> str:
    """A text without line breaks and control characters, for comments and log lines."""
    return "".join(character if character.isprintable() else "?" for character in text)
