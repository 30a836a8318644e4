from typing import Any

import numpy as np
import pytest
import torch

from nnunet_topomae.data.transforms import Places, draw_flip_axes, turn_crop
from nnunet_topomae.geometry import CropLocation, Turn


def test_draw_flip_axes_uses_only_allowed_axes_and_all_of_them() -> None:
    rng = np.random.default_rng(0)
    drawn = {draw_flip_axes((0, 2), rng) for _ in range(200)}
    assert drawn == {(), (0,), (2,), (0, 2)}


@pytest.mark.parametrize("frame", ["volume", "crop"])
@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_flipped_coordinate_volume_shows_its_key_points_at_the_corners(axes: tuple[int, ...], frame: Any) -> None:
    shape = (9, 13, 17)
    location = CropLocation((1, 2, 3), (6, 10, 15), shape)
    # Coordinates of voxel centres in the voxel frame; a corner of the crop lies half a voxel outside its corner voxel.
    centres = np.stack(np.meshgrid(*[np.arange(s) + 0.5 for s in shape], indexing="ij"))
    crop = torch.from_numpy(centres[:, 1:6, 2:10, 3:15])
    turn = Turn().flipped(axes)
    flipped, points = turn_crop(crop.float(), turn), Places((5, 8, 12), flip_frame=frame).key_points(location, turn)
    mirror = [-1 if frame == "volume" and axis in axes else 1 for axis in range(3)]  # the flipped volume's coordinates
    for row in range(8):
        ends = [(row >> (2 - axis)) & 1 for axis in range(3)]
        corner = tuple(-1 if end else 0 for end in ends)
        inner = flipped[(slice(None), *corner)].numpy()
        neighbour = tuple(-2 if end else 1 for end in ends)
        step = inner - flipped[(slice(None), *neighbour)].numpy()  # one voxel outwards along every axis
        expected = 2 * (inner + step / 2) / np.array(shape) - 1
        np.testing.assert_allclose(points[row], mirror * expected, atol=1e-6)
    np.testing.assert_allclose(points[8], mirror * location.key_points()[8])


def test_flip_keeps_the_voxels_themselves() -> None:
    volume = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    flipped = turn_crop(volume, Turn(flips=(1,)))
    assert torch.equal(flipped, torch.from_numpy(volume.numpy()[:, :, ::-1].copy()))
