"""UNETR++ as published ([18]; Synapse: 64x128x128, 14 classes, 42.96 M parameters), to measure ours against.

Layers and their order are those of the original, faults included: BatchNorm in the blocks, GroupNorm behind the
downsampling, EPA as separate products of matrices that are kept for the backward pass, queries normalised over all
tokens, a permutation of the spatial branch that mixes tokens, a residual scale of 1e-6. It is written from the paper
and from measurements of the public code, and is no part of the package: nothing trains it.

Its parts have the same names and the same protocol as ours (`encoder`, `decoder`, `deep_supervision`), so it can stand
in the place of our UNETR++ in co-pre-training.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.types import Size3

DECODER_PROJECTION = 64
ATTENTION_DROPOUT, CHANNEL_DROPOUT = 0.15, 0.1
GAMMA = 1e-6


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with norms, LeakyReLU and a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = norm(out_channels), norm(out_channels)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        self.skip = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(nn.Conv3d(in_channels, out_channels, 1, bias=False), norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to (B, K, D, H, W)."""
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.skip(x))


class EPA(nn.Module):
    """Efficient paired attention, as separate products."""

    def __init__(self, tokens: int, channels: int, heads: int, projected: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkvv = nn.Linear(channels, 4 * channels, bias=False)
        self.projection = nn.Linear(tokens, projected)  # keys and values share it
        self.channel_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.spatial_temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.channel_dropout, self.spatial_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.spatial_output = nn.Linear(channels, channels // 2)
        self.channel_output = nn.Linear(channels, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens."""
        batch, count, channels = x.shape
        qkvv = self.qkvv(x).reshape(batch, count, 4, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v_channel, v_spatial = (part.transpose(-2, -1) for part in qkvv)  # each (B, heads, c, N)
        k_projected, v_projected = self.projection(k), self.projection(v_spatial)  # (B, heads, c, P)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = ((q @ k.transpose(-2, -1)) * self.channel_temperature).softmax(dim=-1)  # (B, heads, c, c)
        by_channel = (self.channel_dropout(attention) @ v_channel).permute(0, 3, 1, 2).reshape(batch, count, channels)
        attention = ((q.permute(0, 1, 3, 2) @ k_projected) * self.spatial_temperature).softmax(dim=-1)
        by_space = self.spatial_dropout(attention) @ v_projected.transpose(-2, -1)  # (B, heads, N, c)
        # The original's permutation, although it mixes tokens: its copy is part of what is measured.
        by_space = by_space.permute(0, 3, 1, 2).reshape(batch, count, channels)
        return torch.cat((self.spatial_output(by_space), self.channel_output(by_channel)), dim=-1)


class TransformerBlock(nn.Module):
    """EPA and a residual convolution block, each with a skip connection."""

    def __init__(self, tokens: int, channels: int, heads: int, projected: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(GAMMA * torch.ones(channels))
        self.epa = EPA(tokens, channels, heads, projected, dropout)
        self.convolution = ResidualBlock(channels, channels, nn.BatchNorm3d)
        channel_dropout = CHANNEL_DROPOUT if dropout else 0.0
        self.output = nn.Sequential(nn.Dropout3d(channel_dropout), nn.Conv3d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, d, h, w) to the same shape."""
        batch, channels, *grid = x.shape
        tokens = x.reshape(batch, channels, -1).permute(0, 2, 1) + self.position
        tokens = tokens + self.gamma * self.epa(self.norm(tokens))
        x = tokens.reshape(batch, *grid, channels).permute(0, 4, 1, 2, 3)
        return x + self.output(self.convolution(x))


def build_stage(
    tokens: int, channels: int, projected: int, architecture: ArchitectureConfig, dropout: float
) -> nn.Sequential:
    """The blocks of one resolution."""
    heads = architecture.heads
    blocks = (TransformerBlock(tokens, channels, heads, projected, dropout) for _ in range(architecture.depth))
    return nn.Sequential(*blocks)


class Encoder(nn.Module):
    """Full-resolution skip and the stages, fine to coarse."""

    def __init__(self, shape: NetworkShape, in_channels: int, architecture: ArchitectureConfig, dropout: float) -> None:
        super().__init__()
        channels = (in_channels, *shape.dims)
        self.full_resolution = ResidualBlock(in_channels, architecture.feature_size, nn.InstanceNorm3d)
        self.downsampling = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(channels[i], channels[i + 1], stride, stride, bias=False),
                nn.GroupNorm(channels[i], channels[i + 1]),
            )
            for i, stride in enumerate(shape.strides)
        )
        self.stages = nn.ModuleList(
            build_stage(math.prod(grid), dim, projected, architecture, dropout)
            for dim, grid, projected in zip(shape.dims, shape.grids, shape.projections, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features fine to coarse."""
        features = [self.full_resolution(x)]
        for down, blocks in zip(self.downsampling, self.stages, strict=True):
            x = blocks(down(x))
            features.append(x)
        return features


class UpStep(nn.Module):
    """Upsample, add the skip connection, refine."""

    def __init__(self, in_channels: int, out_channels: int, stride: Size3, refinement: nn.Module) -> None:
        super().__init__()
        self.upsampling = nn.ConvTranspose3d(in_channels, out_channels, stride, stride, bias=False)
        self.refinement = refinement

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """From one level to the next finer one."""
        return self.refinement(self.upsampling(x) + skip)


class Decoder(nn.Module):
    """Decoder with 1x1x1 heads."""

    def __init__(
        self, shape: NetworkShape, classes: int, architecture: ArchitectureConfig, dropout: float, heads: int
    ) -> None:
        super().__init__()
        self.deep_supervision = heads > 1
        self.steps = nn.ModuleList()
        for i in reversed(range(len(shape.dims) - 1)):
            tokens = math.prod(shape.grids[i])
            blocks = build_stage(tokens, shape.dims[i], min(DECODER_PROJECTION, tokens), architecture, dropout)
            self.steps.append(UpStep(shape.dims[i + 1], shape.dims[i], shape.strides[i + 1], blocks))
        features = architecture.feature_size
        last = ResidualBlock(features, features, nn.InstanceNorm3d)
        self.steps.append(UpStep(shape.dims[0], features, shape.stem, last))
        widths = (features, *shape.dims[:2])[:heads]
        self.heads = nn.ModuleList(nn.Conv3d(channels, classes, 1) for channels in widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits at full resolution, or those of all heads, fine to coarse."""
        levels = [features[-1]]
        for step, skip in zip(self.steps, reversed(features[:-1]), strict=True):
            levels.insert(0, step(levels[0], skip))
        outputs = [head(level) for head, level in zip(self.heads, levels, strict=False)]
        return outputs if self.deep_supervision else outputs[0]


class ReferenceUNETRPP(nn.Module):
    """The published network at the size of ``shape``.

    Args:
        shape: sizes from our rule; for 64x128x128 they are the published ones.
        in_channels: image channels.
        classes: output channels.
        architecture: depth, heads and widths; the defaults are the published ones.
        segmentation: with dropout and three outputs; without them it stands in our co-pre-training.
    """

    def __init__(
        self,
        shape: NetworkShape,
        in_channels: int,
        classes: int,
        architecture: ArchitectureConfig,
        segmentation: bool = True,
    ) -> None:
        super().__init__()
        dropout = ATTENTION_DROPOUT if segmentation else 0.0
        self.encoder = Encoder(shape, in_channels, architecture, dropout)
        self.decoder = Decoder(shape, classes, architecture, dropout, heads=3 if segmentation else 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch of crops."""
        return self.decoder(self.encoder(x))
