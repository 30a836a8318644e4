"""The head that predicts the nine key points of a crop (paper Sec. II-B)."""

import math
from typing import cast

from torch import nn

from nnunet_topomae.architectures.layers import SMALL_STD, initialise_weights, run_in_float32
from nnunet_topomae.geometry import N_KEY_POINTS
from nnunet_topomae.types import KeyPoints, Size3, Volume

HIDDEN_UNITS = 256
CONVOLUTION_CHANNELS = 64
MAX_POOLED = 4


class KeyPointHead(nn.Module):
    """One convolution, then a two-layer MLP with 256 hidden units and tanh.

    Paper is silent on what lies between: the convolution's output is averaged to at most four cells along each axis,
    so the MLP sees where features are and its size does not grow with the crop. The MLP runs in float32.

    Args:
        channels: channels of the encoder's features.
        grid: cells of the features along (D, H, W).
    """

    def __init__(self, channels: int, grid: Size3) -> None:
        super().__init__()
        pooled = (min(grid[0], MAX_POOLED), min(grid[1], MAX_POOLED), min(grid[2], MAX_POOLED))
        self.convolution = nn.Sequential(
            nn.Conv3d(channels, CONVOLUTION_CHANNELS, kernel_size=3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool3d(pooled),
        )
        self.mlp = nn.Sequential(
            nn.Linear(CONVOLUTION_CHANNELS * math.prod(pooled), HIDDEN_UNITS),
            nn.GELU(),
            nn.Linear(HIDDEN_UNITS, N_KEY_POINTS * 3),
            nn.Tanh(),
        )
        self.apply(initialise_weights)
        nn.init.trunc_normal_(cast(nn.Linear, self.mlp[2]).weight, std=SMALL_STD)  # far from where tanh saturates

    def forward(self, features: Volume) -> KeyPoints:
        """Key points (B, 9, 3) in (-1, 1), columns in axis order (D, H, W)."""
        pooled = self.convolution(features).flatten(1)
        return run_in_float32(self.mlp, pooled).view(-1, N_KEY_POINTS, 3)  # (B, 27) -> (B, 9, 3)
