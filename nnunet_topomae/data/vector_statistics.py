"""What the vectors of a training's crops are like, before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnunet_topomae.data.transforms import Places
from nnunet_topomae.files import write_json
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.types import Size3
from nnunet_topomae.vectors import VectorFrame, centre_vectors

VECTORS_FILE = "vectors.json"
CROPS = 2000
SEED = 0
LARGE_SHARE = 0.05


@dataclass(frozen=True)
class VectorStatistics:
    """What the vectors of random crops are like.

    Attributes:
        clipped: share of vectors that are longer than half the diagonal of their volume's plane; their length is lost.
        longest_mm: length of the longest vector.
    """

    clipped: float
    longest_mm: float

    def lines(self) -> list[str]:
        """Lines for the log."""
        clipped = f"{100 * self.clipped:.1f} % of vectors are longer than the radius, and their length is clipped"
        lines = [f"the longest vector has {self.longest_mm:.0f} mm; {clipped}"]
        if self.clipped > LARGE_SHARE:
            lines.append(
                "warning: for tall images or large crops the length of vectors says little. Plan a smaller patch, or "
                "lower the largest scale."
            )
        return lines


def vector_statistics(shapes: Sequence[Size3], places: Places, frame: VectorFrame) -> VectorStatistics:
    """Draw crops as the loader does, without reading images, and measure their vectors.

    Args:
        shapes: shapes (D, H, W) of the volumes.
        places: where crops are taken from, and how they are turned.
        frame: how vectors are measured.

    Raises:
        ValueError: no volume.
    """
    if not shapes:
        raise ValueError("statistics of vectors need at least one volume")
    rng = np.random.default_rng(SEED)
    relative, longest = [], 0.0
    for number in range(CROPS):
        shape = shapes[number % len(shapes)]
        source, turn = places.draw(shape, rng)
        location, turned = source.turned(turn), frame.turned(turn)
        lengths = np.linalg.norm(centre_vectors(location, turned), axis=1)
        longest = max(longest, float(lengths.max()))
        relative.append(lengths / turned.radius(location))
    return VectorStatistics(float(np.mean(np.array(relative) > 1.0)), longest)


def report_vectors(
    shapes: Sequence[Size3], places: Places, plan: Plan, folder: Path, report: Callable[[str], None]
) -> None:
    """Log which axes vectors refer to and what they are like; write it to ``vectors.json`` in the fold's folder.

    Args:
        shapes: shapes of the training's images.
        places: of the training's loader.
        plan: how vectors are measured.
        folder: where the training writes its results.
        report: called with every line for the log.
    """
    frame, (axis, reason) = plan.vector_frame(), plan.slice_axis()
    planes = ", ".join("DHW"[first] + "DHW"[second] for first, second in places.planes) or "none"
    report(
        f"vectors: the axis from slice to slice is {'DHW'[axis]}, as {reason}; polar axis {'DHW'[frame.polar_axis]}; "
        f"planes of rotation: {planes}"
    )
    statistics = vector_statistics(shapes, places, frame)
    for line in statistics.lines():
        report(line)
    axes = {"slice_axis": "DHW"[axis], "reason": reason, "polar_axis": "DHW"[frame.polar_axis]}
    write_json(folder / VECTORS_FILE, {**axes, "planes": places.planes, **asdict(statistics)})
