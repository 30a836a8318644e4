"""Refusals: which pre-training checkpoints a fine-tuning may not start from."""

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_topomae.architectures.copretraining import BRANCHES
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import SECTION, ArchitectureConfig, TopoMAEConfig
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.losses.weights import trained_branches, trains_decoder
from nnunet_topomae.nnunet.names import VECTORPOSE_PRETRAINER
from nnunet_topomae.training.resample import NetworkSize

# Keys of the architecture section that do not change what a pre-trained weight means.
_FREE_TO_DIFFER = ("drop_path", "dropout", "projections", "gamma")
# Keys that describe UNETR++. Another partner is described by the fact `network`.
_OF_UNETRPP = ("dims", "depth", "heads", "feature_size", "share_embeddings", "upsampling")
# Facts that checkpoints of earlier versions do not have. They are compared where both sides have them.
_ADDED_FACTS = ("intensities",)
# Facts about how images are normalised, channel by channel.
_NORMALIZATION = ("normalization", "intensities")
# Statistics of intensities are equal up to the digits that a plan is written with.
_RELATIVE_TOLERANCE = 1e-6


def plan_differences(
    described: Mapping[str, Any], own: Mapping[str, Any], taken: Collection[str] = BRANCHES
) -> list[str]:
    """What differs between the plan of a checkpoint and the plan of this training.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        taken: the pre-trained networks that are transferred, out of ``vit`` and ``partner``.

    Returns:
        A phrase a value, as in ``patch_size: checkpoint [8, 8, 8], plan [16, 16, 16]``.
    """
    different = architecture_differences(described, own, taken)
    different += _network_arguments(described, own) if "partner" in taken else []
    for key, value in own.items():
        theirs = described.get(key)
        if key in ("architecture", "network") or (key in _ADDED_FACTS and key not in described):
            continue
        if not _same(theirs, value):
            different.append(f"{key}: checkpoint {theirs!r}, plan {value!r}")
    return different


