"""UNETR++ (Shaker et al. 2024), sized by the rule: encoder and decoder of EPA stages with skip connections."""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from nnunet_topomae.architectures.attention import EPASettings, EPAStage
from nnunet_topomae.architectures.layers import (
    Features,
    ReconstructionHead,
    SegmentationHead,
    Upsampling,
    downsample,
    initialise_weights,
    residual_block,
)
from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.types import Size3

# Weights of the losses of the three outputs, fine to coarse.
DEEP_SUPERVISION_WEIGHTS = (4 / 7, 2 / 7, 1 / 7)


class UNETRPPEncoder(nn.Module):
    """Full-resolution skip branch and the EPA stages, fine to coarse.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        feature_size: channels at full resolution.
        settings: what the stages are made of.
    """

    resampled_as: ClassVar = {"full_resolution": Resampling.CHANNELS}
    layers_from_input: ClassVar = ("downsampling", "stages")
    for_decoder: ClassVar = ("full_resolution",)

    def __init__(self, shape: NetworkShape, in_channels: int, feature_size: int, settings: EPASettings) -> None:
        super().__init__()
        channels = (in_channels, *shape.dims)
        self.full_resolution = residual_block(in_channels, feature_size)
        self.downsampling = nn.ModuleList(
            downsample(channels[stage], channels[stage + 1], stride) for stage, stride in enumerate(shape.strides)
        )
        self.stages = nn.ModuleList(
            EPAStage(dim, grid, projected, settings)
            for dim, grid, projected in zip(shape.dims, shape.grids, shape.projections, strict=True)
        )
        self.apply(initialise_weights)

    def forward(self, data: Features) -> list[Features]:
        """Features fine to coarse: the full-resolution skip, then one entry for every stage."""
        features = [self.full_resolution(data)]
        for down, stage in zip(self.downsampling, self.stages, strict=True):
            data = stage(down(data))
            features.append(data)
        return features


class UpStep(nn.Module):
    """Upsample, add the skip connection, refine."""

    def __init__(self, upsampling: nn.Module, refinement: nn.Module):
        super().__init__()
        self.upsampling = upsampling
        self.refinement = refinement

    def forward(self, features: Features, skip: Features) -> Features:
        """From the features of one stage to those of the next finer one.

        Args:
            features: (B, C, d, h, w) of the coarser stage.
            skip: features of the finer stage.

        Returns:
            Features of the shape of ``skip``.
        """
        return cast(Tensor, self.refinement(self.upsampling(features) + skip))


class UNETRPPDecoder(nn.Module):
    """Decoder of UNETR++ with 1x1x1 heads on the finest levels.

    Attributes:
        deep_supervision: return the outputs of all heads, fine to coarse, instead of the finest one.
        seg_layers: the heads; index 0 is full resolution. nnU-Net never transfers parameters of this name.

    Args:
        shape: sizes from the rule.
        out_channels: channels of the heads.
        feature_size: channels at full resolution.
        settings: what the stages are made of.
        upsampling: how full resolution is reached, as in the original or without its risk of checkerboards.
        deep_supervision: initial value of the attribute.
        reconstructs: one head for intensities instead of the three heads for
            logits.
    """

    stages_coarse_to_fine: ClassVar = ("steps",)

    def __init__(
        self,
        shape: NetworkShape,
        out_channels: int,
        feature_size: int,
        settings: EPASettings,
        upsampling: Literal["transposed", "trilinear"] = "transposed",
        deep_supervision: bool = False,
        reconstructs: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        steps = [
            UpStep(
                Upsampling(shape.dims[stage + 1], shape.dims[stage], shape.strides[stage + 1]),
                EPAStage(shape.dims[stage], shape.grids[stage], shape.projections[stage], settings),
            )
            for stage in reversed(range(len(shape.dims) - 1))
        ]
        to_full_resolution = Upsampling if upsampling == "transposed" else _trilinear
        last = UpStep(
            to_full_resolution(shape.dims[0], feature_size, shape.stem), residual_block(feature_size, feature_size)
        )
        self.steps = nn.ModuleList([*steps, last])
        self.seg_layers = nn.ModuleList(
            [ReconstructionHead(feature_size, out_channels)]
            if reconstructs
            else [SegmentationHead(channels, out_channels) for channels in (feature_size, *shape.dims[:2])]
        )
        self.apply(initialise_weights)

    def forward(self, features: Sequence[Features]) -> Features | list[Features]:
        """Decode the encoder's features (fine to coarse); see ``deep_supervision`` for what is returned."""
        levels = [features[-1]]
        for step, skip in zip(self.steps, reversed(features[:-1]), strict=True):
            levels.insert(0, step(levels[0], skip))
        if self.deep_supervision:
            return [head(level) for head, level in zip(self.seg_layers, levels, strict=False)]
        return cast(Tensor, self.seg_layers[0](levels[0]))


def deep_supervision_scales(shape: NetworkShape) -> list[list[float]]:
    """Size of the decoder's outputs relative to the patch, fine to coarse, in nnU-Net's format."""
    return [[1.0, 1.0, 1.0], *([1.0 / voxels for voxels in size] for size in shape.cell_sizes[:2])]


def _trilinear(in_channels: int, out_channels: int, stride: Size3) -> nn.Sequential:
    """1x1x1 convolution, then interpolation."""
    scale = (float(stride[0]), float(stride[1]), float(stride[2]))
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.Upsample(scale_factor=scale, mode="trilinear", align_corners=False),
    )
