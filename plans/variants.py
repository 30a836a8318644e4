"""Variants of a plan: other settings on the same preprocessed data."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import CONFIGURATION_KEYS, SECTION, TopoMAEConfig, check_crop_value, check_settings
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.nnunet.names import check_name
from nnunet_topomae.nnunet.plan_checks import check_architecture, check_patch_size, with_inherited


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON, or a string as it stands.

    Raises:
        ValueError: there is no `=` or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"setting {text!r} must be KEY=VALUE, for example pretraining.epochs=200")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def make_variant(
    plans: Mapping[str, Any], name: str, configurations: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Plans with other settings and another name, on the same preprocessed data.

    Args:
        plans: content of a plans file.
        name: name of the new plans.
        configurations: which configurations to change.
        settings: values by key: `patch_size`, `batch_size`, or a key of the `topomae` section such as
            `pretraining.epochs`.

    Raises:
        ValueError: unknown key, value out of range, a patch that the networks cannot take, or an unusable name.
    """
    check_name(name, f"the name of a variant of {plans['plans_name']}")
    if "__" in name or name == plans["plans_name"]:
        raise ValueError(f"{name!r} cannot name a variant of {plans['plans_name']}: choose another name without '__'")
    return {**with_settings(plans, configurations, settings), "plans_name": name}


def with_settings(
    plans: Mapping[str, Any], configurations: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Copy of plans with other settings; arguments and errors as in :func:`make_variant`."""
    changed = deepcopy(dict(plans))
    for chosen in configurations:
        configuration = _own_configuration(changed, chosen)
        for key, value in settings.items():
            _set(configuration, key, value)
        _check(configuration, chosen)
    return changed


def _own_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with the values it inherits written out."""
    configurations = plans["configurations"]
    merged = deepcopy(with_inherited(configurations, name, f"plans {plans['plans_name']}"))
    merged.pop("inherits_from", None)
    configurations[name] = merged
    return merged


def _set(configuration: dict[str, Any], key: str, value: Any) -> None:
    if key in CONFIGURATION_KEYS:
        configuration[key] = value
        return
    if key in configuration:
        raise ValueError(
            f"{key} decides how images are preprocessed or what nnU-Net's own network is, and a variant shares the "
            f"preprocessed data. Plan again, for example with nnUNetv2_plan_experiment -pl TopoMAEPlanner "
            f"-overwrite_target_spacing. A variant can set {', '.join(CONFIGURATION_KEYS)} and the {SECTION} section."
        )
    check_settings({key: value})
    section = configuration.setdefault(SECTION, {})
    *parents, last = key.removeprefix(f"{SECTION}.").split(".")
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else section
    if not isinstance(section, dict):
        raise ValueError(f"{key} cannot be set: the plans have {section!r} in its place, not a table. Correct them.")
    section[last] = value


def _check(configuration: dict[str, Any], name: str) -> None:
    """All values are known, in range and fit together."""
    config = TopoMAEConfig.from_configuration(configuration)
    if absent := [key for key in ("batch_size", "patch_size", "architecture") if key not in configuration]:
        raise ValueError(f"configuration {name} has no {', '.join(absent)}. Restore the plans file, or plan again.")
    check_architecture(configuration["architecture"], f"architecture of {name}")
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    if len(strides[0]) == 2:
        raise ValueError(f"{name} is a 2D configuration. Choose a 3D one, for example -c 3d_fullres.")
    for key in CONFIGURATION_KEYS:
        try:
            check_crop_value(key, configuration[key])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    patch_size = configuration["patch_size"]
    check_patch_size(patch_size, strides, name)
    features = configuration["architecture"]["arch_kwargs"].get("features_per_stage")
    derive_network_shape(as_size3(patch_size, "patch_size"), strides, config.architecture, features)
