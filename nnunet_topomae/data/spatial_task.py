"""What the crops and the spatial task of a training are like, said before the first step."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nnunet_topomae.data.key_point_statistics import loader_shapes, report_key_points
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.transforms import Places, scaled_box
from nnunet_topomae.data.vector_statistics import report_vectors
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.types import Size3

CROPS = 2000
SEED = 0
# A volume that no box leaves.
_ENDLESS = (10**9, 10**9, 10**9)


def report_spatial_task(loader: CropLocationLoader, plan: Plan, folder: Path, report: Callable[[str], None]) -> None:
    """Log and write the statistics of what the plan's spatial task predicts, and of scaled crops.

    Args:
        loader: the training's; only the shapes of its images are needed.
        plan: its task and scale.
        folder: where the training writes its results.
        report: called with every line for the log.
    """
    if plan.config.pretraining.key_points:
        report_key_points(loader, folder, report)
    if plan.config.pretraining.vectors:
        report_vectors(loader_shapes(loader), loader.places, plan, folder, report)
    if plan.config.pretraining.scale != (1.0, 1.0):
        share = share_made_smaller(loader_shapes(loader), loader.places)
        report(f"{100 * share:.1f} % of scaled crops would be larger than their image: made smaller")


def share_made_smaller(shapes: Sequence[Size3], places: Places) -> float:
    """Share of scaled crops whose box would be larger than the image; no image is read.

    Args:
        shapes: shapes (D, H, W) of the volumes, at least one; each gets equally many crops.
        places: how crops are scaled.
    """
    rng = np.random.default_rng(SEED)
    patch, shrunk = places.patch_size, 0
    for number in range(CROPS):
        factor = rng.uniform(*places.scale)
        shrunk += scaled_box(patch, factor, shapes[number % len(shapes)]) != scaled_box(patch, factor, _ENDLESS)
    return shrunk / CROPS
