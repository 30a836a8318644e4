"""What a checkpoint says about itself, and whether this machine's data still agree with it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.cases import hash_images, hash_json_file
from nnunet_topomae.datasets.unlabeled import unlabeled_folder
from nnunet_topomae.doctor.checks import Check
from nnunet_topomae.nnunet.names import SPLITS_FILE
from nnunet_topomae.nnunet.plan import plan_facts
from nnunet_topomae.training.checkpoints import ENTRY
from nnunet_topomae.training.checks import plan_differences
from nnunet_topomae.training.loading import load_checkpoint_file


def read_description(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry that describes a checkpoint, and the plans it was trained with.

    Nothing in the file is executed, unlike when nnU-Net loads a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint, not one of ours, or one that lacks what ours have.
    """
    checkpoint = load_checkpoint_file(file, mmap=True)
    if not isinstance(checkpoint.get(ENTRY), dict):
        raise ValueError(f"{file} does not describe itself: it has no '{ENTRY}' entry, so another trainer wrote it")
    described = checkpoint[ENTRY]
    for part in ("plan", "manifest"):
        if not isinstance(described.get(part), dict):
            raise ValueError(
                f"{file} is damaged: its '{ENTRY}' entry has no {part}. Copy the file again, or train again."
            )
    try:
        return described, checkpoint["init_args"]["plans"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it lacks nnU-Net's entry 'init_args' with the plans.") from error


def check_checkpoint(described: Mapping[str, Any], plans: Mapping[str, Any], preprocessed: Path | None) -> list[Check]:
    """Compare a checkpoint's manifest with the preprocessed data of this machine.

    Args:
        described: the checkpoint's own description.
        plans: the plans it was trained with.
        preprocessed: nnU-Net's folder of preprocessed data sets, if there is one.
    """
    manifest = described["manifest"]
    dataset = None if preprocessed is None else preprocessed / manifest["dataset"]
    if dataset is None or not dataset.is_dir():
        advice = "Set nnUNet_preprocessed where the preprocessed data are, to compare the cases with the manifest."
        return [Check("data", "warning", f"no preprocessed {manifest['dataset']} here, nothing compared", advice)]
    configuration = PlansManager(dict(plans)).get_configuration(manifest["configuration"])
    return [
        check_plan(described, dataset / f"{manifest['plans_name']}.json"),
        check_splits(manifest, dataset / SPLITS_FILE),
        check_cases(manifest["cases"], dataset / configuration.data_identifier),
        *_check_unlabeled(manifest.get("unlabeled", {}), dataset / configuration.data_identifier),
    ]


def _check_unlabeled(recorded: Mapping[str, str], data_folder: Path) -> list[Check]:
    """Unlabelled images, if the checkpoint has seen any."""
    if not recorded:
        return []
    return [replace(check_cases(recorded, unlabeled_folder(data_folder)), name="unlabelled images")]


def check_plan(described: Mapping[str, Any], plans_file: Path) -> Check:
    """Whether the plans file still asks for the network and data that the checkpoint was trained with.

    Args:
        described: the checkpoint's own description.
        plans_file: plans of the same name on this machine; where they are missing, nothing is compared.
    """
    if not plans_file.is_file():
        return Check("plan", "warning", f"{plans_file} does not exist", "Nothing compared.")
    manifest = described["manifest"]
    plans = PlansManager(str(plans_file))
    configuration = plans.get_configuration(manifest["configuration"])
    config = TopoMAEConfig.from_configuration(configuration.configuration)
    facts = plan_facts(configuration, config, described["plan"]["channels"], plans.plans)
    different = plan_differences(described["plan"], facts)
    if not different:
        return Check("plan", "ok", f"{plans_file.name} asks for what this checkpoint was trained with")
    advice = "Pre-train again with the plan you fine-tune with."
    return Check("plan", "error", f"{plans_file.name} has changed: {'; '.join(different)}", advice)


def check_splits(manifest: Mapping[str, Any], splits_file: Path) -> Check:
    """Whether the folds are still the same.

    Args:
        manifest: what the checkpoint says about its training's data.
        splits_file: `splits_final.json` of the preprocessed data set.
    """
    if hash_json_file(splits_file) == manifest["splits_hash"]:
        return Check("splits", "ok", f"fold {manifest['fold']}, {splits_file.name} is unchanged")
    advice = "A fold of the new splits may validate on cases that this checkpoint has seen."
    return Check("splits", "error", f"{splits_file.name} has changed", advice)


def check_cases(recorded: Mapping[str, str], folder: Path) -> Check:
    """Whether the preprocessed images are those that training read.

    Args:
        recorded: SHA-256 of every preprocessed image that the training has read, by case.
        folder: where these images are.
    """
    if not recorded:
        advice = "Checkpoints of earlier versions list the cases of pre-trainings only. Nothing compared."
        return Check("cases", "warning", "the checkpoint lists no cases", advice)
    missing, changed = [], []
    for case, expected in recorded.items():
        try:
            if hash_images(folder, [case])[case] != expected:
                changed.append(case)
        except FileNotFoundError:
            missing.append(case)
    if changed:
        advice = "The data were preprocessed again in another way: pre-train again, or restore them."
        return Check("cases", "error", f"{len(changed)} of {len(recorded)} changed: {', '.join(changed[:5])}", advice)
    if missing:
        value = f"{len(missing)} of {len(recorded)} are not in {folder}: {', '.join(missing[:5])}"
        return Check("cases", "warning", value, "Preprocess them to compare all cases.")
    return Check("cases", "ok", f"all {len(recorded)} recorded cases are unchanged")
