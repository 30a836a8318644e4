"""Augmentation that moves a crop and its key points together.

Pre-training flips only. Rotation and scaling would need a larger crop than the patch, and on small images most of that
is padding; flips keep every voxel real and the key points exact.
"""

from collections.abc import Sequence

from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.geometry import FlipFrame, flip_key_points


def draw_flip_axes(allowed: Sequence[int], rng: Generator) -> tuple[int, ...]:
    """Choose each allowed spatial axis (0, 1, 2) with probability one half.

    Args:
        allowed: distinct axes that may be flipped.
        rng: draws one number per allowed axis.

    Returns:
        The chosen axes in the order of ``allowed``, perhaps none.
    """
    return tuple(axis for axis in allowed if rng.random() < 0.5)


def flip_crop(
    volume: Float[Tensor, "C D H W"],
    key_points: Float[ndarray, "9 3"],
    axes: Sequence[int],
    frame: FlipFrame = "volume",
) -> tuple[Float[Tensor, "C D H W"], Float[ndarray, "9 3"]]:
    """Flip a crop along spatial axes, and its key points with it.

    Args:
        volume: the crop.
        key_points: its key points.
        axes: distinct spatial axes out of 0, 1, 2.
        frame: whether the volume is flipped too, see geometry.flip_key_points.
    """
    if not axes:
        return volume, key_points
    return volume.flip([axis + 1 for axis in axes]), flip_key_points(key_points, axes, frame)
