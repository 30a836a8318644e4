"""Small networks that differ in every size: three and four stages, token grids at different stages."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import CropMask, crop_mask, random_token_mask

PLANS = {
    "three stages": ((12, 32, 24), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
    "four stages": ((8, 32, 48), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2], [2, 2, 2]]),
}


@pytest.fixture
def architecture() -> ArchitectureConfig:
    return ArchitectureConfig(
        vit="tiny", dims=(8, 12, 16, 20), depth=2, heads=2, projections=(7, 6, 5, 4), feature_size=4
    )


@pytest.fixture(params=PLANS)
def shape(request: pytest.FixtureRequest, architecture: ArchitectureConfig) -> NetworkShape:
    return derive_network_shape(*PLANS[request.param], architecture)


@pytest.fixture
def four_stages(architecture: ArchitectureConfig) -> NetworkShape:
    return derive_network_shape(*PLANS["four stages"], architecture)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def crop(generator: torch.Generator) -> Callable[[NetworkShape, int, int], Tensor]:
    """A random crop: crop(shape, batch, channels)."""
    return lambda shape, batch, channels: torch.randn(batch, channels, *shape.patch_size, generator=generator)


@pytest.fixture
def mask(generator: torch.Generator) -> Callable[[NetworkShape, int], CropMask]:
    """A random mask: mask(shape, batch)."""
    return lambda shape, batch: crop_mask(random_token_mask(batch, shape.token_grid, 0.5, generator), shape.token_size)


@pytest.fixture(autouse=True)
def fixed_weights() -> None:
    torch.manual_seed(0)
