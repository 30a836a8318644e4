"""Efficient paired attention (EPA) of UNETR++ (Shaker et al. 2024), and the block and stage made of it.

Where this departs from the original code, and why:

* Spatial attention compares every token with the projected tokens by the cosine over the channels of a head. The
  original normalises the queries over all tokens instead, so its spatial attention starts out uniform.
* The output of the spatial branch keeps the order of the tokens. The original permutes it into another one.
* The residual scale gamma starts at 0.1. The original's 1e-6 silences EPA at the start.
* InstanceNorm in place of BatchNorm, whose statistics suffer from small batches and masked inputs.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_topomae.architectures.layers import SMALL_STD, Pointwise, residual_block
from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.types import Size3, Volume

Tokens = Float[Tensor, "B N C"]
Heads = Float[Tensor, "B heads N c"]


@dataclass(frozen=True)
class EPASettings:
    """What the EPA stages of a network have in common.

    Attributes:
        depth: blocks of a stage.
        heads: attention heads.
        gamma: initial scale of the attention's residual branch.
        share_embeddings: whether the blocks of a stage share their :class:`TokenEmbedding`.
        attention_dropout: dropout of the attention matrices.
        channel_dropout: dropout of whole channels in front of a block's output.
    """

    depth: int
    heads: int
    gamma: float = 0.1
    share_embeddings: bool = False
    attention_dropout: float = 0.0
    channel_dropout: float = 0.0


class TokenEmbedding(nn.Module):
    """The parameters of a block that belong to its grid: position embedding and EPA's projection over tokens.

    Both keep the grid as their last three axes, so they can be resampled for a network of another plan.

    Args:
        channels: channels of a token.
        grid: tokens along (D, H, W).
        projected: number of projected tokens.
    """

    no_decay: ClassVar = ("position",)
    resampled_as: ClassVar = {
        "position": Resampling.WRITES_FIELD,
        "projection": Resampling.READS_FIELD_ROWS,
        "projection_bias": Resampling.ROWS,
    }

    def __init__(self, channels: int, grid: Size3, projected: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(channels, *grid))
        self.projection = nn.Parameter(torch.empty(projected, *grid))
        self.projection_bias = nn.Parameter(torch.zeros(projected))
        nn.init.trunc_normal_(self.position, std=SMALL_STD)
        nn.init.trunc_normal_(self.projection, std=1.0 / math.sqrt(math.prod(grid)))

    def add_position(self, tokens: Tokens) -> Tokens:
        """Add the position embedding.

        Args:
            tokens: (B, N, C), all N tokens of the grid in raster order.
        """
        return tokens + self.position.flatten(1).t()  # (C, d, h, w) -> (N, C)

    def project(self, tokens: Heads) -> Float[Tensor, "B heads P c"]:
        """Learned linear map over tokens, the same for every head and channel: N tokens -> P tokens.

        Args:
            tokens: (B, heads, N, c), in raster order.

        Returns:
            Projected tokens (B, heads, P, c).
        """
        weight = self.projection.flatten(1)  # (P, d, h, w) -> (P, N)
        return F.linear(tokens.transpose(-2, -1), weight, self.projection_bias).transpose(-2, -1)


class EfficientPairedAttention(nn.Module):
    """Channel attention and spatial attention with shared queries and keys (Shaker et al. 2024, Sec. 3.2).

    Args:
        channels: channels of a token, a multiple of ``heads`` and even.
        heads: attention heads.
        dropout: dropout of both attention matrices.

    Raises:
        ValueError: ``channels`` cannot be divided among the heads and the two branches.
    """

    no_decay: ClassVar = ("channel_temperature", "spatial_temperature")

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        if channels % heads or channels % 2:
            raise ValueError(
                f"{channels} channels must be even and a multiple of {heads} heads; change topomae.architecture.dims "
                "or topomae.architecture.heads in the plan"
            )
        self.heads = heads
        self.dropout = dropout
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.channel_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        # sqrt(c) gives cosines of random directions in c dimensions unit variance.
        self.spatial_temperature = nn.Parameter(torch.full((heads, 1, 1), math.sqrt(channels / heads)))
        self.channel_output = nn.Linear(channels, channels // 2)
        self.spatial_output = nn.Linear(channels, channels // 2)

    def forward(self, tokens: Tokens, embedding: TokenEmbedding) -> Tokens:
        """Attend along both axes and concatenate the results, spatial branch first.

        Args:
            tokens: (B, N, C), all tokens of the grid in raster order.
            embedding: projects keys and values of the spatial branch to fewer tokens.

        Returns:
            (B, N, C), half of the channels from each branch.
        """
        batch, count, channels = tokens.shape
        qkvv = self.qkvv(tokens).view(batch, count, 4, self.heads, channels // self.heads)
        # (B, N, 4, heads, c) -> 4 x (B, heads, N, c); one copy here saves one in every product below.
        q, k, v_channel, v_spatial = qkvv.permute(2, 0, 3, 1, 4).contiguous()
        spatial = self._spatial_attention(q, embedding.project(k), embedding.project(v_spatial))
        channel = self._channel_attention(q, k, v_channel)
        outputs = [self.spatial_output(_join_heads(spatial)), self.channel_output(_join_heads(channel))]
        return torch.cat(outputs, dim=-1)

    def _channel_attention(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attention among the channels of a head; queries and keys are normalised over the tokens."""
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        attention = ((q.transpose(-2, -1) @ k) * self.channel_temperature).softmax(dim=-1)  # (B, heads, c, c)
        attention = F.dropout(attention, self.dropout, self.training)
        return v @ attention.transpose(-2, -1)  # (B, heads, N, c)

    def _spatial_attention(self, q: Heads, k: Float[Tensor, "B heads P c"], v: Float[Tensor, "B heads P c"]) -> Heads:
        """Attention of every token to the projected tokens, by cosine similarity."""
        k = F.normalize(k, dim=-1) * self.spatial_temperature  # fewer tokens than q
        dropout = self.dropout if self.training else 0.0
        # torch's fused kernels take only tensors whose last axis is contiguous.
        q, k, v = F.normalize(q, dim=-1), k.contiguous(), v.contiguous()
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0)


