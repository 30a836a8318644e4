"""The head that predicts the nine vectors of a crop (Zhang et al. 2022, VectorPOSE)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from nnunet_topomae.architectures.layers import SMALL_STD, Features, initialise_weights, run_in_float32
from nnunet_topomae.geometry import N_KEY_POINTS
from nnunet_topomae.types import Vectors

HIDDEN_UNITS = 256
DROPOUT = 0.2
SCALES = 3


class VectorHead(nn.Module):
    """Global averages of features of up to three scales, then a three-layer MLP in float32.

    VectorPOSE's code takes its decoder's features and BatchNorm. This head takes those of the encoder, which every
    fine-tuned network keeps, and LayerNorm, as batches are small.

    Args:
        channels: channels of the features, scale by scale.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(sum(channels)),
            nn.Dropout(DROPOUT),
            nn.Linear(sum(channels), HIDDEN_UNITS),
            nn.LayerNorm(HIDDEN_UNITS),
            nn.GELU(),
            nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS),
            nn.LayerNorm(HIDDEN_UNITS),
            nn.GELU(),
            nn.Linear(HIDDEN_UNITS, N_KEY_POINTS * 3),
        )
        self.apply(initialise_weights)
        nn.init.trunc_normal_(cast(nn.Linear, self.mlp[-1]).weight, std=SMALL_STD)

    def forward(self, features: Sequence[Features]) -> Vectors:
        """Radius and polar angle in (0, 1), azimuth in (-1, 1), see vectors.to_spherical.

        Args:
            features: (B, C, d, h, w) of every scale.
        """
        pooled = torch.cat([scale.float().mean(dim=(2, 3, 4)) for scale in features], dim=1)
        outputs = run_in_float32(self.mlp, pooled).view(-1, N_KEY_POINTS, 3)  # (B, 27) -> (B, 9, 3)
        return torch.cat([outputs[..., :2].sigmoid(), outputs[..., 2:].tanh()], dim=-1)
