"""Factories of the networks. Numbers that neither the plan nor the rule gives stand here, once."""

from collections.abc import Sequence

from nnunet_topomae.architectures.attention import EPASettings
from nnunet_topomae.architectures.copretraining import BRANCHES, Branch, CoPretrainingNetwork
from nnunet_topomae.architectures.fusion import FusionNetwork, TokenFusion
from nnunet_topomae.architectures.keypoint_head import KeyPointHead
from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.architectures.unetr import UNETR, UNETRDecoder
from nnunet_topomae.architectures.unetrpp import UNETRPP, UNETRPPDecoder, UNETRPPEncoder
from nnunet_topomae.architectures.vit import VIT_PRESETS, ViTEncoder
from nnunet_topomae.config import ArchitectureConfig

# Dropout of Shaker et al. 2024 for segmentation, which the plan scales; none while reconstructing.
ATTENTION_DROPOUT, CHANNEL_DROPOUT = 0.15, 0.1

DEEP_SUPERVISION_WEIGHTS = (4 / 7, 2 / 7, 1 / 7)


def build_unetrpp(
    shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig, deep_supervision: bool
) -> UNETRPP:
    """UNETR++ for segmentation.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture.
        deep_supervision: return logits of the three finest levels instead of full resolution only.
    """
    encoder, decoder = _segmentation_parts(shape, in_channels, out_channels, architecture, deep_supervision)
    return UNETRPP(encoder, decoder)


def build_fusion_network(
    shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig, deep_supervision: bool
) -> FusionNetwork:
    """The fine-tuned network of ViT and UNETR++.

    Args:
        shape: sizes of both networks from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture; its ``vit`` names the size of the ViT.
        deep_supervision: return logits of the three finest levels instead of full resolution only.
    """
    preset = VIT_PRESETS[architecture.vit]
    encoder, decoder = _segmentation_parts(shape, in_channels, out_channels, architecture, deep_supervision)
    return FusionNetwork(
        vit_encoder=ViTEncoder(shape.token_grid, shape.token_size, in_channels, preset, architecture.drop_path),
        fusion=TokenFusion(preset.width, shape),
        encoder=encoder,
        decoder=decoder,
    )


def build_unetr(shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig) -> UNETR:
    """UNETR with the ViT that is pre-trained.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture; its ``vit`` names the size of the ViT.
    """
    preset = VIT_PRESETS[architecture.vit]
    return UNETR(
        ViTEncoder(shape.token_grid, shape.token_size, in_channels, preset, architecture.drop_path),
        UNETRDecoder(preset.width, shape, in_channels, out_channels, architecture.feature_size),
    )


def build_copretraining_network(
    shape: NetworkShape, in_channels: int, architecture: ArchitectureConfig, branches: Sequence[Branch] = BRANCHES
) -> CoPretrainingNetwork:
    """The network of masked co-pre-training; its UNETR++ rebuilds the image at full resolution only.

    Args:
        shape: shape of both networks.
        in_channels: image channels.
        architecture: the plan's architecture.
        branches: the networks that compute and are trained; the weights do not depend on it.
    """
    preset = VIT_PRESETS[architecture.vit]
    grid, size = shape.token_grid, shape.token_size
    settings = _epa_settings(architecture, dropout=0.0)
    return CoPretrainingNetwork(
        vit_encoder=ViTEncoder(grid, size, in_channels, preset),
        vit_decoder=MAEDecoder(grid, size, in_channels, preset),
        vit_key_points=KeyPointHead(preset.width, grid),
        encoder=UNETRPPEncoder(shape, in_channels, architecture.feature_size, settings),
        decoder=UNETRPPDecoder(
            shape, in_channels, architecture.feature_size, settings, architecture.upsampling, reconstructs=True
        ),
        key_points=KeyPointHead(shape.dims[-1], shape.grids[-1]),
        branches=branches,
    )


def deep_supervision_scales(shape: NetworkShape) -> list[list[float]]:
    """Size of the decoder's outputs relative to the patch, fine to coarse, in nnU-Net's format."""
    return [[1.0, 1.0, 1.0], *([1.0 / voxels for voxels in size] for size in shape.cell_sizes[:2])]


def _segmentation_parts(
    shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig, deep_supervision: bool
) -> tuple[UNETRPPEncoder, UNETRPPDecoder]:
    settings, features = _epa_settings(architecture, architecture.dropout), architecture.feature_size
    encoder = UNETRPPEncoder(shape, in_channels, features, settings)
    decoder = UNETRPPDecoder(shape, out_channels, features, settings, architecture.upsampling, deep_supervision)
    return encoder, decoder


def _epa_settings(architecture: ArchitectureConfig, dropout: float) -> EPASettings:
    """What the plan says about the stages, with a factor of the published dropout rates."""
    return EPASettings(
        depth=architecture.depth,
        heads=architecture.heads,
        gamma=architecture.gamma,
        share_embeddings=architecture.share_embeddings,
        attention_dropout=ATTENTION_DROPOUT * dropout,
        channel_dropout=CHANNEL_DROPOUT * dropout,
    )
