"""Corruptions of crops, from which a network rebuilds the clean crop (Zhou et al. 2021, Models Genesis; VectorPOSE).

All work on one crop (C, D, H, W), take an explicit generator, and also work for crops of a few voxels. Channels are
shuffled and painted in the same places, and each has its own intensity curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

# Edges of shuffled blocks, at most, and of painted and kept ones, as parts of the crop's edges.
SHUFFLED_EDGE = 0.1
PAINTED_EDGES = (1 / 6, 1 / 3)
KEPT_EDGES = (1 / 2, 4 / 5)
PAINTED_BLOCKS = 10
SHUFFLED_BLOCKS = 5000
CURVE_POINTS = 1000

Crop = Float[ndarray, "C D H W"]


@dataclass(frozen=True)
class Corruption:
    """Chooses corruptions of a crop at random.

    Attributes:
        shuffle: probability of :func:`shuffle_locally`.
        bezier: probability of :func:`change_intensities`.
        paint: probability of painting, half of it :func:`paint_inside`, half :func:`paint_outside`.
    """

    shuffle: float
    bezier: float
    paint: float

    def __call__(self, crop: Crop, rng: Generator) -> Crop:
        """A corrupted copy.

        Args:
            crop: intensities, of which [0, 1] is the usual range.
            rng: source of randomness.
        """
        shuffled, changed, painted, outside = rng.random(4) < (self.shuffle, self.bezier, self.paint, 0.5)
        if shuffled:
            crop = shuffle_locally(crop, rng)
        if changed:
            crop = change_intensities(crop, rng)
        if painted:
            crop = paint_outside(crop, rng) if outside else paint_inside(crop, rng)
        return crop.copy()


def shuffle_locally(crop: Crop, rng: Generator) -> Crop:
    """Shuffle the voxels within many small blocks; every block keeps its values.

    Args:
        crop: intensities.
        rng: source of randomness.
    """
    shuffled = crop.copy()
    for place in _blocks(crop.shape[1:], (0.0, SHUFFLED_EDGE), SHUFFLED_BLOCKS, rng):
        values = shuffled[place]
        if values[0].size > 1:
            order = rng.permutation(values[0].size)
            shuffled[place] = values.reshape(len(values), -1)[:, order].reshape(values.shape)
    return shuffled


def change_intensities(crop: Crop, rng: Generator) -> Crop:
    """Map the intensities of every channel by a random monotone Bezier curve from 0 to 1, rising or falling.

    Args:
        crop: intensities; values outside [0, 1] are clipped.
        rng: source of randomness.
    """
    return np.stack([_curve(channel, rng) for channel in crop])


def _curve(channel: Float[ndarray, "D H W"], rng: Generator) -> Float[ndarray, "D H W"]:
    """A cubic Bezier curve through (0, 0) and (1, 1), with two random points between, or the same upside down."""
    points = np.array([[0.0, 0.0], *rng.random((2, 2)), [1.0, 1.0]])
    t = np.linspace(0.0, 1.0, CURVE_POINTS)[:, None]
    curve = (1 - t) ** 3 * points[0] + 3 * (1 - t) ** 2 * t * points[1] + 3 * (1 - t) * t**2 * points[2] + t**3
    heights = np.sort(curve[:, 1])
    if rng.random() < 0.5:
        heights = heights[::-1]
    return np.asarray(np.interp(np.clip(channel, 0.0, 1.0), np.sort(curve[:, 0]), heights), channel.dtype)


def paint_inside(crop: Crop, rng: Generator) -> Crop:
    """Replace up to ten blocks by noise, as if something had to be filled in.

    Args:
        crop: intensities.
        rng: source of randomness.
    """
    painted = crop.copy()
    for place in _blocks(crop.shape[1:], PAINTED_EDGES, int(rng.integers(1, PAINTED_BLOCKS + 1)), rng):
        painted[place] = rng.random(painted[place].shape)
    return painted


def paint_outside(crop: Crop, rng: Generator) -> Crop:
    """Replace everything but up to ten blocks by noise.

    Args:
        crop: intensities.
        rng: source of randomness.
    """
    painted = rng.random(crop.shape).astype(crop.dtype)
    for place in _blocks(crop.shape[1:], KEPT_EDGES, int(rng.integers(1, PAINTED_BLOCKS + 1)), rng):
        painted[place] = crop[place]
    return painted


def _blocks(shape: Sequence[int], edges: tuple[float, float], count: int, rng: Generator) -> list[tuple[slice, ...]]:
    """Places of random blocks in a crop with all its channels.

    The edges of a block are parts of the crop's between two shares, at least one voxel.
    """
    size = np.array(shape)
    drawn = np.clip(np.rint(size * rng.uniform(*edges, size=(count, 3))), 1, size).astype(int)
    lowest = rng.integers(0, size - drawn + 1)
    return [
        (slice(None), *(slice(int(low), int(low + edge)) for low, edge in zip(*block, strict=True)))
        for block in zip(lowest, drawn, strict=True)
    ]
