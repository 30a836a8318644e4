"""What plans, splits and fingerprints must hold before anybody computes with them. Standard library only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.dataset import channel_names, check_dataset_json, read_dataset_json
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.nnunet.names import DATASET_FILE, FINGERPRINT_FILE

_CURE = "Restore the file, or plan again."


# What nnU-Net asks of a plan for building its network.
NETWORK_KEYS = ("architecture.network_class_name", "architecture._kw_requires_import")
# What nnU-Net's trainers ask of a plan, some of it only in the validation at the end of a training.
TRAINING_KEYS = (
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "batch_dice",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
    *NETWORK_KEYS,
)
# Instead of `architecture`, in plans of nnU-Net's first versions, which nnU-Net translates.
_OLD_ARCHITECTURE = "UNet_class_name"


def check_training(plans: Any, configuration: str, description: Any) -> str:
    """Refuse plans and a description of the data set with which no training can begin or end well.

    Args:
        plans: content of a plans file.
        configuration: the one that is going to be trained.
        description: content of `dataset.json`.

    Returns:
        Name of the plans file, for further errors.

    Raises:
        ValueError: as :func:`check_plans`, `check_dataset_json` and :func:`check_channels`.
    """
    file = f"{plans.get('plans_name', 'plans') if isinstance(plans, Mapping) else 'plans'}.json"
    check_plans(plans, configuration, file, TRAINING_KEYS)
    check_dataset_json(description, Path(DATASET_FILE))
    check_channels(plans, configuration, len(channel_names(description)), file)
    return file


def check_plans(plans: Any, configuration: str, where: str, needed: Iterable[str] = ()) -> None:
    """Refuse plans that are damaged, before nnU-Net fails on them.

    Args:
        plans: content of a plans file.
        configuration: the one that is going to be used.
        where: the file, for errors.
        needed: further keys, of the plans or of the configuration, without which the caller cannot do.

    Raises:
        ValueError: names the file, the key, its value and what is allowed.
    """
    _check_top(plans, where)
    values = with_inherited(plans["configurations"], configuration, where)
    for key, (holds, words) in _RULES.items():
        if key not in values:
            raise ValueError(f"{where}: configuration {configuration} has no {key}. {_CURE}")
        if not holds(values[key]):
            raise ValueError(f"{where}: {key} = {values[key]!r} of configuration {configuration} must be {words}")
    if _OLD_ARCHITECTURE not in values:
        check_architecture(values.get("architecture"), f"{where}: architecture of configuration {configuration}")
        _check_axes(values, f"{where}: configuration {configuration}")
    if absent := [key for key in needed if not _has({**plans, **values}, key)]:
        raise ValueError(f"{where}: configuration {configuration} has no {', '.join(absent)}. {_CURE}")


def _check_axes(values: Mapping[str, Any], where: str) -> None:
    """Patch, spacing and strides of a configuration belong together."""
    patch, spacing, strides = values["patch_size"], values["spacing"], values["architecture"]["arch_kwargs"]["strides"]
    if len({len(patch), len(spacing), len(strides[0])}) > 1:
        raise ValueError(
            f"{where} has patch_size = {patch}, spacing = {spacing} and strides such as {strides[0]}, which must have "
            f"one number per axis each. {_CURE}"
        )


def check_channels(plans: Mapping[str, Any], configuration: str, channels: int, where: str) -> None:
    """Refuse plans for images of another number of channels.

    Args:
        plans: content of a plans file that :func:`check_plans` has passed.
        configuration: the one that is going to be used.
        channels: that `dataset.json` names.
        where: the file, for errors.

    Raises:
        ValueError: names both numbers.
    """
    schemes = with_inherited(plans["configurations"], configuration, where)["normalization_schemes"]
    if len(schemes) != channels:
        raise ValueError(
            f"{where}: configuration {configuration} normalises {len(schemes)} channels "
            f"({', '.join(map(str, schemes))}), but dataset.json names {channels}. Restore both files, or plan and "
            "preprocess again."
        )


def _check_top(plans: Any, where: str) -> None:
    """What all configurations of the plans share."""
    if not isinstance(plans, Mapping):
        raise ValueError(f"{where} is not a table of plans. {_CURE}")
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping) or not configurations:
        raise ValueError(f"{where} has no configurations. {_CURE}")
    for key in ("dataset_name", "plans_name"):
        if not isinstance(plans.get(key), str):
            raise ValueError(f"{where}: {key} = {plans.get(key)!r} must be a name. {_CURE}")
    for key in ("transpose_forward", "transpose_backward"):
        if key in plans and not _is_order_of_axes(plans[key]):
            raise ValueError(f"{where}: {key} = {plans[key]!r} must be 0, 1 and 2 in some order. {_CURE}")


def check_architecture(architecture: Any, where: str) -> None:
    """Refuse a plan's description of nnU-Net's own network that is damaged, or is of one without stages.

    Args:
        architecture: of a configuration.
        where: file and key, for errors.

    Raises:
        ValueError: says what is allowed.
    """
    kwargs = architecture.get("arch_kwargs") if isinstance(architecture, Mapping) else None
    name = architecture.get("network_class_name") if isinstance(kwargs, Mapping) and "strides" not in kwargs else None
    if isinstance(name, str) and not name.endswith("UNet"):
        raise ValueError(
            f"{where} names {name.rpartition('.')[2]}, which has no strides, so it is no encoder and decoder of "
            "several stages. nnunet-topomae needs plans of a PlainConvUNet or a ResidualEncoderUNet: plan with "
            "nnU-Net's default planner or one of its ResEnc planners."
        )
    strides = kwargs.get("strides") if isinstance(kwargs, Mapping) else None
    rows = strides if isinstance(strides, list) else []
    if not rows or not all(map(_are(_is_whole), rows)) or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"{where} must be a table whose arch_kwargs have strides: one list per stage, of a whole number of at "
            f"least 1 per axis. {_CURE}"
        )


def check_patch_size(patch_size: Sequence[int], strides: Sequence[Sequence[int]], where: str) -> None:
    """Refuse a patch that the network's stages cannot halve evenly.

    Args:
        patch_size: in voxels, (D, H, W).
        strides: of every stage, along (D, H, W).
        where: what the patch belongs to, for the error.

    Raises:
        ValueError: says the multiples that fit.
    """
    total = [prod(factors) for factors in zip(*strides, strict=True)]
    if any(size % factor for size, factor in zip(patch_size, total, strict=True)):
        raise ValueError(
            f"{where}: patch_size = {list(patch_size)} must be multiples of the network's total strides {total}. "
            "Choose another patch size, or plan again."
        )


def with_inherited(configurations: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Args:
        configurations: of the plans, by name.
        name: the configuration's.
        where: the file, for errors.

    Raises:
        ValueError: it does not exist, is no table or inherits from itself.
    """
    values: dict[str, Any] = {}
    link: Any = name
    seen: list[Any] = []
    while link is not None:
        if not isinstance(link, str) or link not in configurations:
            raise ValueError(f"{where} has no configuration {link!r}; it has {', '.join(map(str, configurations))}")
        if link in seen or not isinstance(configurations[link], Mapping):
            raise ValueError(f"{where}: configuration {link} is damaged or inherits from itself. {_CURE}")
        seen.append(link)
        values = {**configurations[link], **values}
        link = configurations[link].get("inherits_from")
    return values


