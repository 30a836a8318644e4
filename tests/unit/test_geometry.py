from itertools import combinations

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from nnunet_topomae.geometry import CropLocation, as_size3, flip_key_points

VOLUME = (11, 17, 23)
CROP = CropLocation(lower=(2, 5, 7), upper=(9, 11, 20), volume_shape=VOLUME)
ALL_AXES = [axes for count in range(4) for axes in combinations(range(3), count)]


def faces(location: CropLocation) -> tuple[np.ndarray, np.ndarray]:
    """Normalised positions of the lower and the upper face of every voxel of a crop, each (D, H, W, 3)."""
    edges = [np.linspace(-1, 1, size + 1) for size in location.volume_shape]
    cut = tuple(slice(lo, up) for lo, up in zip(location.lower, location.upper, strict=True))
    lower = np.stack(np.meshgrid(*(edge[:-1] for edge in edges), indexing="ij"), axis=-1)[cut]
    upper = np.stack(np.meshgrid(*(edge[1:] for edge in edges), indexing="ij"), axis=-1)[cut]
    return lower, upper


def read_corners(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """What the eight corner voxels say about their outer corner, and their mean."""
    points = []
    for row in range(8):
        ends = [row >> 2 & 1, row >> 1 & 1, row & 1]
        voxel = tuple(-end for end in ends)
        points.append([np.stack([lower[voxel], upper[voxel]])[end, axis] for axis, end in enumerate(ends)])
    return np.array([*points, np.mean(points, axis=0)], dtype=np.float32)


def test_key_points_are_what_a_coordinate_volume_shows() -> None:
    np.testing.assert_allclose(CROP.key_points(), read_corners(*faces(CROP)), atol=1e-6)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_in_the_crops_frame_flips_keep_the_coordinates_of_the_volume(axes: tuple[int, ...]) -> None:
    lower, upper = faces(CROP)
    # A flip along an axis turns each voxel over: its lower face comes to lie above its upper one.
    for axis in axes:
        lower[..., axis], upper[..., axis] = upper[..., axis].copy(), lower[..., axis].copy()
    flipped = read_corners(np.flip(lower, axes), np.flip(upper, axes))
    np.testing.assert_allclose(flip_key_points(CROP.key_points(), axes, "crop"), flipped, atol=1e-6)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_in_the_volumes_frame_flips_give_the_place_in_the_flipped_volume(axes: tuple[int, ...]) -> None:
    numbers = np.arange(np.prod(VOLUME)).reshape(VOLUME)
    crop = numbers[tuple(slice(lo, up) for lo, up in zip(CROP.lower, CROP.upper, strict=True))]
    found = np.argwhere(np.isin(np.flip(numbers, axes), crop))  # where the crop's voxels lie after the flip
    place = CropLocation(tuple(found.min(axis=0).tolist()), tuple((found.max(axis=0) + 1).tolist()), VOLUME)
    np.testing.assert_array_equal(np.flip(numbers, axes)[tuple(found[0])], np.flip(crop, axes)[0, 0, 0])
    np.testing.assert_allclose(flip_key_points(CROP.key_points(), axes), read_corners(*faces(place)), atol=1e-6)
    assert CROP.flipped(axes) == place


@pytest.mark.parametrize("seed", range(20))
def test_flipping_the_place_is_flipping_the_crop_padding_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 12, 3).tolist())
    lower = [int(rng.integers(-3, size)) for size in shape]
    location = CropLocation(tuple(lower), tuple(lo + int(rng.integers(4, 10)) for lo in lower), shape)
    volume = rng.random((2, *shape))  # never 0: padding is told by its value
    axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
    there = location.flipped(axes)

    def cut(array: np.ndarray, place: CropLocation) -> np.ndarray:
        return crop_and_pad_nd(array, [list(bounds) for bounds in zip(place.lower, place.upper, strict=True)], 0)

    crop = cut(volume, location)
    flipped = np.flip(crop, [axis + 1 for axis in axes])
    np.testing.assert_array_equal(cut(np.flip(volume, [axis + 1 for axis in axes]), there), flipped)
    np.testing.assert_array_equal(there.inside(), flipped[0] != 0)
    assert there.is_padded == (crop == 0).any()
    np.testing.assert_allclose(flip_key_points(location.key_points(), axes), there.key_points(), atol=1e-6)


def test_a_crop_outside_its_volume_has_nothing_inside() -> None:
    for lower, upper in (((-5, 0, 0), (-1, 4, 4)), ((0, 17, 0), (4, 20, 4))):
        location = CropLocation(lower, upper, VOLUME)
        assert location.is_padded and not location.inside().any()


