"""EPA, one number at a time: the attention of UNETR++ written with loops over heads, channels and tokens."""

import math

import pytest
import torch
from torch import Tensor

from nnunet_topomae.architectures.attention import EfficientPairedAttention, TokenEmbedding


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def linear(layer: torch.nn.Linear, vector: list[float]) -> list[float]:
    weight = layer.weight.tolist()
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * len(weight)
    return [sum(w * v for w, v in zip(row, vector, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def naive_epa(attention: EfficientPairedAttention, embedding: TokenEmbedding, tokens: list[list[float]]) -> Tensor:
    """Tokens of one sample, N lists of C numbers, to (N, C)."""
    count, channels, heads = len(tokens), len(tokens[0]), attention.heads
    size = channels // heads
    qkvv = [linear(attention.qkvv, token) for token in tokens]
    projection = embedding.projection.flatten(1).tolist()
    bias = embedding.projection_bias.tolist()
    spatial = [[0.0] * channels for _ in range(count)]
    channel = [[0.0] * channels for _ in range(count)]
    for head in range(heads):
        columns = [[row[part * channels + head * size :][:size] for row in qkvv] for part in range(4)]
        q, k, v_channel, v_spatial = columns

        def project(values: list[list[float]], size: int = size) -> list[list[float]]:
            return [
                [sum(w * value[c] for w, value in zip(row, values, strict=True)) + b for c in range(size)]
                for row, b in zip(projection, bias, strict=True)
            ]

        k_projected, v_projected = project(k), project(v_spatial)
        temperature = attention.spatial_temperature[head].item()
        for n in range(count):
            weights = softmax([temperature * cosine(q[n], key) for key in k_projected])
            for c in range(size):
                spatial[n][head * size + c] = sum(w * v[c] for w, v in zip(weights, v_projected, strict=True))

        temperature = attention.channel_temperature[head].item()
        for a in range(size):
            column = [row[a] for row in q]
            weights = softmax([temperature * cosine(column, [row[b] for row in k]) for b in range(size)])
            for n in range(count):
                channel[n][head * size + a] = sum(w * v for w, v in zip(weights, v_channel[n], strict=True))
    return torch.tensor(
        [
            linear(attention.spatial_output, s) + linear(attention.channel_output, c)
            for s, c in zip(spatial, channel, strict=True)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(("channels", "heads", "grid", "projected"), [(8, 2, (2, 3, 4), 5), (12, 3, (3, 1, 2), 4)])
def test_epa_equals_the_loops(channels: int, heads: int, grid: tuple[int, int, int], projected: int) -> None:
    torch.manual_seed(1)
    attention = EfficientPairedAttention(channels, heads, dropout=0.3).double().eval()
    embedding = TokenEmbedding(channels, grid, projected).double()
    for parameter in [*attention.parameters(), *embedding.parameters()]:
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, math.prod(grid), channels, dtype=torch.float64)
    with torch.no_grad():
        outputs = attention(tokens, embedding)
    for output, sample in zip(outputs, tokens, strict=True):
        torch.testing.assert_close(output, naive_epa(attention, embedding, sample.tolist()), rtol=1e-9, atol=1e-9)
