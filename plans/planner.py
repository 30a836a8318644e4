"""nnU-Net's planner for our two networks: patch and batch size follow from what their trainings hold in memory."""

from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_topomae.architectures.memory import GIB, TrainingMemory, estimate_finetuning, estimate_pretraining
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import SECTION, TopoMAEConfig
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.nnunet.dataset import channel_names

MIN_BATCH_SIZE = 2
# nnU-Net's limits of pooling.
MIN_FEATURE_MAP_EDGE, MAX_POOLS = 4, 999999


class TopoMAEPlanner(ExperimentPlanner):
    """`nnUNetv2_plan_and_preprocess -d ID -pl TopoMAEPlanner` writes `TopoMAEPlans.json`.

    nnU-Net's algorithm with our memory: the patch starts at the median image and shrinks along its relatively longest
    axis until two crops fit in co-pre-training and in fusion; more crops are taken where they fit and hold at most
    5 % of the data set. 2D configurations, which the networks do not support, are nnU-Net's own.

    The parameters' names and order are nnU-Net's.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "TopoMAEPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
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

    def static_estimate_VRAM_usage(  # noqa: N802
        self, patch_size: Any, n_input_channels: int, n_output_channels: int, class_name: str, kwargs: Any, imports: Any
    ) -> float:
        """Share of the free memory that one crop takes, in the training that needs more; nnU-Net's number in 2D."""
        if len(patch_size) != 3:
            return float(
                ExperimentPlanner.static_estimate_VRAM_usage(
                    patch_size, n_input_channels, n_output_channels, class_name, kwargs, imports
                )
            )
        try:
            needs = estimate_needs(patch_size, kwargs["strides"], n_input_channels, n_output_channels)
        except ValueError as error:
            raise ValueError(
                f"{self.UNet_vram_target_GB:g} GB are too little: even two crops of {np.asarray(patch_size).tolist()} "
                "voxels would be too large, and the networks cannot take smaller ones. Use a larger -gpu_memory_target."
            ) from error
        return max(self._share(need) for need in needs.values())

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

        Raises:
            ValueError: a patch that the networks cannot take, or too little memory.
        """
        planned_shape = median_shape if len(spacing) == 2 else large_enough(spacing, median_shape)
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, planned_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        plan["median_image_size_in_voxels"] = median_shape
        if len(plan["patch_size"]) == 3:
            kwargs = plan["architecture"]["arch_kwargs"]
            channels = len(channel_names(self.dataset_json))
            share = self.static_estimate_VRAM_usage(
                plan["patch_size"], channels, len(self.dataset_json["labels"]), "", kwargs, ()
            )
            # nnU-Net rounds the batch size; a crop too many would not fit.
            plan["batch_size"] = max(MIN_BATCH_SIZE, min(plan["batch_size"], int(1 / share)))
            plan[SECTION] = TopoMAEConfig().to_plan()
        return plan


def large_enough(spacing: Any, median_shape: Any) -> Any:
    """The median shape, or a larger one of its proportions if the networks need three stages that it cannot give.

    Images smaller than the patch are padded in training.
    """
    shape = np.asarray(median_shape)
    while True:
        _, strides, _, patch_size, _ = get_pool_and_conv_props(spacing, shape, MIN_FEATURE_MAP_EDGE, MAX_POOLS)
        try:
            derive_network_shape(np.asarray(patch_size).tolist(), strides, TopoMAEConfig().architecture)
        except ValueError:
            shape = np.ceil(1.2 * shape).astype(int)
        else:
            return shape


def estimate_needs(patch_size: Any, strides: Any, channels: int, classes: int) -> dict[str, TrainingMemory]:
    """Memory of both trainings of a plan with the default architecture.

    Raises:
        ValueError: a patch that the networks cannot take.
    """
    architecture = TopoMAEConfig().architecture
    shape = derive_network_shape(as_size3(np.asarray(patch_size).tolist(), "patch size"), strides, architecture)
    return {
        "pre-training": estimate_pretraining(shape, architecture, channels),
        "fine-tuning": estimate_finetuning(shape, architecture, channels, classes),
    }
