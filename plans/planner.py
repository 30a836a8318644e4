"""nnU-Net's planner for our two networks: patch and batch size follow from what their trainings hold in memory."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_topomae.architectures.memory import GIB, TrainingMemory, estimate_finetuning, estimate_pretraining
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import SECTION, ArchitectureConfig, TopoMAEConfig
from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.nnunet.mirroring import mirroring_advice
from nnunet_topomae.nnunet.names import PATIENTS_FILE, PLANS
from nnunet_topomae.nnunet.plan import PlanNetwork
from nnunet_topomae.nnunet.plan_checks import check_data_set, check_memory_target
from nnunet_topomae.training.failures import show_expected_failures_in_one_line

MIN_BATCH_SIZE = 2
# nnU-Net's limits of pooling.
MIN_FEATURE_MAP_EDGE, MAX_POOLS = 4, 999999
# The median shape grows by this factor at most so many times: 40-fold, more than any image needs for three stages.
GROWTH, MAX_GROWTHS = 1.2, 20
# The one that mostly needs more comes first, because the planner stops where a crop is too large for one of them.
TRAININGS = ("fine-tuning", "pre-training")


class TopoMAEPlanner(ExperimentPlanner):
    """`nnUNetv2_plan_and_preprocess -d ID -pl TopoMAEPlanner` writes `TopoMAEPlans.json`.

    nnU-Net's algorithm with our memory: the patch starts at the median image and shrinks along its relatively longest
    axis until two crops fit in co-pre-training and in fusion; more crops are taken where they fit and hold at most
    5 % of the data set. 2D configurations, which the networks do not support, are nnU-Net's own.

    The parameters' names and order are nnU-Net's.

    Attributes:
        config: the section that the plans get, and the networks that are planned for.
        adapt: changes the plans before they are written.

    Raises:
        ValueError: a memory target that no GPU has, or a data set whose description or fingerprint is damaged.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = PLANS,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
        adapt: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        show_expected_failures_in_one_line()
        check_memory_target(float(gpu_memory_target_in_gb))
        check_data_set(maybe_convert_to_dataset_name(dataset_name_or_id))
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        # With these, nnU-Net compares twice our estimate with 1: the estimate is one crop's share of the free memory.
        self.UNet_reference_val_3d = self.UNet_reference_val_corresp_GB / self.UNet_vram_target_GB
        self.UNet_reference_val_corresp_bs_3d = 1
        self.config = TopoMAEConfig()
        self.adapt = adapt

    def static_estimate_VRAM_usage(  # noqa: N802
        self, patch_size: Any, n_input_channels: int, n_output_channels: int, class_name: str, kwargs: Any, imports: Any
    ) -> float:
        """Share of the free memory that one crop takes, in the training that needs more; nnU-Net's number in 2D.

        Args:
            patch_size: crop in voxels; two numbers in 2D.
            n_input_channels: image channels.
            n_output_channels: labels, background included.
            class_name: of nnU-Net's network.
            kwargs: arguments of nnU-Net's network; in 3D only its ``strides`` are used, unless it is the ViT's partner.
            imports: names among the arguments that nnU-Net imports.

        Raises:
            ValueError: the memory target is too small for any patch that the networks can take.
        """
        if len(patch_size) != 3:
            return float(
                ExperimentPlanner.static_estimate_VRAM_usage(
                    patch_size, n_input_channels, n_output_channels, class_name, kwargs, imports
                )
            )
        planned = None
        if self.config.architecture.partner == "plan":
            planned = PlanNetwork.of(class_name, kwargs, imports)
        try:
            shape = network_shape(patch_size, kwargs["strides"], self.config.architecture, planned)
        except ValueError as error:
            raise ValueError(
                f"{self.UNet_vram_target_GB:g} GB are too little: even two crops of {np.asarray(patch_size).tolist()} "
                "voxels would be too large, and the networks cannot take smaller ones. Use a larger -gpu_memory_target."
            ) from error
        largest = 0.0
        for training in TRAININGS:
            need = estimate_need(
                training,
                shape,
                self.config.architecture,
                n_input_channels,
                n_output_channels,
                planned,
                self.config.pretraining.partner_masking,
            )
            largest = max(largest, self._share(need))
            if MIN_BATCH_SIZE * largest > 1:
                break  # nnU-Net takes a smaller patch, however much the other training needs
        return largest

    def _share(self, need: TrainingMemory) -> float:
        free = self.UNet_vram_target_GB * GIB - need.fixed
        if free <= 0:
            raise ValueError(
                f"the networks' weights alone need {need.fixed / GIB:.1f} GB, but the GPU memory target is "
                f"{self.UNet_vram_target_GB:g} GB. Use a larger -gpu_memory_target."
            )
        return need.per_sample / float(free)

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: Any
    ) -> dict[str, Any]:
        """nnU-Net's plan of one configuration with our patch and batch size; 3D ones get the `topomae` section.

        Args:
            spacing: of the configuration, in mm along each axis; two numbers in 2D.
            median_shape: of the images at that spacing, in voxels.
            data_identifier: name of the folder for the preprocessed images.
            approximate_n_voxels_dataset: voxels of all training images together, which limit the batch size.
            _cache: estimates that nnU-Net has already made, by patch and strides.

        Raises:
            ValueError: a patch that the networks cannot take, or too little memory.
        """
        planned_shape = median_shape if len(spacing) == 2 else large_enough(spacing, median_shape)
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, planned_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        plan["median_image_size_in_voxels"] = median_shape
        if len(plan["patch_size"]) == 3:
            network = plan["architecture"]
            channels = len(channel_names(self.dataset_json))
            share = self.static_estimate_VRAM_usage(
                plan["patch_size"],
                channels,
                len(self.dataset_json["labels"]),
                network["network_class_name"],
                network["arch_kwargs"],
                network["_kw_requires_import"],
            )
            # nnU-Net rounds the batch size; a crop too many would not fit.
            plan["batch_size"] = max(MIN_BATCH_SIZE, min(plan["batch_size"], int(1 / share)))
            plan[SECTION] = self.config.to_plan()
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans as nnU-Net does, changed by `adapt`, and next to them the table of patients, if there is one.

        Warns of plans that mirror left and right although labels tell them apart.
        """
        recursive_fix_for_json_export(plans)
        plans = plans if self.adapt is None else self.adapt(plans)
        super().save_plans(plans)
        table = Path(self.raw_dataset_folder) / PATIENTS_FILE
        if table.is_file():
            write_json(nnunet_folder("nnUNet_preprocessed") / self.dataset_name / PATIENTS_FILE, read_json(table))
        if advice := mirroring_advice(plans, self.dataset_json):
            warnings.warn(advice, stacklevel=2)


def large_enough(spacing: Any, median_shape: Any) -> Any:
    """The median shape, or a larger one of its proportions if the networks need three stages that it cannot give.

    Images smaller than the patch are padded in training.

    Args:
        spacing: of the planned configuration, in mm along each axis.
        median_shape: of the images at that spacing, in voxels.

    Raises:
        ValueError: the networks cannot take a much larger shape either.
    """
    shape = np.asarray(median_shape)
    for _ in range(MAX_GROWTHS + 1):
        _, strides, _, patch_size, _ = get_pool_and_conv_props(spacing, shape, MIN_FEATURE_MAP_EDGE, MAX_POOLS)
        try:
            network_shape(patch_size, strides, TopoMAEConfig().architecture)
        except ValueError as error:
            reason = error
            shape = np.ceil(GROWTH * shape).astype(int)
        else:
            return shape
    raise ValueError(
        f"the networks cannot be planned for a median image of {np.asarray(median_shape).tolist()} voxels of "
        f"{np.asarray(spacing).tolist()} mm, not even padded: {reason} Check the images' spacing, or choose another "
        "one with -overwrite_target_spacing."
    ) from reason


def network_shape(
    patch_size: Any, strides: Any, architecture: ArchitectureConfig, planned: PlanNetwork | None = None
) -> NetworkShape:
    """The rule, for numbers as nnU-Net's planner has them.

    Args:
        patch_size: in voxels.
        strides: of nnU-Net's stages, one triple each.
        architecture: channels and upper limits of the projections.
        planned: the plan's own network, where that is the ViT's partner.

    Raises:
        ValueError: a patch that the networks cannot take.
    """
    features = None if planned is None else planned.features
    return derive_network_shape(np.asarray(patch_size).tolist(), np.asarray(strides).tolist(), architecture, features)


@cache
def estimate_need(
    training: str,
    shape: NetworkShape,
    architecture: ArchitectureConfig,
    channels: int,
    classes: int,
    planned: PlanNetwork | None = None,
    masking: Literal["zero", "sparse"] = "zero",
) -> TrainingMemory:
    """Memory of one training. An estimate takes about a second, and planning asks for the same ones again.

    Args:
        training: one of `TRAININGS`.
        shape: shape of both networks.
        architecture: what they are made of.
        channels: input channels.
        classes: output channels, background included.
        planned: the plan's own network, where that is the ViT's partner.
        masking: how pre-training keeps the partner from hidden voxels.
    """
    if training == "fine-tuning":
        return estimate_finetuning(shape, architecture, channels, classes, planned=planned)
    return estimate_pretraining(shape, architecture, channels, planned=planned, masking=masking)