def _has(values: Mapping[str, Any], key: str) -> bool:
    first, _, rest = key.partition(".")
    if first == "architecture" and _OLD_ARCHITECTURE in values:
        return True
    return first in values and (not rest or _has(values[first], rest))


def _is_order_of_axes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(axis) is int for axis in value) and sorted(value) == [0, 1, 2]


def _are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list | tuple) and len(values) in (2, 3) and all(map(kind, values))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_length(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_lengths_of_cases(rows: Any) -> bool:
    return isinstance(rows, list) and len(rows) > 0 and all(map(_are(_is_length), rows))


def _are_statistics(channels: Any) -> bool:
    tables = channels.values() if isinstance(channels, Mapping) else ()
    return len(tables) > 0 and all(isinstance(of, Mapping) and all(map(_is_number, of.values())) for of in tables)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data_identifier": (lambda value: isinstance(value, str) and value != "", "the name of a folder"),
    "patch_size": (_are(_is_whole), "three whole numbers of at least 1"),
    "spacing": (_are(_is_length), "three numbers above 0, in mm"),
    "batch_size": (_is_whole, "a whole number of at least 1"),
    "normalization_schemes": (lambda value: isinstance(value, list) and len(value) > 0, "a list, one per channel"),
}


_FINGERPRINT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "spacings": (_are_lengths_of_cases, "a list, three numbers above 0 per case"),
    "shapes_after_crop": (_are_lengths_of_cases, "a list, three numbers above 0 per case"),
    "median_relative_size_after_cropping": (_is_length, "a number above 0"),
    "foreground_intensity_properties_per_channel": (_are_statistics, "a table of finite numbers per channel"),
}


