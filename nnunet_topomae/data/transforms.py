"""Augmentation that moves a crop and its place in the volume together.

The volume is turned as a whole: flips mirror it about its own centre, rotations are by multiples of 90 degrees. A
scaled crop is a smaller or larger box of the volume, resampled to the patch. Neither adds padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isclose

import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.geometry import CropLocation, FlipFrame, Turn, as_size3, flip_key_points
from nnunet_topomae.types import Size3


@dataclass(frozen=True)
class Places:
    """Where crops are taken from, and how they are turned.

    Attributes:
        patch_size: shape of a crop in voxels.
        flip_axes: spatial axes that may be flipped.
        flip_frame: frame of key points after flips, see geometry.flip_key_points.
        scale: smallest and largest factor between the box that is read and the patch.
        planes: pairs of axes in whose planes crops are rotated.
    """

    patch_size: Size3
    flip_axes: tuple[int, ...] = ()
    flip_frame: FlipFrame = "volume"
    scale: tuple[float, float] = (1.0, 1.0)
    planes: tuple[tuple[int, int], ...] = ()

    def draw(self, volume_shape: Size3, rng: Generator) -> tuple[CropLocation, Turn]:
        """A random box in a volume as it is stored, and a random turn.

        Args:
            volume_shape: shape (D, H, W) of the volume.
            rng: source of randomness; nothing is drawn for what the policy leaves out.
        """
        if self.scale == (1.0, 1.0):
            location = CropLocation.random(volume_shape, self.patch_size, rng)
        else:
            box = scaled_box(self.patch_size, rng.uniform(*self.scale), volume_shape)
            location = replace(CropLocation.random(volume_shape, box, rng), resampled_to=self.patch_size)
        turn = Turn()
        for plane in self.planes:
            for _ in range(int(rng.integers(4))):
                turn = turn.quarter(plane)
        return location, turn.flipped(draw_flip_axes(self.flip_axes, rng))

    def key_points(self, source: CropLocation, turn: Turn) -> Float[ndarray, "9 3"]:
        """Key points of a turned crop in the policy's frame.

        Args:
            source: place of the crop before it was turned.
            turn: only flips, in the frame ``crop``.
        """
        if self.flip_frame == "crop":
            return flip_key_points(source.key_points(), turn.flips, "crop")
        return source.turned(turn).key_points()


def scaled_box(patch_size: Size3, factor: float, volume_shape: Size3) -> Size3:
    """The box that is read for a scaled crop: it grows beyond the patch only as far as the volume allows.

    Args:
        patch_size: shape of the crop.
        factor: of the edges.
        volume_shape: shape of the volume.

    Returns:
        Edges in voxels, at least 1. Over the patch they give the true factor of every axis.

    Example:
        >>> scaled_box((16, 64, 64), 1.5, (20, 80, 200))
        (20, 80, 96)
    """
    edges = [
        min(max(1, round(factor * patch)), max(size, patch))
        for patch, size in zip(patch_size, volume_shape, strict=True)
    ]
    return as_size3(edges, "scaled box")


def square_planes(patch_size: Size3, spacing: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Pairs of axes in whose planes a rotation by 90 degrees keeps both the patch and its spacing.

    Args:
        patch_size: shape of a crop in voxels.
        spacing: size of a voxel in mm.

    Example:
        >>> square_planes((16, 160, 160), (5.0, 1.5, 1.5))
        ((1, 2),)
    """
    return tuple(
        (first, second)
        for first, second in combinations(range(3), 2)
        if patch_size[first] == patch_size[second] and isclose(spacing[first], spacing[second], rel_tol=0.01)
    )


def draw_flip_axes(allowed: Sequence[int], rng: Generator) -> tuple[int, ...]:
    """Choose each allowed spatial axis (0, 1, 2) with probability one half.

    Args:
        allowed: distinct axes that may be flipped.
        rng: draws one number per allowed axis.

    Returns:
        The chosen axes in the order of ``allowed``, perhaps none.
    """
    return tuple(axis for axis in allowed if rng.random() < 0.5)


def turn_crop(volume: Float[Tensor, "C D H W"], turn: Turn) -> Float[Tensor, "C _ _ _"]:
    """Turn a crop.

    Args:
        volume: the crop.
        turn: axes that change places, and flips.
    """
    return volume.permute(0, *(axis + 1 for axis in turn.axes)).flip([axis + 1 for axis in turn.flips])


def resample_crop(volume: Float[Tensor, "C _ _ _"], shape: Size3) -> Float[Tensor, "C D H W"]:
    """Resample a box to the shape of a crop, linearly between the centres of its voxels.

    Args:
        volume: the box.
        shape: of the result; nothing changes if it is that of the box.
    """
    if tuple(volume.shape[1:]) == shape:
        return volume
    return F.interpolate(volume[None], size=shape, mode="trilinear", align_corners=False)[0]
