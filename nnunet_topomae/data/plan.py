"""What a trainer reads from nnU-Net's plan: the `topomae` section, the network's shape and the facts to record."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.geometry import as_size3


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


def read_plan(configuration: ConfigurationManager, channels: int | None = None) -> Plan:
    """Read and check one configuration.

    Args:
        configuration: nnU-Net's configuration manager.
        channels: number of input channels, recorded in the facts.

    Raises:
        ValueError: a 2D configuration, a cascade's second stage, a patch that the rule cannot take, or a wrong
            `topomae` section.
    """
    if configuration.previous_stage_name is not None:
        raise ValueError(
            "the second stage of a cascade takes the first stage's segmentation as input, which pre-training on "
            "images cannot provide. Use 3d_fullres or 3d_lowres."
        )
    patch_size = as_size3(configuration.patch_size, "the plan's patch size")
    config = TopoMAEConfig.from_configuration(configuration.configuration)
    shape = derive_network_shape(patch_size, configuration.pool_op_kernel_sizes, config.architecture)
    spacing = tuple(float(value) for value in configuration.spacing)
    facts = {
        "patch_size": list(patch_size),
        "strides": np.asarray(configuration.pool_op_kernel_sizes).tolist(),
        "spacing": list(spacing),
        "normalization": list(configuration.normalization_schemes),
        "channels": channels,
        "architecture": _plain(asdict(config.architecture)),
    }
    return Plan(config, shape, spacing, facts)  # type: ignore[arg-type]


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that the facts equal themselves after JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