class EPABlock(nn.Module):
    """Transformer block of UNETR++: EPA, then a residual convolution block, each with a skip connection."""

    def __init__(self, channels: int, settings: EPASettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = EfficientPairedAttention(channels, settings.heads, settings.attention_dropout)
        self.gamma = nn.Parameter(torch.full((channels,), settings.gamma))
        self.convolution = residual_block(channels, channels)
        end = Pointwise(channels, channels, gain=1.0 / math.sqrt(settings.depth))
        self.output = nn.Sequential(nn.Dropout3d(settings.channel_dropout), end)

    def forward(self, features: Volume, embedding: TokenEmbedding) -> Volume:
        """Map features to features of the same shape.

        Args:
            features: (B, C, d, h, w) on the block's grid.
            embedding: position embedding and projection for this grid.
        """
        tokens = embedding.add_position(features.flatten(2).transpose(1, 2))  # (B, C, d, h, w) -> (B, N, C)
        tokens = tokens + self.gamma * self.attention(self.norm(tokens), embedding)
        features = tokens.transpose(1, 2).reshape(features.shape)  # (B, N, C) -> (B, C, d, h, w)
        return features + cast(Tensor, self.output(self.convolution(features)))


class EPAStage(nn.Module):
    """The blocks of one resolution.

    Args:
        channels: channels of the stage.
        grid: tokens along (D, H, W).
        projected: projected tokens in EPA.
        settings: what the stages have in common.
    """

    def __init__(self, channels: int, grid: Size3, projected: int, settings: EPASettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EPABlock(channels, settings) for _ in range(settings.depth))
        embeddings = 1 if settings.share_embeddings else settings.depth
        self.embeddings = nn.ModuleList(TokenEmbedding(channels, grid, projected) for _ in range(embeddings))

    def forward(self, features: Volume) -> Volume:
        """Map features to features of the same shape."""
        for index, block in enumerate(self.blocks):
            features = block(features, self.embeddings[min(index, len(self.embeddings) - 1)])
        return features


def _join_heads(tokens: Heads) -> Tokens:
    return tokens.transpose(1, 2).flatten(2)  # (B, heads, N, c) -> (B, N, C)
