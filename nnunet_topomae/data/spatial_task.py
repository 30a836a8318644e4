"""What the spatial task of a training is and what it can learn, said before the first step."""

from collections.abc import Callable
from pathlib import Path

from nnunet_topomae.data.key_point_statistics import loader_shapes, report_key_points
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.vector_statistics import report_vectors
from nnunet_topomae.nnunet.plan import Plan


def report_spatial_task(loader: CropLocationLoader, plan: Plan, folder: Path, report: Callable[[str], None]) -> None:
    """Log and write the statistics of what the plan's spatial task predicts.

    Args:
        loader: the training's; only the shapes of its images are needed.
        plan: its task.
        folder: where the training writes its results.
        report: called with every line for the log.
    """
    if plan.config.pretraining.key_points:
        report_key_points(loader, folder, report)
    if plan.config.pretraining.vectors:
        report_vectors(loader_shapes(loader), loader.places, plan, folder, report)
