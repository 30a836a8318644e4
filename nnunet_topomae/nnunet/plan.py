"""What a trainer reads from nnU-Net's plan: the `topomae` section, the network's shape and the facts to record."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.nnunet.plan_checks import check_patch_size
from nnunet_topomae.types import Size3
from nnunet_topomae.vectors import VectorFrame, find_slice_axis


@dataclass(frozen=True)
class PlanNetwork:
    """The network that a configuration of a plan names. It can be built, compared and written as JSON.

    Attributes:
        class_name: with its module, such as ``dynamic_network_architectures.architectures.unet.PlainConvUNet``.
        arguments: of the class, as JSON.
        imports: names of the arguments that nnU-Net imports.
    """

    class_name: str
    arguments: str
    imports: tuple[str, ...]

    @classmethod
    def of(cls, class_name: str, arguments: Mapping[str, Any], imports: Iterable[str]) -> "PlanNetwork":
        """The network of a plan's section `architecture`.

        Args:
            class_name: its `network_class_name`.
            arguments: its `arch_kwargs`.
            imports: its `_kw_requires_import`.
        """
        return cls(class_name, json.dumps(_without_numpy(arguments), sort_keys=True), tuple(imports))

    @property
    def features(self) -> list[int] | None:
        """Channels of every stage, fine to coarse; None for a network without stages."""
        features = json.loads(self.arguments).get("features_per_stage")
        return cast("list[int] | None", features)

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {"class": self.class_name, "arguments": json.loads(self.arguments)}

    def __call__(self, in_channels: int, out_channels: int, deep_supervision: bool) -> nn.Module:
        """Build the network as nnU-Net's trainer does.

        Args:
            in_channels: image channels.
            out_channels: segmentation heads, or image channels for a reconstruction.
            deep_supervision: whether it returns outputs of all scales.
        """
        network = get_network_from_plans(
            self.class_name,
            json.loads(self.arguments),
            self.imports,
            in_channels,
            out_channels,
            deep_supervision=deep_supervision,
        )
        return cast(nn.Module, network)


@dataclass(frozen=True)
class Plan:
    """One configuration of a plan, as this package uses it.

    Attributes:
        config: the `topomae` section with defaults filled in.
        shape: shape of both networks.
        spacing: target spacing in mm along (D, H, W).
        facts: JSON values that must agree between pre-training and fine-tuning.
        network: the plan's own network, where that is the ViT's partner; else None.
        transpose_forward: nnU-Net's: which axis of the images becomes each axis of the preprocessed arrays.
    """

    config: TopoMAEConfig
    shape: NetworkShape
    spacing: tuple[float, float, float]
    facts: dict[str, Any]
    network: PlanNetwork | None = None
    transpose_forward: Size3 = (0, 1, 2)

    def slice_axis(self) -> tuple[int, str]:
        """The axis from slice to slice, and why it is that one."""
        chosen = self.config.pretraining.slice_axis
        if chosen == "auto":
            return find_slice_axis(self.spacing, self.transpose_forward)
        return "DHW".index(chosen), "pretraining.slice_axis says so"

    def vector_frame(self) -> VectorFrame:
        """How the vectors of the spatial task are measured."""
        axis, pretraining = self.slice_axis()[0], self.config.pretraining
        in_plane = max(other for other in range(3) if other != axis)
        polar = axis if pretraining.polar_axis == "slice" else in_plane
        return VectorFrame(self.spacing, axis, polar, pretraining.angle_weights == "radius")


# What nnU-Net's CTNormalization clips and scales by.
_CT_STATISTICS = ("percentile_00_5", "percentile_99_5", "mean", "std")


def read_plan(
    configuration: ConfigurationManager,
    channels: int | None = None,
    plans: Mapping[str, Any] | None = None,
    config: TopoMAEConfig | None = None,
) -> Plan:
    """Read and check one configuration.

    Args:
        configuration: nnU-Net's configuration manager.
        channels: number of input channels, recorded in the facts.
        plans: content of the plans file, whose intensities are recorded in the facts, and which says how axes were
            transposed.
        config: what a training makes of the `topomae` section; None takes the section as it is.

    Raises:
        ValueError: a 2D configuration, a cascade's second stage, a patch that the rule cannot take, or a wrong
            `topomae` section.
    """
    if configuration.previous_stage_name is not None:
        raise ValueError(
            "the second stage of a cascade takes the first stage's segmentation as input, which pre-training on "
            "images cannot provide. Use 3d_fullres or 3d_lowres."
        )
    written = TopoMAEConfig.from_configuration(configuration.configuration)
    config = written if config is None else config
    network = partner_network(configuration, config)
    shape = derive_network_shape(
        configuration.patch_size,
        configuration.pool_op_kernel_sizes,
        config.architecture,
        None if network is None else network.features,
    )
    depth, height, width = (float(value) for value in configuration.spacing)
    facts = plan_facts(configuration, written, channels, plans)
    transposed = as_size3((plans or {}).get("transpose_forward", (0, 1, 2)), "transpose_forward")
    return Plan(config, shape, (depth, height, width), facts, network, transposed)


def partner_network(configuration: ConfigurationManager, config: TopoMAEConfig) -> PlanNetwork | None:
    """The plan's own network, if that is the ViT's partner.

    Args:
        configuration: nnU-Net's configuration manager.
        config: its `topomae` section.
    """
    if config.architecture.partner != "plan":
        return None
    return PlanNetwork.of(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
    )


def check_names(plans: PlansManager, configuration: ConfigurationManager, where: str) -> None:
    """Refuse a plan that names a reader or a resampling that nnU-Net does not have; the final validation needs both.

    Args:
        plans: nnU-Net's manager of the plans.
        configuration: and of the configuration.
        where: the file, for the error.

    Raises:
        ValueError: says what nnU-Net's own error says.
    """
    try:
        _ = plans.image_reader_writer_class, configuration.resampling_fn_probabilities
    except (RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{where}: {error} Restore the file, or plan again.") from error


def check_network(configuration: ConfigurationManager, where: str) -> None:
    """Refuse a plan whose own network cannot be built, or cannot take the patch; tried without memory for its weights.

    Args:
        configuration: nnU-Net's configuration manager, which names the network.
        where: the file, for the error.

    Raises:
        ValueError: says what nnU-Net's own error says, or which patch would fit.
    """
    network = PlanNetwork.of(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
    )
    try:
        with torch.device("meta"):
            network(in_channels=1, out_channels=2, deep_supervision=True)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, IndexError, ImportError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"{where}: nnU-Net cannot build the network that `architecture` describes ({type(error).__name__}: "
            f"{reason}). Restore the file, or plan again."
        ) from error
    check_patch_size(configuration.patch_size, configuration.pool_op_kernel_sizes, where)


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
    network = partner_network(configuration, config)
    return {
        "patch_size": np.asarray(configuration.patch_size).tolist(),
        "strides": np.asarray(configuration.pool_op_kernel_sizes).tolist(),
        "spacing": [float(value) for value in configuration.spacing],
        "normalization": list(configuration.normalization_schemes),
        "intensities": None if plans is None else ct_intensities(configuration.normalization_schemes, plans),
        "channels": channels,
        "architecture": _plain(asdict(config.architecture)),
        "network": None if network is None else network.facts(),
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


def _without_numpy(value: Any) -> Any:
    """The planner's numbers and arrays as plain ones."""
    if isinstance(value, Mapping):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, so that the facts equal themselves after JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
