import math

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.attention import (
    EfficientPairedAttention,
    EPABlock,
    EPASettings,
    EPAStage,
    TokenEmbedding,
)
from nnunet_topomae.architectures.layers import initialise_weights

GRID = (2, 3, 4)


def make_epa(channels: int = 8, dropout: float = 0.0) -> tuple[EfficientPairedAttention, TokenEmbedding]:
    attention = EfficientPairedAttention(channels, heads=2, dropout=dropout).apply(initialise_weights)
    return attention.double(), TokenEmbedding(channels, GRID, 5).double()


def test_permuting_tokens_permutes_the_output() -> None:
    """Holds only if both branches keep the order of the tokens."""
    attention, embedding = make_epa()
    tokens = torch.randn(3, math.prod(GRID), 8, dtype=torch.float64)
    order = torch.randperm(math.prod(GRID))
    expected = attention(tokens, embedding)[:, order]
    with torch.no_grad():
        embedding.projection.copy_(embedding.projection.flatten(1)[:, order].view_as(embedding.projection))
    torch.testing.assert_close(attention(tokens[:, order], embedding), expected)


def test_spatial_attention_is_not_uniform_at_the_start() -> None:
    attention, embedding = make_epa(channels=16)
    q, k = torch.randn(2, 1, 2, 24, 8, dtype=torch.float64)
    selected = torch.eye(5, 8, dtype=torch.float64).expand(1, 2, 5, 8)
    weights = attention._spatial_attention(q, embedding.project(k), selected)[..., :5]
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 24, dtype=torch.float64))
    assert weights.amax(-1).mean() > 1.5 / 5


def test_gradients() -> None:
    attention, embedding = make_epa(channels=4)
    tokens = torch.randn(1, math.prod(GRID), 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: attention(t, embedding), (tokens,))


def test_dropout_acts_in_training_only() -> None:
    attention, embedding = make_epa(dropout=0.5)
    tokens = torch.randn(1, math.prod(GRID), 8, dtype=torch.float64)
    assert not torch.equal(attention(tokens, embedding), attention(tokens, embedding))
    attention.eval()
    assert torch.equal(attention(tokens, embedding), attention(tokens, embedding))


@pytest.mark.parametrize(("channels", "heads"), [(10, 4), (9, 3)])
def test_channels_must_fit_heads_and_branches(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels"):
        EfficientPairedAttention(channels, heads, 0.0)


def test_position_embedding_is_added_at_its_place() -> None:
    embedding = TokenEmbedding(3, GRID, 5)
    with torch.no_grad():
        embedding.position.copy_(torch.arange(3.0 * math.prod(GRID)).view(3, *GRID))
    tokens = embedding.add_position(torch.zeros(2, math.prod(GRID), 3))
    for d, h, w, c in ((0, 0, 0, 0), (1, 2, 3, 2), (1, 0, 2, 1)):
        assert tokens[1, (d * 3 + h) * 4 + w, c] == embedding.position[c, d, h, w]


def test_block_is_the_published_formula() -> None:
    """Tokens + gamma * EPA(LayerNorm(tokens)), then + conv(residual block)."""
    block = EPABlock(8, EPASettings(depth=3, heads=2, gamma=0.3)).double()
    embedding = TokenEmbedding(8, GRID, 5).double()
    features = torch.randn(2, 8, *GRID, dtype=torch.float64)
    tokens = (features + embedding.position).permute(0, 2, 3, 4, 1).reshape(2, -1, 8)
    tokens = tokens + 0.3 * block.attention(nn.functional.layer_norm(tokens, (8,)), embedding)
    middle = tokens.reshape(2, *GRID, 8).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(block(features, embedding), middle + block.output(block.convolution(middle)))


def test_shared_embeddings() -> None:
    own = EPAStage(8, GRID, 5, EPASettings(depth=3, heads=2))
    shared = EPAStage(8, GRID, 5, EPASettings(depth=3, heads=2, share_embeddings=True))
    count = [sum(p.numel() for p in stage.parameters()) for stage in (own, shared)]
    assert count[0] - count[1] == 2 * (8 * 24 + 5 * 24 + 5)
    assert shared(torch.randn(1, 8, *GRID)).shape == (1, 8, *GRID)
    shared(torch.randn(1, 8, *GRID)).sum().backward()
    assert all(parameter.grad is not None for parameter in shared.parameters())
