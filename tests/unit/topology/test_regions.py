import pytest
import torch
from torch.nn.functional import avg_pool3d

from nnunet_topomae.topology import TopologyRegion, draw_region_origin

SHAPE = (7, 12, 9)


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.arange(2 * 3 * 7 * 12 * 9, dtype=torch.float64).reshape(2, 3, *SHAPE)


def test_full_is_everything(volume: torch.Tensor) -> None:
    region = TopologyRegion("full", 8)
    assert region.shape(SHAPE) == SHAPE
    assert torch.equal(region.extract(volume), volume)


def test_crop_takes_short_axes_whole(volume: torch.Tensor) -> None:
    region = TopologyRegion("crop", 8)
    assert region.shape(SHAPE) == (7, 8, 8)
    assert region.centred_origin(SHAPE) == (0, 2, 0)
    assert torch.equal(region.extract(volume), volume[:, :, :, 2:10, 0:8])
    assert torch.equal(region.extract(volume, (0, 4, 1)), volume[:, :, :, 4:12, 1:9])


def test_pool_averages_to_fit(volume: torch.Tensor) -> None:
    region = TopologyRegion("pool", 6)
    pooled = region.extract(volume)
    assert tuple(pooled.shape[2:]) == region.shape(SHAPE) == (4, 6, 5)
    assert pooled[1, 2, 1, 3, 2] == volume[1, 2, 2:4, 6:8, 4:6].mean()
    assert pooled[0, 1, 3, 0, 4] == volume[0, 1, 6, 0:2, 8].mean()  # windows at the end are cut, not padded
    assert torch.equal(TopologyRegion("pool", 12).extract(volume), avg_pool3d(volume, 1))


def test_origins_are_uniform_and_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_region_origin(SHAPE, 8, generator) for _ in range(300)]
    assert {o[0] for o in drawn} == {0}
    assert {o[1] for o in drawn} == set(range(5))
    assert {o[2] for o in drawn} == {0, 1}
    again = torch.Generator().manual_seed(0)
    assert [draw_region_origin(SHAPE, 8, again) for _ in range(300)] == drawn


@pytest.mark.parametrize("origin", [(0, 5, 0), (0, -1, 0), (1, 0, 0)])
def test_origins_outside_are_refused(volume: torch.Tensor, origin: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="leaves the volume"):
        TopologyRegion("crop", 8).extract(volume, origin)


def test_only_crops_have_an_origin(volume: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="takes no origin"):
        TopologyRegion("full").extract(volume, (0, 0, 0))


@pytest.mark.parametrize("size", [1, 0, -4])
def test_tiny_regions_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 2 voxels"):
        TopologyRegion("crop", size)