def test_rows_and_columns() -> None:
    points = CROP.key_points()
    assert points.shape == (9, 3)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[0], [2 * 2 / 11 - 1, 2 * 5 / 17 - 1, 2 * 7 / 23 - 1], rtol=1e-6)
    np.testing.assert_allclose(points[4], [2 * 9 / 11 - 1, 2 * 5 / 17 - 1, 2 * 7 / 23 - 1], rtol=1e-6)
    np.testing.assert_allclose(points[8], points[:8].mean(axis=0), atol=1e-6)


def test_whole_volume_spans_the_cube() -> None:
    points = CropLocation((0, 0, 0), VOLUME, VOLUME).key_points()
    assert sorted(map(tuple, points[:8])) == [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    assert not points[8].any()


def test_points_outside_move_to_the_nearest_surface() -> None:
    points = CropLocation((-4, 3, 20), (7, 30, 29), VOLUME).key_points()
    outside = np.array([[-4, 3, 20], [7, 30, 29]])
    for row in range(8):
        ends = [row >> 2 & 1, row >> 1 & 1, row & 1]
        point = [2 * outside[end, axis] / VOLUME[axis] - 1 for axis, end in enumerate(ends)]
        surface = np.linspace(-1, 1, 20001)
        nearest = [surface[np.abs(surface - value).argmin()] for value in point]
        np.testing.assert_allclose(points[row], nearest, atol=1e-4)


@pytest.mark.parametrize("frame", ["volume", "crop"])
@pytest.mark.parametrize("axes", ALL_AXES)
def test_flips_undo_themselves_and_combine(axes: tuple[int, ...], frame: str) -> None:
    points = CROP.key_points()
    np.testing.assert_array_equal(flip_key_points(flip_key_points(points, axes, frame), axes, frame), points)
    one_by_one = points
    for axis in reversed(axes):
        one_by_one = flip_key_points(one_by_one, (axis,), frame)
    np.testing.assert_array_equal(one_by_one, flip_key_points(points, axes, frame))
    np.testing.assert_array_equal(points, CROP.key_points())  # the argument is left as it was


def test_random_crops_are_uniform_inside_and_centred_where_the_volume_is_too_small() -> None:
    rng = np.random.default_rng(0)
    crops = [CropLocation.random((8, 5, 6), (5, 5, 9), rng) for _ in range(400)]
    lowers = [crop.lower for crop in crops]
    counts = np.bincount([lower[0] for lower in lowers], minlength=4)
    assert len(counts) == 4 and counts.min() > 60
    assert {lower[1] for lower in lowers} == {0}
    assert {lower[2] for lower in lowers} == {-2}  # three voxels too few: two in front, one behind, as nnU-Net pads
    assert all(
        crop.bounds == [(lo, lo + edge) for lo, edge in zip(crop.lower, (5, 5, 9), strict=True)] for crop in crops
    )
    assert {crop.volume_shape for crop in crops} == {(8, 5, 6)}


def test_centred_crop_has_as_much_on_both_sides() -> None:
    location = CropLocation.centred((10, 8, 5), (4, 5, 8))
    assert location == CropLocation((3, 1, -2), (7, 6, 6), (10, 8, 5))


def test_as_size3_makes_ints() -> None:
    size = as_size3(torch.Size((7, 8, 9)), "size")
    assert size == (7, 8, 9)
    assert type(size) is tuple


@pytest.mark.parametrize(
    ("lower", "upper", "volume", "message"),
    [
        ((2, 5, 7), (9, 5, 20), VOLUME, "empty crop"),
        ((2, 5, 7), (9, 11, 6), VOLUME, "empty crop"),
        ((2, 5, 7), (9, 11, 20), (11, 0, 23), "must be positive"),
    ],
)
def test_impossible_crops(lower, upper, volume, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        CropLocation(lower, upper, volume)


def test_as_size3_needs_three_entries() -> None:
    with pytest.raises(ValueError, match=r"patch_size must have three entries \(D, H, W\), got \(96, 96\)"):
        as_size3((96, 96), "patch_size")


@pytest.mark.parametrize("axes", [(3,), (-1,), (1, 1)])
def test_flip_of_an_unknown_or_repeated_axis(axes: tuple[int, ...]) -> None:
    for flip in (lambda: flip_key_points(CROP.key_points(), axes), lambda: CROP.flipped(axes)):
        with pytest.raises(ValueError, match=f"got {', '.join(map(str, axes))}"):
            flip()
