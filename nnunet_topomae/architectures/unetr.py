"""UNETR on the tokens of the plan: a ViT that can be pre-trained, and a convolutional decoder (as in Zhou et al. 2023).

MONAI's UNETR has cubic tokens of 16 voxels and a ViT of its own. Here the ViT is the one that is pre-trained, its
tokens and strides follow from the plan, and as many layers are tapped as there are stages down to the token grid.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.fusion import token_projection
from nnunet_topomae.architectures.layers import (
    Features,
    SegmentationHead,
    Upsampling,
    initialise_weights,
    residual_block,
)
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.architectures.vit import ViTEncoder
from nnunet_topomae.types import Size3, Volume


class ConcatenationStep(nn.Module):
    """Upsample, concatenate the skip connection, refine.

    Args:
        in_channels: of the coarser features.
        out_channels: of the skip connection and of what is returned.
        stride: between the two grids.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Size3) -> None:
        super().__init__()
        self.upsampling = Upsampling(in_channels, out_channels, stride)
        self.refinement = residual_block(2 * out_channels, out_channels)

    def forward(self, features: Features, skip: Features) -> Features:
        """From the features of one grid to those of the next finer one.

        Args:
            features: (B, C, d, h, w) of the coarser grid.
            skip: features of the finer grid.

        Returns:
            Features of the shape of ``skip``.
        """
        return cast(Tensor, self.refinement(torch.cat([self.upsampling(features), skip], dim=1)))


class UNETRDecoder(nn.Module):
    """From the taps of a ViT and the image to logits.

    Args:
        width: channels of the ViT.
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads.
        feature_size: channels at full resolution.
    """

    def __init__(self, width: int, shape: NetworkShape, in_channels: int, out_channels: int, feature_size: int) -> None:
        super().__init__()
        stages = range(shape.token_stage + 1)
        self.full_resolution = residual_block(in_channels, feature_size)
        self.projections = nn.ModuleList(token_projection(width, stage, shape) for stage in stages)
        self.skips = nn.ModuleList(residual_block(shape.dims[stage], shape.dims[stage]) for stage in stages[:-1])
        channels = (feature_size, *shape.dims)
        self.steps = nn.ModuleList(
            ConcatenationStep(channels[stage + 1], channels[stage], shape.strides[stage]) for stage in reversed(stages)
        )
        self.head = SegmentationHead(feature_size, out_channels)
        self.apply(initialise_weights)

    def forward(self, data: Volume, taps: Sequence[Features]) -> Features:
        """Logits at full resolution.

        Args:
            data: the crop.
            taps: maps on the token grid, one for every stage down to it, fine stages first.
        """
        projected = [projection(tap) for projection, tap in zip(self.projections, taps, strict=True)]
        skips = [self.full_resolution(data)]
        skips += [block(features) for block, features in zip(self.skips, projected[:-1], strict=True)]
        features = projected[-1]
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            features = step(features, skip)
        return cast(Tensor, self.head(features))


class UNETR(nn.Module):
    """ViT encoder and convolutional decoder: (B, C, D, H, W) -> logits (B, K, D, H, W).

    Attributes:
        pretrained_parts: parts that pre-training provides.
        encoder_parts: those of them that encode.
        fresh_parts: the rest.
    """

    pretrained_parts: ClassVar = ("vit_encoder",)
    encoder_parts: ClassVar = ("vit_encoder",)
    fresh_parts: ClassVar = ("unetr_decoder",)

    def __init__(self, vit_encoder: ViTEncoder, unetr_decoder: UNETRDecoder) -> None:
        super().__init__()
        self.vit_encoder = vit_encoder
        self.unetr_decoder = unetr_decoder

    def forward(self, data: Volume) -> Features:
        """Segment a batch of crops."""
        taps = self.vit_encoder.forward_taps(data, taps=len(self.unetr_decoder.projections))
        return cast(Tensor, self.unetr_decoder(data, taps))
