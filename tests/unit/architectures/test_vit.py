import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.vit import (
    VIT_PRESETS,
    ViTEncoder,
    gather_tokens,
    scatter_tokens,
    sincos_position_embedding,
    tokens_to_grid,
)
from nnunet_topomae.masking import random_token_mask, visible_index

GRID, TOKEN = (2, 3, 4), (4, 8, 6)


@pytest.fixture
def encoder() -> ViTEncoder:
    return ViTEncoder(GRID, TOKEN, 2, VIT_PRESETS["tiny"]).eval()


@pytest.fixture
def data(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 2, 8, 24, 24, generator=generator)


@pytest.mark.parametrize("width", [12, 16, 23])
def test_sincos_closed_form(width: int) -> None:
    embedding = sincos_position_embedding(GRID, width)
    assert embedding.shape == (24, width)
    frequencies = width // 6
    for number, position in enumerate(product(*map(range, GRID))):
        expected = []
        for coordinate in position:
            angles = [coordinate * 10000.0 ** (-i / frequencies) for i in range(frequencies)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        expected += [0.0] * (width - len(expected))
        torch.testing.assert_close(embedding[number], torch.tensor(expected))


def test_sincos_tells_all_positions_apart() -> None:
    embedding = sincos_position_embedding((4, 20, 16), 192)
    distances = torch.cdist(embedding, embedding) + 10 * torch.eye(len(embedding))
    assert distances.min() > 0.1


def test_sincos_needs_six_channels() -> None:
    with pytest.raises(ValueError, match="got 5"):
        sincos_position_embedding(GRID, 5)


def _block(block: Any, tokens: Tensor, allowed: Tensor) -> Tensor:
    """A block of the encoder by hand, whose tokens may only look at some."""
    attention = block.attn
    split = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))  # (B, N, 3, heads, width)
    queries, keys, values = split.permute(2, 0, 3, 1, 4)
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
    tokens = tokens + attention.proj(mixed.transpose(1, 2).flatten(2))
    return tokens + block.mlp(block.norm2(tokens))


def test_visible_tokens_see_only_each_other(encoder: ViTEncoder, data: Tensor, generator: torch.Generator) -> None:
    """Leaving tokens out equals full attention in which nobody may look at a hidden token."""
    mask = random_token_mask(3, GRID, 0.4, generator)
    visible = ~mask.flatten(1)
    tokens = encoder._embed(data)
    for block in encoder.blocks:
        tokens = _block(block, tokens, visible[:, None, None, :])
    expected = encoder.norm(tokens)[visible].view(3, -1, tokens.shape[-1])
    torch.testing.assert_close(encoder(data, visible_index(mask)), expected, rtol=1e-4, atol=1e-5)


def test_no_mask_is_all_tokens(encoder: ViTEncoder, data: Tensor) -> None:
    all_tokens = visible_index(torch.zeros(3, *GRID, dtype=torch.bool))
    torch.testing.assert_close(encoder(data), encoder(data, all_tokens))


def test_taps_are_the_outputs_of_their_layers(encoder: ViTEncoder, data: Tensor) -> None:
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *call: outputs.append(call[2]))
    taps = encoder.forward_taps(data, taps=3)
    layers = [outputs[0], outputs[1], encoder.norm(outputs[3])]
    for tap, layer in zip(taps, layers, strict=True):
        assert tap.shape == (3, 192, *GRID)
        assert torch.equal(tap[1, :, 1, 2, 3], layer[1, 23])
        assert torch.equal(tap[2, :, 0, 1, 2], layer[2, 6])


def test_default_taps_of_twelve_layers() -> None:
    encoder = ViTEncoder(GRID, TOKEN, 1, VIT_PRESETS["small"]).eval()
    seen: list[int] = []
    for number, block in enumerate(encoder.blocks, start=1):
        block.register_forward_hook(lambda *call, number=number: seen.append(number))
    data = torch.randn(1, 1, 8, 24, 24)
    with torch.no_grad():
        taps = encoder.forward_taps(data)
        outputs = [encoder._embed(data)]
        for block in encoder.blocks:
            outputs.append(block(outputs[-1]))
    assert seen == [*range(1, 13)] * 2
    for tap, layer in zip(taps[:3], (3, 6, 9), strict=True):
        assert torch.equal(tap.flatten(2).transpose(1, 2), outputs[layer])


@pytest.mark.parametrize("taps", [0, 5])
def test_impossible_number_of_taps(encoder: ViTEncoder, data: Tensor, taps: int) -> None:
    with pytest.raises(ValueError, match=f"{taps} taps of a ViT of 4 layers"):
        encoder.forward_taps(data, taps)


def test_gather_and_scatter(generator: torch.Generator) -> None:
    mask = random_token_mask(3, GRID, 0.3, generator)
    tokens = torch.arange(3 * 24 * 5.0).view(3, 24, 5)
    index = visible_index(mask)
    for sample in range(3):
        assert index[sample].tolist() == [n for n in range(24) if not mask[sample].flatten()[n]]
        assert torch.equal(gather_tokens(tokens, index)[sample], tokens[sample, ~mask[sample].flatten()])
    restored = scatter_tokens(gather_tokens(tokens, index), index, torch.full((3, 24, 5), -1.0))
    assert torch.equal(restored, tokens.masked_fill(mask.flatten(1)[..., None], -1.0))


def test_tokens_to_grid_is_raster_order() -> None:
    tokens = torch.arange(24.0).view(1, 24, 1).expand(2, 24, 3)
    volume = tokens_to_grid(tokens, GRID)
    assert volume.shape == (2, 3, *GRID)
    assert torch.equal(volume[1, 2], torch.arange(24.0).view(GRID))


def test_drop_path_grows_with_depth() -> None:
    encoder = ViTEncoder(GRID, TOKEN, 1, VIT_PRESETS["tiny"], drop_path=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_presets_divide_among_heads() -> None:
    for preset in VIT_PRESETS.values():
        assert preset.width % preset.heads == 0
        assert preset.decoder_width % preset.decoder_heads == 0


def test_every_parameter_learns(encoder: ViTEncoder, data: Tensor, generator: torch.Generator) -> None:
    visible = visible_index(random_token_mask(3, GRID, 0.5, generator))
    encoder(data, visible).square().mul(torch.arange(192.0)).mean().backward()
    # A constant added to every key changes no attention weight: that third of the qkv bias has no gradient.
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
