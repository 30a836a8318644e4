"""What a trainer reads from nnU-Net's plan: the `topomae` section, the network's shape and the facts to record."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import TopoMAEConfig


@dataclass(frozen=True)
class Plan:
    """One configuration of a plan, as this package uses it.

    Attributes:
        config: the `topomae` section with defaults filled in.
        shape: shape of both networks.
        spacing: target spacing in mm along (D, H, W).
        facts: JSON values that must agree between pre-training and fine-tuning.
    """

    config: TopoMAEConfig
    shape: NetworkShape
    spacing: tuple[float, float, float]
    facts: dict[str, Any]


# What nnU-Net's CTNormalization clips and scales by.
_CT_STATISTICS = ("percentile_00_5", "percentile_99_5", "mean", "std")


def read_plan(
    configuration: ConfigurationManager, channels: int | None = None, plans: Mapping[str, Any] | None = None
) -> Plan:
    """Read and check one configuration.

    Args:
        configuration: nnU-Net's configuration manager.
        channels: number of input channels, recorded in the facts.
        plans: content of the plans file, whose intensities are recorded in the facts.

    Raises:
        ValueError: a 2D configuration, a cascade's second stage, a patch that the rule cannot take, or a wrong
            `topomae` section.
    """
    if configuration.previous_stage_name is not None:
        raise ValueError(
            "the second stage of a cascade takes the first stage's segmentation as input, which pre-training on "
            "images cannot provide. Use 3d_fullres or 3d_lowres."
        )
    config = TopoMAEConfig.from_configuration(configuration.configuration)
    shape = derive_network_shape(configuration.patch_size, configuration.pool_op_kernel_sizes, config.architecture)
    depth, height, width = (float(value) for value in configuration.spacing)
    return Plan(config, shape, (depth, height, width), plan_facts(configuration, config, channels, plans))


def plan_facts(
    configuration: ConfigurationManager,
    config: TopoMAEConfig,
    channels: int | None = None,
    plans: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What must agree between a pre-training and the fine-tuning that takes over its weights, as JSON values.

    Args:
        configuration: nnU-Net's configuration manager.
        config: its `topomae` section.
        channels: number of input channels.
        plans: content of the plans file, whose intensities are recorded.
    """
    return {
        "patch_size": np.asarray(configuration.patch_size).tolist(),
        "strides": np.asarray(configuration.pool_op_kernel_sizes).tolist(),
        "spacing": [float(value) for value in configuration.spacing],
        "normalization": list(configuration.normalization_schemes),
        "intensities": None if plans is None else ct_intensities(configuration.normalization_schemes, plans),
        "channels": channels,
        "architecture": _plain(asdict(config.architecture)),
    }


def ct_intensities(schemes: Iterable[str], plans: Mapping[str, Any]) -> list[dict[str, float | None] | None]:
    """What CT is clipped and scaled by, channel by channel; None for channels that are normalised by themselves.

    Args:
        schemes: normalisation schemes of the channels.
        plans: content of a plans file.
    """
    old_name, name = "foreground_intensity_properties_by_modality", "foreground_intensity_properties_per_channel"
    properties = plans.get(name, plans.get(old_name, {}))
    return [
        {key: properties.get(str(channel), {}).get(key) for key in _CT_STATISTICS}
        if scheme == "CTNormalization"
        else None
        for channel, scheme in enumerate(schemes)
    ]


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that the facts equal themselves after JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
