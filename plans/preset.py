"""Presets: the published settings of the paper's data sets, as data with a source for every value (paper Sec. III)."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_topomae.config import CONFIGURATION_KEYS, TopoMAEConfig
from nnunet_topomae.datasets.splits import PublishedSplit
from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.names import CONFIGURATION, INTENSITY_SOURCE, PLANS
from nnunet_topomae.plans.planner import MAX_POOLS, MIN_FEATURE_MAP_EDGE
from nnunet_topomae.plans.variants import with_settings

FOLDER = Path(__file__).parent / "presets"
MIRROR_AXES = "finetuning.mirror_axes"
# Key of plans that says which preset they were made with; variants keep it.
PRESET_KEY = "topomae_preset"


@dataclass(frozen=True)
class Value:
    """One setting.

    Attributes:
        key: `intensity_window` (HU), `spacing` (mm), `patch_size` (voxels), `batch_size`, or a key of the plan's
            `topomae` section. Axes are (z, y, x).
        value: the setting.
        source: `paper` as published, `derived` from what is published, `ours` where the paper is silent.
        reason: one line.
    """

    key: str
    value: Any
    source: Literal["paper", "derived", "ours"]
    reason: str


@dataclass(frozen=True)
class Preset:
    """The settings of one data set.

    Attributes:
        name: as in `--preset`.
        title: the data set.
        modality: `CT` or `MR`.
        foreground_classes: number of labels without background.
        values: all settings.
        split: the published split; None where the paper does not state one.
    """

    name: str
    title: str
    modality: Literal["CT", "MR"]
    foreground_classes: int
    values: tuple[Value, ...]
    split: PublishedSplit | None = None

    def get(self, key: str) -> Any:
        """A value, or None."""
        return next((value.value for value in self.values if value.key == key), None)

    @property
    def plans_name(self) -> str:
        """Name of the plans that the preset makes."""
        return f"{PLANS}_{self.name}"


def preset_names() -> list[str]:
    """Names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "schema")


