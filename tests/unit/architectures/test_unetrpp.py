from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.attention import EPASettings
from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.architectures.unetrpp import UNETRPPDecoder
from nnunet_topomae.config import ArchitectureConfig


def count_by_formula(shape: NetworkShape, architecture: ArchitectureConfig, channels: int, classes: int) -> int:
    """Parameters of UNETR++ as a sum over its parts, from the paper's description alone."""

    def residual(source: int, target: int) -> int:
        skip = source * target + 2 * target if source != target else 0
        return 27 * (source + target) * target + 4 * target + skip

    def stage(index: int) -> int:
        c, p = shape.dims[index], shape.projections[index]
        n = shape.grids[index][0] * shape.grids[index][1] * shape.grids[index][2]
        epa = 4 * c * c + 2 * architecture.heads + 2 * (c * c // 2 + c // 2) + n * p + p
        return architecture.depth * (n * c + 2 * c + c + epa + residual(c, c) + c * c + c)

    f, dims = architecture.feature_size, shape.dims
    total = residual(channels, f)
    for index, stride in enumerate(shape.strides):
        source = dims[index - 1] if index else channels
        total += source * dims[index] * stride[0] * stride[1] * stride[2] + 2 * dims[index] + stage(index)
        target = dims[index - 1] if index else f
        total += dims[index] * target * stride[0] * stride[1] * stride[2]
        total += stage(index - 1) if index else residual(f, f)
    return total + sum(classes * c + classes for c in (f, *dims[:2]))


@pytest.mark.parametrize("channels", [1, 3])
def test_number_of_parameters(shape: NetworkShape, architecture: ArchitectureConfig, channels: int) -> None:
    network = build_unetrpp(shape, channels, 5, architecture, deep_supervision=False)
    assert sum(p.numel() for p in network.parameters()) == count_by_formula(shape, architecture, channels, 5)


@pytest.mark.parametrize("upsampling", ["transposed", "trilinear"])
def test_deep_supervision_follows_its_switch(shape, architecture, crop, upsampling) -> None:  # type: ignore[no-untyped-def]
    architecture = replace(architecture, upsampling=upsampling)
    network = build_unetrpp(shape, 2, 5, architecture, deep_supervision=True).eval()
    data = crop(shape, 3, 2)
    with torch.no_grad():
        outputs = network(data)
        assert [tuple(output.shape) for output in outputs] == [
            (3, 5, *shape.patch_size),
            (3, 5, *shape.grids[0]),
            (3, 5, *shape.grids[1]),
        ]
        network.decoder.deep_supervision = False
        assert torch.equal(network(data), outputs[0])


def test_encoder_gives_features_fine_to_coarse(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(shape, 4, 2, architecture, deep_supervision=False)
    features = network.encoder(crop(shape, 1, 4))
    expected = [(4, *shape.patch_size), *((dim, *grid) for dim, grid in zip(shape.dims, shape.grids, strict=True))]
    assert [tuple(feature.shape[1:]) for feature in features] == expected


def test_every_parameter_learns(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(shape, 1, 3, architecture, deep_supervision=True)
    sum(output.square().mean() for output in network(crop(shape, 1, 1))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_network_keeps_the_scale_of_its_features(four_stages, crop) -> None:  # type: ignore[no-untyped-def]
    architecture = ArchitectureConfig()
    shape = derive_network_shape(four_stages.patch_size, four_stages.strides, architecture)
    network = build_unetrpp(shape, 1, 3, architecture, deep_supervision=False).eval()
    levels: list[torch.Tensor] = []
    for step in network.decoder.steps:
        step.register_forward_hook(lambda *call: levels.append(call[2]))
    with torch.no_grad():
        logits = network(crop(shape, 1, 1))
        deepest = network.encoder(crop(shape, 1, 1))[-1]
    assert 0.5 < deepest.std() < 2
    assert all(0.5 < level.std() < 6 for level in levels)
    assert 0.5 < logits.std() < 6


@pytest.mark.slow
@pytest.mark.parametrize("reconstructs", [True, False])
def test_only_intensities_are_computed_in_float32_under_autocast(shape, architecture, crop, reconstructs) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(shape, 2, 2, architecture, deep_supervision=False).eval()
    settings = EPASettings(architecture.depth, architecture.heads)
    network.decoder = UNETRPPDecoder(shape, 2, architecture.feature_size, settings, reconstructs=reconstructs).eval()
    assert len(network.decoder.seg_layers) == (1 if reconstructs else 3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(crop(shape, 1, 2))
    assert output.dtype == (torch.float32 if reconstructs else torch.bfloat16)


def test_depends_on_every_input_channel(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(shape, 3, 2, architecture, deep_supervision=False).eval()
    data = crop(shape, 1, 3).requires_grad_()
    network(data).square().sum().backward()
    assert data.grad is not None
    assert data.grad.abs().amax(dim=(0, 2, 3, 4)).min() > 0


def test_no_batch_statistics(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    """A sample's result does not depend on the rest of the batch, in training mode too."""
    network = build_unetrpp(shape, 1, 2, architecture, deep_supervision=False)
    for module in network.modules():
        if isinstance(module, nn.Dropout3d):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    data = crop(shape, 2, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(data)[1:], network(data[1:]), rtol=1e-4, atol=1e-4)


def test_wrong_crop_is_refused(four_stages: NetworkShape, architecture: ArchitectureConfig) -> None:
    network = build_unetrpp(four_stages, 1, 2, architecture, deep_supervision=False)
    with pytest.raises(RuntimeError, match="size of tensor"):
        network(torch.zeros(1, 1, 16, 32, 48))
