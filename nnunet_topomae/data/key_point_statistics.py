"""What the spatial task can learn from a set of images: how far the key points of its crops vary, and why."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nnunet_topomae.data.loaders import CropLocationLoader, volume_shape
from nnunet_topomae.data.transforms import Places
from nnunet_topomae.files import write_json
from nnunet_topomae.geometry import Turn
from nnunet_topomae.types import Size3

KEY_POINTS_FILE = "key_points.json"
MAX_CASES = 100
CROPS = 4000
SEED = 0
LARGEST_LOCATION_VARIANCE = 1.0 / 3.0  # of a coordinate that is uniform in [-1, 1]: tiny crops, taken anywhere
SMALL_SHARE = 0.01


@dataclass(frozen=True)
class KeyPointStatistics:
    """Variances of key points in the normalised frame of the volume, each the mean over the 27 coordinates.

    Attributes:
        targets: variance of the targets as the training draws them, flips included. It is the error L_spa of a
            network that ignores the image and always answers the mean target.
        location: variance without flips and rotations: of the crops' places alone.
        share: ``location`` as a part of ``targets``, or of 1/3 where that is larger. 1/3 is the variance of a point
            anywhere in the image. With ``targets`` below it, 1 % means that crops can move by a tenth of the image.
        crops: number of crops drawn.
        cases: number of cases they were drawn from.
    """

    targets: float
    location: float
    share: float
    crops: int
    cases: int

    def lines(self) -> list[str]:
        """Lines for the log; the last one warns where the place of a crop carries hardly anything."""
        lines = [
            f"key points of {self.crops} random crops of {self.cases} cases: variance {self.targets:.4f}, which is the "
            f"error L_spa of always answering the mean; {self.location:.4f} without flips, from the crops' places alone"
        ]
        if self.share < SMALL_SHARE:
            lines.append(
                f"warning: the place of a crop carries only {100 * self.share:.2f} % of what it could. The patch is "
                "about as large as the images, so the spatial task has hardly anything to learn about position. "
                "Plan a smaller patch, or set pretraining.spatial to none."
            )
        return lines


def key_point_statistics(
    shapes: Sequence[Size3], places: Places, crops: int = CROPS, seed: int = SEED
) -> KeyPointStatistics:
    """Draw crops as the loader does, without reading images, and measure their key points.

    Args:
        shapes: shapes (D, H, W) of the volumes in voxels; each gets equally many crops.
        places: where crops are taken from, and how they are turned.
        crops: about how many crops to draw.
        seed: seed of the crops.

    Raises:
        ValueError: no volume.
    """
    if not shapes:
        raise ValueError("key-point statistics need at least one volume")
    rng = np.random.default_rng(seed)
    placed, targets = [], []
    for shape in shapes:
        for _ in range(max(1, crops // len(shapes))):
            source, turn = places.draw(shape, rng)
            placed.append(source.key_points())
            targets.append(placed[-1] if turn == Turn() else places.key_points(source, turn))
    of_targets, of_location = (_mean_variance(np.stack(points)) for points in (targets, placed))
    share = of_location / max(of_targets, LARGEST_LOCATION_VARIANCE)
    return KeyPointStatistics(of_targets, of_location, share, len(placed), len(shapes))


def loader_shapes(loader: CropLocationLoader) -> list[Size3]:
    """Shapes of the images of at most 100 of a loader's cases; no image is read."""
    cases = sorted(map(str, loader.indices))
    if len(cases) > MAX_CASES:
        cases = sorted(np.random.default_rng(SEED).choice(cases, MAX_CASES, replace=False).tolist())
    return [volume_shape(loader.image(case)) for case in cases]


def report_key_points(loader: CropLocationLoader, folder: Path, report: Callable[[str], None]) -> None:
    """Log the statistics of a training's crops and write them to ``key_points.json`` in the fold's folder.

    Args:
        loader: the training's; only the shapes of its images are needed.
        folder: where the training writes its results.
        report: called with every line for the log.
    """
    statistics = key_point_statistics(loader_shapes(loader), loader.places)
    for line in statistics.lines():
        report(line)
    path = folder / KEY_POINTS_FILE
    write_json(path, asdict(statistics))


def _mean_variance(points: Float[ndarray, "n 9 3"]) -> float:
    """Variance over the crops, mean over points and axes."""
    return float(points.astype(np.float64).var(axis=0).mean())