def load_preset(name: str) -> Preset:
    """Read a preset.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in preset_names():
        raise ValueError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    read = read_json(FOLDER / f"{name}.json")
    values = tuple(Value(**value) for value in read.pop("values"))
    split: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in read.pop("split", {}).items()
    }
    return Preset(**read, values=values, split=PublishedSplit(**split) if split else None)


def check_dataset(preset: Preset, dataset_json: Mapping[str, Any]) -> None:
    """Refuse a data set that cannot be the preset's.

    Args:
        preset: knows its modality and number of labels.
        dataset_json: content of `dataset.json`; the labels `background` and `ignore` do not count.

    Raises:
        ValueError: other channels, another modality or another number of labels.
    """
    channels = channel_names(dataset_json)
    labels = [name for name in dataset_json["labels"] if name not in ("background", "ignore")]
    is_ct = [str(name).lower() == "ct" for name in channels]
    if len(channels) != 1 or is_ct[0] != (preset.modality == "CT"):
        raise ValueError(f"preset {preset.name} is for one {preset.modality} channel, the data set has {channels}")
    if len(labels) != preset.foreground_classes:
        raise ValueError(
            f"preset {preset.name} ({preset.title}) is for {preset.foreground_classes} labels, the data set has "
            f"{len(labels)}: {', '.join(labels)}"
        )


def apply_preset(plans: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """Plans with the preset's values, of its own name and with its own preprocessed data.

    Args:
        plans: plans of TopoMAEPlanner for the preset's spacing, under any name.
        preset: what to apply to the configuration `3d_fullres`; the other 3D configurations are left out.

    Raises:
        ValueError: the networks cannot take the patch, or the plans have another spacing.
    """
    applied = deepcopy(dict(plans))
    configuration = applied["configurations"][CONFIGURATION]
    order = applied["transpose_forward"]
    spacing = [preset.get("spacing")[axis] for axis in order]
    if not np.allclose(configuration["spacing"], spacing):
        raise ValueError(f"the plans have spacing {configuration['spacing']}, preset {preset.name} {spacing}")
    patch_size = [preset.get("patch_size")[axis] for axis in order]
    _set_patch_size(configuration, patch_size)
    configuration["data_identifier"] = f"{preset.plans_name}_{CONFIGURATION}"
    if window := preset.get("intensity_window"):
        low, high = window
        properties = applied["foreground_intensity_properties_per_channel"]["0"]
        properties |= {"percentile_00_5": low, "percentile_99_5": high, "mean": low, "std": high - low}
        properties[INTENSITY_SOURCE] = f"published window {low}..{high}"
    applied["configurations"] = {
        name: values for name, values in applied["configurations"].items() if name == "2d" or name == CONFIGURATION
    }
    placed = ("intensity_window", "spacing", "patch_size")
    settings = {value.key: value.value for value in preset.values if value.key not in placed}
    if axes := settings.get(MIRROR_AXES):
        settings[MIRROR_AXES] = sorted(order.index(axis) for axis in axes)
    applied["plans_name"] = preset.plans_name
    applied[PRESET_KEY] = preset.name
    changed: dict[str, Any] = with_settings(applied, [CONFIGURATION], settings)
    return changed


def find_preset(plans: Mapping[str, Any]) -> Preset | None:
    """The preset that plans, or the plans that they vary, were made with; None if there is none."""
    name = plans.get(PRESET_KEY, str(plans["plans_name"]).removeprefix(f"{PLANS}_"))
    return load_preset(name) if name in preset_names() else None


def value_in_plans(key: str, plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Any:
    """What plans have for a setting of a preset, in the preset's order of axes.

    Args:
        key: of the setting.
        plans: content of a plans file.
        configuration: the one of them that is trained.
    """
    order = plans["transpose_forward"]
    if key == "intensity_window":
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        return [properties[f"percentile_{share}"] for share in ("00_5", "99_5")]
    if key in ("spacing", "patch_size"):
        return [configuration[key][order.index(axis)] for axis in range(3)]
    if key in CONFIGURATION_KEYS:
        return configuration[key]
    part, _, name = key.partition(".")
    found = TopoMAEConfig.from_configuration(configuration).to_plan()[part][name]
    if key == MIRROR_AXES and found is not None:
        return sorted(order[axis] for axis in found)
    return list(found) if isinstance(found, tuple) else found


def _set_patch_size(configuration: dict[str, Any], patch_size: list[int]) -> None:
    """Another patch, with the strides and stages that nnU-Net would give its own network for it."""
    _, strides, kernels, padded, _ = get_pool_and_conv_props(
        configuration["spacing"], patch_size, MIN_FEATURE_MAP_EDGE, MAX_POOLS
    )
    if list(padded) != patch_size:
        raise ValueError(f"patch size {patch_size} is not a multiple of its strides; {list(padded)} would be")
    kwargs = configuration["architecture"]["arch_kwargs"]
    stages = len(strides)
    widest = max(kwargs["features_per_stage"])
    kwargs.update(
        n_stages=stages,
        strides=[list(stride) for stride in strides],
        kernel_sizes=[list(kernel) for kernel in kernels],
        features_per_stage=[
            min(kwargs["features_per_stage"][0] * 2**stage, max(widest, 320)) for stage in range(stages)
        ],
        n_conv_per_stage=[kwargs["n_conv_per_stage"][0]] * stages,
        n_conv_per_stage_decoder=[kwargs["n_conv_per_stage_decoder"][0]] * (stages - 1),
    )
    configuration["patch_size"] = patch_size


def table(preset: Preset) -> str:
    """The preset in Markdown, value by value with its source."""
    rows = [f"| `{v.key}` | {plain(v.value)} | {v.source} | {v.reason} |" for v in preset.values]
    rows.append(_split_row(preset))
    return "\n".join([f"### `{preset.name}`: {preset.title}", "", "| value | | source | |", "|---|---|---|---|", *rows])


def _split_row(preset: Preset) -> str:
    split = preset.split
    if split is None:
        return "| split | nnU-Net's five folds | ours | not published |"
    parts = [split.train, split.validation, split.test]
    sizes = [f"{100 * share:g} %" for share in split.shares] if split.shares else [str(len(part)) for part in parts]
    return f"| split | {' / '.join(sizes)} | {split.source} | {split.reason} |"


def plain(value: Any) -> str:
    """A setting as text: a number, numbers, or `null`."""
    if value is None:
        return "null"
    return " ".join(f"{number:g}" for number in value) if isinstance(value, list) else f"{value:g}"