def check_fingerprint(file: Path) -> None:
    """Refuse nnU-Net's fingerprint of a data set where it is damaged, or was computed from images with NaN.

    Args:
        file: `dataset_fingerprint.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: names the file, the key and the cure.
    """
    read = read_json(file)
    fingerprint = read if isinstance(read, Mapping) else {}
    for key, (holds, words) in _FINGERPRINT.items():
        if not holds(fingerprint.get(key)):
            raise ValueError(
                f"{file}: {key} must be {words}. Delete the file and plan again; if it comes back, look for NaN or "
                "infinite voxels in the images, and for label maps without any label."
            )


def check_data_set(name: str) -> None:
    """Refuse a data set whose description or fingerprint is damaged; one without a fingerprint is fine.

    Args:
        name: its folder below nnU-Net's folders.

    Raises:
        FileNotFoundError: it has no description.
        ValueError: names the file, the key and the cure.
    """
    raw, fingerprint = (
        nnunet_folder("nnUNet_raw") / name,
        nnunet_folder("nnUNet_preprocessed") / name / FINGERPRINT_FILE,
    )
    check_dataset_json(read_dataset_json(raw), raw / DATASET_FILE)
    if fingerprint.is_file():
        check_fingerprint(fingerprint)


def check_memory_target(gigabytes: float) -> None:
    """Refuse a memory to plan for that no GPU has.

    Args:
        gigabytes: of GPU memory.

    Raises:
        ValueError: not above 0, or not finite.
    """
    if not 0 < gigabytes < float("inf"):
        raise ValueError(f"-gpu_memory_target {gigabytes:g} must be above 0, in GB")


def check_splits(file: Path, fold: int | str, cases: Iterable[str]) -> None:
    """Refuse a splits file that is damaged, or whose fold names cases that do not exist.

    Args:
        file: `splits_final.json`; nothing is checked where there is none, because nnU-Net makes one.
        fold: the fold that is going to be trained; nothing is checked for `all`.
        cases: preprocessed cases.

    Raises:
        ValueError: names the file, the fold and the cure.
    """
    if fold == "all" or not file.is_file():
        return
    splits = read_json(file)
    if not isinstance(splits, list) or not splits:
        raise ValueError(f'{file} must be a list of folds, {{"train": [...], "val": [...]}} each. {_DELETE}')
    if int(fold) >= len(splits):
        return  # nnU-Net then makes a split of its own, and says so
    split = splits[int(fold)]
    for part in ("train", "val"):
        named = split.get(part) if isinstance(split, Mapping) else None
        if not isinstance(named, list) or not named or not all(isinstance(case, str) for case in named):
            raise ValueError(f"{file}: {part} of fold {fold} must be a list of at least one case name. {_DELETE}")
    known = set(cases)
    if absent := [case for case in (*split["train"], *split["val"]) if case not in known]:
        raise ValueError(
            f"{file}: fold {fold} names {len(absent)} cases without preprocessed images, first {absent[0]}. Preprocess "
            "them with nnUNetv2_preprocess, or correct the file."
        )


_DELETE = "Correct it, or delete it: nnU-Net then makes five folds."
