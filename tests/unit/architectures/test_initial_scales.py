"""What the networks put out before the first step: neither silent nor saturated."""

from dataclasses import replace

import pytest
import torch

from nnunet_topomae.architectures.build import (
    build_copretraining_network,
    build_fusion_network,
    build_unetr,
    build_unetrpp,
)
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import crop_mask, random_token_mask

PATCH = (16, 24, 32)
ARCHITECTURES = {
    "tiny": ArchitectureConfig(vit="tiny", dims=(16, 32, 64, 128), depth=1),
    "default": ArchitectureConfig(vit="tiny"),
}


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> ArchitectureConfig:
    return ARCHITECTURES[request.param]


def _crop(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, *PATCH, generator=torch.Generator().manual_seed(0))


def _shape(architecture: ArchitectureConfig):
    return derive_network_shape(PATCH, [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)], architecture)


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_unetrpp, build_fusion_network])
def test_logits_of_all_heads_start_at_full_scale(build, architecture) -> None:
    """nnU-Net's start near 1. Heads with weights of 0.02 once started at 0.1, and lost six points of Dice or more."""
    torch.manual_seed(0)
    network = build(_shape(architecture), 3, 4, architecture, deep_supervision=True).eval()
    with torch.no_grad():
        spreads = [float(logits.std()) for logits in network(_crop())]
    assert len(spreads) == 3
    assert all(0.5 < spread < 6.0 for spread in spreads), spreads


def test_logits_of_unetr_start_at_full_scale(architecture) -> None:
    torch.manual_seed(0)
    network = build_unetr(_shape(architecture), 3, 4, architecture).eval()
    with torch.no_grad():
        assert 0.5 < float(network(_crop()).std()) < 6.0


@pytest.mark.parametrize(
    "vit, channels",
    [("tiny", 1), ("tiny", 3), *(pytest.param(vit, 1, marks=pytest.mark.slow) for vit in ("default", "base"))],
)
def test_reconstructions_start_near_the_mean_and_key_points_far_from_saturation(vit, channels) -> None:
    """Predicting the mean intensity gives an error of 1 on z-scored images. The ViT's once started at 3."""
    torch.manual_seed(0)
    architecture = replace(ARCHITECTURES["tiny"], vit=vit)
    shape, crop = _shape(architecture), _crop(channels)
    network = build_copretraining_network(shape, channels, architecture).eval()
    mask = crop_mask(random_token_mask(2, shape.token_grid, 0.5, torch.Generator().manual_seed(1)), shape.token_size)
    with torch.no_grad():
        output = network(crop, mask)
    for branch in output.present().values():
        assert 0.05 < float(branch.reconstruction.std()) < 0.6
        assert float(((branch.reconstruction - crop).square() * mask.hidden).sum() / mask.hidden.sum() / channels) < 1.3
        assert 0.01 < float(branch.key_points.std()) < 0.5
        assert float(branch.key_points.abs().max()) < 0.9
