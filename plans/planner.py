"""nnU-Net's planner plus the `topomae` section, with every value that a user may change."""

from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import SECTION, TopoMAEConfig
from nnunet_topomae.geometry import as_size3


class TopoMAEPlanner(ExperimentPlanner):
    """`nnUNetv2_plan_and_preprocess -d ID -pl TopoMAEPlanner` writes `TopoMAEPlans.json`.

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

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plan of one configuration; 3D ones get the `topomae` section.

        Raises:
            ValueError: a patch that the networks cannot take.
        """
        plan: dict[str, Any] = super().get_plans_for_configuration(spacing, *args, **kwargs)
        if len(plan["patch_size"]) == 3:
            config = TopoMAEConfig()
            patch_size = as_size3(np.asarray(plan["patch_size"]).tolist(), "patch size")
            derive_network_shape(patch_size, plan["architecture"]["arch_kwargs"]["strides"], config.architecture)
            plan[SECTION] = config.to_plan()
        return plan