def _network_arguments(described: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """In which arguments two networks of one class differ, of the plans' own networks."""
    theirs, ours = (facts.get("network") or {} for facts in (described, own))
    if not theirs or theirs.get("class") != ours.get("class"):
        return []  # another partner or class, which is a difference of the architecture
    old, new = theirs["arguments"], ours["arguments"]
    return [
        f"network.{key}: checkpoint {old.get(key)!r}, plan {new.get(key)!r}"
        for key in {**old, **new}
        if not _same(old.get(key), new.get(key))
    ]


def unknown_facts(described: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Plan facts that a checkpoint of an earlier version does not have, so that nothing can be compared.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.

    Returns:
        Keys of facts that this training has and the checkpoint lacks.
    """
    return [key for key in _ADDED_FACTS if any(own.get(key) or ()) and key not in described]


def architecture_differences(
    described: Mapping[str, Any], own: Mapping[str, Any], taken: Collection[str] = BRANCHES
) -> list[str]:
    """What differs between the architecture sections, and between the classes of the plans' own networks.

    Absent keys have their default.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        taken: as in :func:`plan_differences`; without the ViT, its size may differ.

    Returns:
        A phrase per key, as in :func:`plan_differences`; none for keys that do not change what a weight means.
    """
    if "architecture" not in own:
        return []
    theirs, ours = (_architecture(facts.get("architecture", {})) for facts in (described, own))
    free = (*_FREE_TO_DIFFER, *(_OF_UNETRPP if theirs.partner == ours.partner == "plan" else ()))
    free += () if "vit" in taken else ("vit",)
    different = [
        f"architecture.{key}: checkpoint {getattr(theirs, key)!r}, plan {getattr(ours, key)!r}"
        for key in vars(ours)
        if key not in free and getattr(theirs, key) != getattr(ours, key)
    ]
    old, new = ((facts.get("network") or {}).get("class") for facts in (described, own))
    if "partner" in taken and old and new and old != new:
        different.append(f"network: checkpoint {old.rpartition('.')[2]!r}, plan {new.rpartition('.')[2]!r}")
    return different


def normalization_differences(described: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Whether images are normalised in another way than in pre-training, to which no weight is adapted.

    Where the numbers of channels differ, a channel that only one of the two has is compared with nothing.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.

    Returns:
        A phrase per fact, as in :func:`plan_differences`; none for facts that one of the two does not have.
    """
    keys = [key for key in _NORMALIZATION if described.get(key) and own.get(key)]
    # Per channel: its scheme, and what CT is clipped and scaled by.
    channels = [list(map(list, zip(*(facts[key] for key in keys), strict=False))) for facts in (described, own)]
    few, many = sorted(channels, key=len)
    if len(few) < len(many) and all(any(_same(channel, other) for other in many) for channel in few):
        return []
    different = [key for key in keys if not _same(described[key], own[key])]
    return [f"{key}: checkpoint {described[key]!r}, plan {own[key]!r}" for key in different]


def _architecture(section: Mapping[str, Any]) -> ArchitectureConfig:
    return TopoMAEConfig.from_configuration({SECTION: {"architecture": section}}).architecture


def _same(first: Any, second: Any) -> bool:
    """Equality of JSON values, with a tolerance for fractions."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float | int) and isinstance(second, float | int):
        return math.isclose(first, second, rel_tol=_RELATIVE_TOLERANCE, abs_tol=1e-9)
    return bool(first == second)


def check_same_plan(
    described: Mapping[str, Any], own: Mapping[str, Any], file: Path, pretrainer: str, taken: Collection[str] = BRANCHES
) -> None:
    """Refuse a checkpoint that was pre-trained with another plan.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        file: the checkpoint, for the error.
        pretrainer: trainer of the pre-training, for the error.
        taken: as in :func:`plan_differences`.

    Raises:
        ValueError: the first three differences, value by value.
    """
    different = plan_differences(described, own, taken)
    if different:
        message = (
            f"{file} was pre-trained with another plan ({'; '.join(different[:3])}). Pre-train with the plan you "
            f"fine-tune with: nnUNetv2_train ... -tr {pretrainer} -p PLANS"
        )
        if not architecture_differences(described, own, taken) and not normalization_differences(described, own):
            message += (
                ". Or adapt its weights: nnunet-topomae plan -d ID --name NAME --set finetuning.transfer=resample"
            )
        raise ValueError(message)


def described_size(
    described: Mapping[str, Any], own: Mapping[str, Any], file: Path, taken: Collection[str] = BRANCHES
) -> NetworkSize:
    """Size of a pre-trained network from its checkpoint's ``plan`` facts.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        file: the checkpoint, for the error.
        taken: as in :func:`plan_differences`.

    Raises:
        ValueError: the architecture sections differ in more than sizes that follow from the plan, or images are
            normalised in another way.
    """
    different = architecture_differences(described, own, taken)
    if different:
        raise ValueError(
            f"{file} was pre-trained with another architecture ({'; '.join(different)}), which cannot be adapted. "
            "Pre-train with these plans, or take plans of the same network with the same values: nnunet-topomae plan "
            "--set architecture.KEY=VALUE."
        )
    if different := normalization_differences(described, own):
        raise ValueError(
            f"{file} was pre-trained on images that were normalised in another way ({'; '.join(different)}), to which "
            "no weight is adapted. Pre-train with these plans; nnUNetv2_move_plans_between_datasets takes them to "
            "another data set (docs/transfer.md)."
        )
    architecture = _architecture(described["architecture"])
    features = (described.get("network") or {}).get("arguments", {}).get("features_per_stage")
    shape = derive_network_shape(described["patch_size"], described["strides"], architecture, features)
    return NetworkSize(shape, described["channels"])


def check_same_dataset(manifest: Mapping[str, Any], dataset: str, file: Path) -> None:
    """Refuse a checkpoint of another data set, whose list of cases cannot be compared with this one's.

    Args:
        manifest: of the checkpoint.
        dataset: name of this data set.
        file: the checkpoint, for the error.

    Raises:
        ValueError: the data sets have different names.
    """
    if manifest["dataset"] != dataset:
        raise ValueError(
            f"{file} was pre-trained on {manifest['dataset']}, this is {dataset}: nothing can say whether it has seen "
            "images of the validation cases. If you know that it has not, allow it in the plan: nnunet-topomae plan "
            "-d ID --name NAME --set finetuning.allow_other_dataset=true"
        )


def check_no_leak(
    manifest: Mapping[str, Any], dataset: str, validation_cases: Iterable[str], file: Path, patients: Patients
) -> None:
    """Refuse a checkpoint whose pre-training read a validation case of this fold, or another scan of its patient.

    Args:
        manifest: of the checkpoint; of interest only if it is about the same data set.
        dataset: name of this data set.
        validation_cases: case identifiers of the fold.
        file: the checkpoint, for the error.
        patients: which patient a case belongs to.

    Raises:
        ValueError: naming the cases.
    """
    read = [*manifest["cases"], *manifest.get("unlabeled", ())]
    leaked = patients.shared(read, validation_cases) if manifest["dataset"] == dataset else []
    if leaked:
        raise ValueError(
            f"{file} was pre-trained on {len(leaked)} validation cases of this fold, or other scans of their patients "
            f"({', '.join(leaked[:5])}), so validation would be too good to be true. Pre-train this fold, or use fold "
            "'all' for both."
        )


def check_no_copies(read: ImagesRead, validation: ImagesRead, what: str) -> None:
    """Refuse images whose content is that of a validation case, under whatever name or data set number.

    Args:
        read: hashes of what was read, or is going to be.
        validation: hashes of the fold's validation cases.
        what: what reads or has read them, for the error.

    Raises:
        ValueError: naming the copies and the cases.
    """
    known = validation.contents()
    copies = [(case, known[digest]) for digest, case in read.contents().items() if digest in known]
    if copies:
        named = ", ".join(sorted({f"{case} is {own}" for case, own in copies})[:5])
        raise ValueError(
            f"{what} reads images of validation cases of this fold ({named}; same content, whatever the name), so "
            "validation would be too good to be true. Take the copies out of the training cases, or train with fold "
            "'all'."
        )


def images_of(described: Mapping[str, Any], file: Path) -> ImagesRead:
    """What a checkpoint says it has read.

    Args:
        described: the checkpoint's own description.
        file: the checkpoint, for the error.

    Raises:
        ValueError: its manifest is missing, empty or damaged.
    """
    manifest = described.get("manifest")
    problem = "no manifest"
    if isinstance(manifest, Mapping):
        parts = {part: manifest.get(part, {}) for part in ("cases", "unlabeled", "sources", "unlisted")}
        wrong = [part for part, hashes in parts.items() if not _are_hashes(hashes)]
        wrong += [key for key in ("dataset",) if not isinstance(manifest.get(key), str)]
        if not wrong and (parts["cases"] or parts["unlabeled"]):
            return ImagesRead(**{part: dict(hashes) for part, hashes in parts.items()})
        problem = f"no usable {', '.join(wrong)} in its manifest" if wrong else "an empty manifest"
    raise ValueError(
        f"{file} has {problem}, so nothing says which cases its weights have seen. Pre-train again with this version."
    )


def _are_hashes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(case, str) and isinstance(digest, str) for case, digest in value.items()
    )


def decoder_is_trained(described: Mapping[str, Any]) -> bool:
    """Whether a loss of a pre-training has trained the partner's decoder.

    Args:
        described: ``config`` of the checkpoint.
    """
    config = TopoMAEConfig.from_configuration({SECTION: described})
    return trains_decoder(config.pretraining, config.topology, config.architecture.has_vit)


def check_trained(described: Mapping[str, Any], takes_vit: bool, takes_partner: bool, file: Path) -> None:
    """Refuse to take an encoder that no loss has trained.

    Args:
        described: ``config`` of the checkpoint.
        takes_vit: whether the ViT is transferred.
        takes_partner: whether the partner is transferred.
        file: the checkpoint, for the error.

    Raises:
        ValueError: one of them had the weight 0 in every loss.
    """
    config = TopoMAEConfig.from_configuration({SECTION: described})
    trained = trained_branches(config.pretraining, config.topology, config.architecture.has_vit)
    for taken, name, title, other in (
        (takes_vit, "vit", "the ViT", "partner"),
        (takes_partner, "partner", "the ViT's partner", "vit"),
    ):
        if taken and name not in trained:
            why = f"pretraining.lambda1 = {config.pretraining.lambda1}, lambda3 = {config.pretraining.lambda3}"
            if name == "vit" and not config.architecture.has_vit:
                why = f"architecture.vit = 'none', or {VECTORPOSE_PRETRAINER}"
            raise ValueError(
                f"{file}: no loss of this pre-training has trained {title} ({why}). Pre-train it, or take the other "
                f"network: in a fusion with finetuning.transfer_parts={other}, in an export with --encoder {other}."
            )
