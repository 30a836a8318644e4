from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nnunet_topomae.architectures.attention import EfficientPairedAttention
from nnunet_topomae.architectures.build import (
    build_copretraining_network,
    build_fusion_network,
    build_unetrpp,
)
from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.architectures.roles import no_weight_decay
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.architectures.unetrpp import DEEP_SUPERVISION_WEIGHTS, deep_supervision_scales
from nnunet_topomae.config import ArchitectureConfig


def test_scales_are_those_of_the_outputs(shape, architecture, crop) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(shape, 1, 2, architecture, deep_supervision=True)
    outputs = network(crop(shape, 1, 1))
    scales = deep_supervision_scales(shape)
    assert len(outputs) == len(scales) == len(DEEP_SUPERVISION_WEIGHTS)
    for output, scale in zip(outputs, scales, strict=True):
        assert [round(s * p) for s, p in zip(scale, shape.patch_size, strict=True)] == list(output.shape[2:])
    assert sum(DEEP_SUPERVISION_WEIGHTS) == pytest.approx(1)


def test_pretrained_weights_fit_by_name(shape, architecture) -> None:  # type: ignore[no-untyped-def]
    pretrained = build_copretraining_network(shape, 2, architecture).state_dict()
    fusion = build_fusion_network(shape, 2, 5, architecture, deep_supervision=False).state_dict()
    unetrpp = build_unetrpp(shape, 2, 5, architecture, deep_supervision=False).state_dict()
    fresh = {name for name in fusion if name.startswith(("fusion.", "decoder.seg_layers."))}
    assert {name.split(".")[0] for name in fusion} == {"vit_encoder", "fusion", "encoder", "decoder"}
    for target in (fusion, unetrpp):
        for name in set(target) - fresh:
            assert pretrained[name].shape == target[name].shape
    own = {name.split(".")[0] for name in set(pretrained) - set(fusion)}
    assert own == {"vit_decoder", "vit_key_points", "key_points"}


def test_no_weight_decay(shape, architecture) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(shape, 1, architecture)
    excluded = no_weight_decay(network)
    parameters = dict(network.named_parameters())
    assert excluded < set(parameters)
    assert all(parameters[name].ndim > 1 for name in set(parameters) - excluded)
    last = {name.rpartition(".")[2] for name in excluded if parameters[name].ndim > 1}
    assert last == {"position", "mask_token", "channel_temperature", "spatial_temperature"}
    decayed = {name.rpartition(".")[2] for name in set(parameters) - excluded}
    assert decayed == {"weight", "projection"}
    assert any(name.endswith("gamma") for name in excluded)


def _rates(network: nn.Module) -> set[tuple[str, float]]:
    attention = {("attention", m.dropout) for m in network.modules() if isinstance(m, EfficientPairedAttention)}
    return attention | {("channel", m.p) for m in network.modules() if isinstance(m, nn.Dropout3d)}


@pytest.mark.parametrize("build", [build_unetrpp, build_fusion_network])
def test_the_plan_scales_the_published_dropout(four_stages, architecture, build) -> None:  # type: ignore[no-untyped-def]
    for factor in (0.0, 1.0, 2.0):
        network = build(four_stages, 1, 2, replace(architecture, dropout=factor), deep_supervision=False)
        assert _rates(network) == {("attention", 0.15 * factor), ("channel", 0.1 * factor)}


def test_pretraining_has_no_dropout(four_stages, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    data, hidden = crop(four_stages, 1, 1), mask(four_stages, 1)
    pretraining = build_copretraining_network(four_stages, 1, replace(architecture, dropout=1.0))
    assert _rates(pretraining) == {("attention", 0.0), ("channel", 0.0)}
    with torch.no_grad():
        first, second = (pretraining(data, hidden) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.reconstruction, b.reconstruction)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "strides", "channels"),
    [
        ((12, 256, 256), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]], 1),
        ((40, 56, 40), [[2, 2, 2], [2, 2, 2], [2, 2, 2]], 4),
        ((16, 160, 160), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], 2),
    ],
)
def test_plans_of_all_kinds_run(patch, strides, channels) -> None:  # type: ignore[no-untyped-def]
    """Full-sized networks on tensors without data."""
    architecture = ArchitectureConfig()
    shape = derive_network_shape(patch, strides, architecture)
    with torch.device("meta"):
        network = build_fusion_network(shape, channels, 3, architecture, deep_supervision=True)
        outputs = network(torch.empty(1, channels, *patch))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *patch)] + [(1, 3, *g) for g in shape.grids[:2]]


@pytest.mark.parametrize("training", ["pre-training", "fine-tuning"])
def test_attention_runs_in_fused_kernels(shape, architecture, crop, mask, training) -> None:  # type: ignore[no-untyped-def]
    """Which do not keep the attention matrices, and are several times faster for many tokens.

    They take only tensors of certain strides. torch says nothing where it falls back on another kernel; where none else
    is allowed, as here, it raises.
    """
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if training == "pre-training":
            network = build_copretraining_network(shape, 2, architecture)
            output = network(crop(shape, 2, 2), mask(shape, 2)).partner.reconstruction
        else:
            network = build_fusion_network(shape, 2, 3, architecture, deep_supervision=False)
            use_channels_last(network)
            output = network(crop(shape, 2, 2))
        output.square().mean().backward()
    assert output.shape[2:] == shape.patch_size and output.isfinite().all()
