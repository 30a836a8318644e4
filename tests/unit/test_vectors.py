import numpy as np
import pytest

from nnunet_topomae.geometry import CropLocation, Turn
from nnunet_topomae.vectors import (
    VectorFrame,
    centre_vectors,
    find_slice_axis,
    from_spherical,
    to_spherical,
    vector_targets,
)

LOCATION = CropLocation((2, 3, 5), (6, 13, 9), (10, 40, 30))
FRAME = VectorFrame((4.0, 1.0, 2.0), slice_axis=0, polar_axis=2)


def test_vectors_end_in_the_centre_of_the_plane_at_the_crops_level_in_mm() -> None:
    vectors = centre_vectors(LOCATION, FRAME)
    # The centre of the crop is at (4, 8, 7), that of the plane at (4, 20, 15).
    np.testing.assert_allclose(vectors[8], [0.0, 12.0, 16.0])
    np.testing.assert_allclose(vectors[0], [8.0, 17.0, 20.0])
    np.testing.assert_allclose(vectors[7], [-8.0, 7.0, 12.0])
    assert FRAME.radius(LOCATION) == pytest.approx(np.hypot(40.0, 60.0) / 2)


@pytest.mark.parametrize("polar_axis", [0, 1, 2])
def test_spherical_coordinates_there_and_back(polar_axis: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 3))
    coordinates = to_spherical(vectors, 10.0, polar_axis)
    np.testing.assert_allclose(from_spherical(coordinates, 10.0, polar_axis), vectors, atol=1e-12)
    assert coordinates.min(axis=0).min() >= -1 and (coordinates[:, :2] >= 0).all() and (coordinates <= 1).all()
    np.testing.assert_allclose(
        np.cos(np.pi * coordinates[:, 1]), vectors[:, polar_axis] / np.linalg.norm(vectors, axis=1)
    )


def test_the_seam_a_vector_of_length_0_and_a_long_one() -> None:
    above, below, none, long = to_spherical(
        np.array([[-1.0, 1e-9, 0.0], [-1.0, -1e-9, 0.0], [0.0, 0.0, 0.0], [30.0, 0.0, 0.0]]), 10.0, polar_axis=2
    )
    assert above[2] == pytest.approx(1.0) and below[2] == pytest.approx(-1.0)  # one direction, see losses.spatial
    np.testing.assert_array_equal(none, [0.0, 0.0, 0.0])
    np.testing.assert_allclose(long, [1.0, 0.5, 0.0])


def test_angles_count_by_length_and_not_below_a_voxel() -> None:
    central = CropLocation((3, 15, 13), (7, 25, 17), (10, 40, 30))
    targets = vector_targets(central, FRAME)
    assert targets.shape == (9, 4) and targets.dtype == np.float32
    np.testing.assert_array_equal(targets[8], [0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(targets[:8, 3], targets[:8, 0])
    equal = vector_targets(central, FRAME._replace(angles_by_radius=False))
    np.testing.assert_array_equal(equal[:, 3], np.ones(9))
    np.testing.assert_array_equal(equal[:, :3], targets[:, :3])


@pytest.mark.parametrize(
    ("spacing", "transpose_forward", "axis", "reason"),
    [
        ((5.0, 1.5, 1.5), (0, 1, 2), 0, "clearly the largest"),
        ((1.5, 1.5, 5.0), (0, 1, 2), 2, "clearly the largest"),
        ((1.0, 1.0, 1.0), (0, 1, 2), 0, "third axis of the image files"),
        ((1.0, 1.0, 1.0), (2, 0, 1), 1, "third axis of the image files"),
        ((2.0, 1.5, 1.5), (1, 0, 2), 1, "third axis of the image files"),  # 2.0 is not clearly larger
    ],
)
def test_the_slice_axis_is_found_or_defined(
    spacing: tuple[float, ...], transpose_forward: tuple[int, ...], axis: int, reason: str
) -> None:
    found, words = find_slice_axis(spacing, transpose_forward)
    assert found == axis and reason in words


@pytest.mark.parametrize("plane", [(0, 1), (1, 2), (0, 2), (2, 1)])
def test_a_turn_is_numpys_rotation(plane: tuple[int, int]) -> None:
    volume = np.arange(24.0).reshape(2, 3, 4)
    turn, rotated = Turn(), volume
    for _ in range(4):
        turn, rotated = turn.quarter(plane), np.rot90(rotated, 1, plane)
        np.testing.assert_array_equal(np.flip(volume.transpose(turn.axes), turn.flips), rotated)
    assert turn == Turn()
    flipped = Turn().quarter(plane).flipped((1,))
    np.testing.assert_array_equal(
        np.flip(volume.transpose(flipped.axes), flipped.flips), np.flip(np.rot90(volume, 1, plane), 1)
    )
    assert flipped.flipped((1,)) == Turn().quarter(plane)


def test_a_turned_place_cuts_the_turned_crop_out_of_the_turned_volume() -> None:
    volume, turn = np.arange(1000).reshape(10, 10, 10), Turn().quarter((0, 2)).quarter((1, 2)).flipped((1,))
    location = CropLocation((2, 3, 1), (5, 8, 5), (10, 10, 10))

    def turned(array: np.ndarray) -> np.ndarray:
        return np.flip(array.transpose(turn.axes), turn.flips)

    cut, place = volume[2:5, 3:8, 1:5], location.turned(turn)
    slices = tuple(slice(low, up) for low, up in place.bounds)
    np.testing.assert_array_equal(turned(volume)[slices], turned(cut))
    assert location.turned(Turn()) is location


def test_padding_of_a_resampled_crop() -> None:
    # Twelve voxels from -4 to 8 in an array of six: its voxels are two wide, the first two lie outside.
    location = CropLocation((-4, 0, 0), (8, 4, 4), (6, 4, 4), resampled_to=(6, 4, 4))
    np.testing.assert_array_equal(location.inside()[:, 0, 0], [False, False, True, True, True, False])
    assert location.array_shape == (6, 4, 4) and location.flipped((0,)).inner_slices()[0] == slice(1, 4)
