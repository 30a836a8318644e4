"""The vectors of VectorPOSE: from the points of a crop to the centre of the volume's plane (Zhang et al. 2022).

A plane lies across the slice axis. Each of the crop's nine points (geometry.CropLocation.points) has a vector to the
centre of the volume's plane at the level of the crop's centre, in mm. Networks predict it in spherical coordinates:

- radius: length over half the diagonal of the volume's plane, at most 1;
- polar angle: from the polar axis, over pi, in [0, 1];
- azimuth: around the polar axis, from the first of the other two axes to the second one, over pi, in [-1, 1]. Its two
  ends are the same direction.

A vector of length 0 has both angles 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nnunet_topomae.geometry import CropLocation, Turn

# By so much the spacing between slices must exceed that of the others to tell which axis it is.
CLEARLY_COARSER = 1.5


class VectorFrame(NamedTuple):
    """How vectors are measured; axes are those of preprocessed arrays (D, H, W).

    Attributes:
        spacing: size of a voxel in mm.
        slice_axis: axis from slice to slice.
        polar_axis: axis of the array from which polar angles are measured.
        angles_by_radius: whether angles count in proportion to the radius; otherwise all the same.
    """

    spacing: tuple[float, float, float]
    slice_axis: int
    polar_axis: int
    angles_by_radius: bool = True

    def plane(self) -> tuple[int, int]:
        """The two axes that lie in a slice."""
        first, second = (axis for axis in range(3) if axis != self.slice_axis)
        return first, second

    def turned(self, turn: Turn) -> "VectorFrame":
        """The frame after the volume was turned; the polar axis stays with the array, the slices with the volume."""
        return self._replace(spacing=turn.of_axes(self.spacing), slice_axis=turn.axes.index(self.slice_axis))

    def radius(self, location: CropLocation) -> float:
        """Half the diagonal of the volume's plane in mm."""
        first, second = (location.volume_shape[axis] * self.spacing[axis] for axis in self.plane())
        return float(np.hypot(first, second)) / 2.0


def find_slice_axis(spacing: Sequence[float], transpose_forward: Sequence[int]) -> tuple[int, str]:
    """The axis from slice to slice of preprocessed arrays, and why.

    Args:
        spacing: size of a voxel in mm along the axes of preprocessed arrays.
        transpose_forward: nnU-Net's: axis i of preprocessed arrays is axis ``transpose_forward[i]`` of images as they
            are read, whose first axis is the third one of the file.

    Returns:
        The axis, and a phrase for the log.
    """
    coarsest = int(np.argmax(spacing))
    others = [value for axis, value in enumerate(spacing) if axis != coarsest]
    if spacing[coarsest] >= CLEARLY_COARSER * max(others):
        return coarsest, f"its spacing of {spacing[coarsest]:g} mm is clearly the largest"
    axis = list(transpose_forward).index(0)
    return axis, "no spacing is clearly the largest, so it is the third axis of the image files"


def centre_vectors(location: CropLocation, frame: VectorFrame) -> Float[ndarray, "9 3"]:
    """The vectors of a crop's nine points in mm, along the axes of its array.

    Args:
        location: place of the crop, as its array lies now.
        frame: as it lies now too.

    Returns:
        The corners' vectors, then that of the crop's centre.
    """
    points = location.points()
    target = np.array(location.volume_shape) / 2.0
    target[frame.slice_axis] = points[8, frame.slice_axis]
    return np.asarray((target - points) * np.array(frame.spacing))


def to_spherical(vectors: Float[ndarray, "n 3"], radius: float, polar_axis: int) -> Float[ndarray, "n 3"]:
    """Spherical coordinates of vectors, normalised as networks predict them.

    Args:
        vectors: in mm.
        radius: length in mm that becomes 1; longer vectors become 1 too.
        polar_axis: axis from which polar angles are measured.

    Returns:
        Radius (0 to 1), polar angle (0 to 1) and azimuth (-1 to 1) of every vector.

    Example:
        >>> to_spherical(np.array([[0.0, 0.0, 5.0], [0.0, -5.0, 0.0]]), 10.0, polar_axis=2).tolist()
        [[0.5, 0.0, 0.0], [0.5, 0.5, -0.5]]
    """
    first, second = (axis for axis in range(3) if axis != polar_axis)
    length = np.linalg.norm(vectors, axis=1)
    across = np.hypot(vectors[:, first], vectors[:, second])
    polar = np.arctan2(across, vectors[:, polar_axis]) / np.pi
    azimuth = np.arctan2(vectors[:, second], vectors[:, first]) / np.pi
    angles = np.where(length[:, None] > 0, np.stack([polar, azimuth], axis=1), 0.0)
    return np.concatenate([np.minimum(length / radius, 1.0)[:, None], angles], axis=1)


def from_spherical(coordinates: Float[ndarray, "n 3"], radius: float, polar_axis: int) -> Float[ndarray, "n 3"]:
    """Vectors in mm; the inverse of :func:`to_spherical` for vectors that are not longer than the radius.

    Args:
        coordinates: radius, polar angle and azimuth as networks predict them.
        radius: length in mm of a radius of 1.
        polar_axis: axis from which polar angles are measured.

    Returns:
        Along the axes of the array.

    Example:
        >>> from_spherical(np.array([[0.5, 0.0, 0.0], [0.5, 0.5, -0.5]]), 10.0, polar_axis=2).round(6).tolist()
        [[0.0, 0.0, 5.0], [0.0, -5.0, 0.0]]
    """
    first, second = (axis for axis in range(3) if axis != polar_axis)
    length, polar, azimuth = coordinates.astype(np.float64).T * np.array([[radius], [np.pi], [np.pi]])
    vectors = np.zeros(coordinates.shape)
    vectors[:, polar_axis] = length * np.cos(polar)
    vectors[:, first] = length * np.sin(polar) * np.cos(azimuth)
    vectors[:, second] = length * np.sin(polar) * np.sin(azimuth)
    return vectors


def vector_targets(location: CropLocation, frame: VectorFrame) -> Float[ndarray, "9 4"]:
    """What a network has to predict of a crop: radius, polar angle and azimuth, and how much the angles count.

    Angles of vectors shorter than a voxel do not count, unless all count the same.

    Args:
        location: place of the crop, as its array lies now.
        frame: as it lies now too.

    Returns:
        float32 array: three coordinates in the ranges of :func:`to_spherical`, and a weight in [0, 1].
    """
    vectors = centre_vectors(location, frame)
    coordinates = to_spherical(vectors, frame.radius(location), frame.polar_axis)
    weights = np.ones(len(vectors))
    if frame.angles_by_radius:
        weights = np.where(np.linalg.norm(vectors, axis=1) < min(frame.spacing), 0.0, coordinates[:, 0])
    return np.concatenate([coordinates, weights[:, None]], axis=1).astype(np.float32)
