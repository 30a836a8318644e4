from dataclasses import replace

import pytest
import torch

from nnunet_topomae.architectures.build import build_unetr
from nnunet_topomae.architectures.rule import NetworkShape


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))])
def test_tokens_of_any_stage(four_stages: NetworkShape, architecture, crop, stage: int) -> None:  # type: ignore[no-untyped-def]
    shape = replace(four_stages, token_stage=stage)
    network = build_unetr(shape, 2, 3, architecture)
    with torch.no_grad():
        logits = network(crop(shape, 2, 2))
    assert logits.shape == (2, 3, *shape.patch_size)
    assert len(network.unetr_decoder.projections) == stage + 1


def test_every_parameter_learns(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetr(shape, 1, 3, replace(architecture, drop_path=0.0))
    network(crop(shape, 1, 1)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_taps_and_image_reach_the_output(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetr(shape, 1, 3, architecture).eval()
    data = crop(shape, 1, 1)
    with torch.no_grad():
        taps = network.vit_encoder.forward_taps(data, taps=len(network.unetr_decoder.projections))
        logits = network(data)
        assert torch.equal(logits, network.unetr_decoder(data, taps))
        assert not torch.allclose(logits, network.unetr_decoder(2 * data, taps))
        for number in range(len(taps)):
            changed = [torch.randn_like(tap) if other == number else tap for other, tap in enumerate(taps)]
            assert not torch.allclose(logits, network.unetr_decoder(data, changed))


def test_more_taps_than_layers(four_stages: NetworkShape, architecture) -> None:  # type: ignore[no-untyped-def]
    network = build_unetr(replace(four_stages, token_stage=3), 1, 3, architecture)
    network.vit_encoder.blocks = network.vit_encoder.blocks[:3]
    with pytest.raises(ValueError, match="4 taps of a ViT of 3 layers"):
        network(torch.zeros(1, 1, *four_stages.patch_size))
