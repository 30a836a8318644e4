from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_fusion_network, build_unetrpp
from nnunet_topomae.architectures.fusion import TokenFusion
from nnunet_topomae.architectures.rule import NetworkShape


@pytest.mark.slow
def test_starts_exactly_at_unetrpp(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    fusion = build_fusion_network(shape, 2, 3, architecture, deep_supervision=True).eval()
    unetrpp = build_unetrpp(shape, 2, 3, architecture, deep_supervision=True).eval()
    unetrpp.load_state_dict({k: v for k, v in fusion.state_dict().items() if k.startswith(("encoder.", "decoder."))})
    data = crop(shape, 2, 2)
    with torch.no_grad():
        for fused, plain in zip(fusion(data), unetrpp(data), strict=True):
            assert torch.equal(fused, plain)


def test_adds_projected_taps_to_every_stage(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_fusion_network(shape, 1, 3, architecture, deep_supervision=False).eval()
    for parameter in network.fusion.parameters():
        nn.init.normal_(parameter, std=0.1)
    decoded: list[list[torch.Tensor]] = []
    network.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    data = crop(shape, 1, 1)
    with torch.no_grad():
        network(data)
        full_resolution, *stages = network.encoder(data)
        taps = network.vit_encoder.forward_taps(data, taps=len(stages))
    assert torch.equal(decoded[0][0], full_resolution)
    for fused, stage, tap, projection in zip(decoded[0][1:], stages, taps, network.fusion.projections, strict=True):
        assert torch.equal(fused, stage + projection(tap))
        assert (fused - stage).std() > 0.01


def test_projections_use_the_strides_between(four_stages: NetworkShape) -> None:
    """Token grid at stage 2: two transposed convolutions to stage 0, one to stage 1, 1x1x1, one strided to stage 3."""
    assert four_stages.token_stage == 2
    fusion = TokenFusion(10, four_stages)
    layers = [[type(layer).__name__ for layer in projection] for projection in fusion.projections]
    assert layers == [
        ["Upsampling", "InstanceNorm3d", "GELU", "Upsampling"],
        ["Upsampling"],
        ["Pointwise"],
        ["Downsampling"],
    ]
    first, last = fusion.projections[0][0], fusion.projections[0][-1]
    assert (first.stride, last.stride) == (four_stages.strides[2], four_stages.strides[1])
    assert fusion.projections[3][0].stride == four_stages.strides[3]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_any_stage_can_hold_the_tokens(four_stages: NetworkShape, stage: int) -> None:
    shape = replace(four_stages, token_stage=stage)
    tap = torch.randn(2, 10, *shape.token_grid)
    stages = [torch.zeros(2, dim, *grid) for dim, grid in zip(shape.dims, shape.grids, strict=True)]
    for fused, plain in zip(TokenFusion(10, shape)(stages, [tap] * 4), stages, strict=True):
        assert fused.shape == plain.shape
        assert not fused.any()


def test_tap_missing(four_stages: NetworkShape) -> None:
    stages = [torch.zeros(1, dim, *grid) for dim, grid in zip(four_stages.dims, four_stages.grids, strict=True)]
    with pytest.raises(ValueError, match="shorter"):
        TokenFusion(10, four_stages)(stages, [torch.zeros(1, 10, *four_stages.token_grid)] * 3)


def test_every_parameter_learns_from_the_second_step_on(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    """At the first step the zero-initialised last layers pass no gradient to what lies before them."""
    network = build_fusion_network(shape, 1, 3, replace(architecture, drop_path=0.0), deep_supervision=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    without_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in network(crop(shape, 1, 1))).backward()
        optimizer.step()
        without_gradient.append({n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()})
    last_layers = {
        f"fusion.projections.{stage}.{len(projection) - 1}.{kind}"
        for stage, projection in enumerate(network.fusion.projections)
        for kind in ("weight", "bias")
    }
    before_them = {n for n, _ in network.named_parameters() if n.startswith(("vit_encoder.", "fusion."))} - last_layers
    assert without_gradient == [before_them, set()]
