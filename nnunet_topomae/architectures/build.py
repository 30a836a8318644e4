"""Factories of the networks."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from nnunet_topomae.architectures.copretraining import BRANCHES, Branch, CoPretrainingNetwork, SpatialHeads, ViTBranch
from nnunet_topomae.architectures.fusion import FusionNetwork, TokenFusion
from nnunet_topomae.architectures.keypoint_head import KeyPointHead
from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.partner import Partner, PlannedNetwork, build_partner
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.architectures.sparse import SparseMasking
from nnunet_topomae.architectures.unetr import UNETR, UNETRDecoder
from nnunet_topomae.architectures.vector_head import SCALES, VectorHead
from nnunet_topomae.architectures.vit import VIT_PRESETS, ViTEncoder
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.types import Size3


class Tasks(NamedTuple):
    """What a pre-training predicts besides the image.

    Attributes:
        key_points: nine key points of the crop.
        vectors: nine vectors of the crop.
        boundaries: a map of boundaries.
    """

    key_points: bool = True
    vectors: bool = False
    boundaries: bool = False


ONLY_KEY_POINTS = Tasks()


def build_unetrpp(
    shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig, deep_supervision: bool
) -> Partner:
    """UNETR++ for segmentation.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture.
        deep_supervision: return logits of the three finest levels instead of full resolution only.

    Raises:
        ValueError: the plan's partner is another network.
    """
    if architecture.partner != "unetrpp":
        raise ValueError(
            f"topomae.architecture.partner is {architecture.partner!r}, so this plan has no UNETR++. Train with "
            "-tr nnUNetTrainer, or use plans whose partner is 'unetrpp'."
        )
    return build_partner(shape, in_channels, out_channels, architecture, deep_supervision=deep_supervision)


def build_fusion_network(
    shape: NetworkShape,
    in_channels: int,
    out_channels: int,
    architecture: ArchitectureConfig,
    deep_supervision: bool,
    planned: PlannedNetwork | None = None,
) -> FusionNetwork | Partner:
    """The fine-tuned network of ViT and partner; the partner alone where the plan has no ViT.

    Args:
        shape: sizes of both networks from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture; its ``vit`` names the size of the ViT.
        deep_supervision: return logits of several scales instead of full resolution only.
        planned: builds the plan's own network where that is the partner.
    """
    partner = build_partner(shape, in_channels, out_channels, architecture, planned, deep_supervision)
    if not architecture.has_vit:
        return partner
    preset = VIT_PRESETS[architecture.vit]
    return FusionNetwork(
        vit_encoder=ViTEncoder(shape.token_grid, shape.token_size, in_channels, preset, architecture.drop_path),
        fusion=TokenFusion(preset.width, shape),
        encoder=partner.encoder,
        decoder=partner.decoder,
    )


def build_unetr(shape: NetworkShape, in_channels: int, out_channels: int, architecture: ArchitectureConfig) -> UNETR:
    """UNETR with the ViT that is pre-trained.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads K.
        architecture: the plan's architecture; its ``vit`` names the size of the ViT.

    Raises:
        ValueError: the plan has no ViT.
    """
    if not architecture.has_vit:
        raise ValueError("topomae.architecture.vit is 'none', and UNETR is made of the ViT. Set another size.")
    preset = VIT_PRESETS[architecture.vit]
    return UNETR(
        ViTEncoder(shape.token_grid, shape.token_size, in_channels, preset, architecture.drop_path),
        UNETRDecoder(preset.width, shape, in_channels, out_channels, architecture.feature_size),
    )


def build_copretraining_network(
    shape: NetworkShape,
    in_channels: int,
    architecture: ArchitectureConfig,
    branches: Sequence[Branch] = BRANCHES,
    planned: PlannedNetwork | None = None,
    masking: Literal["zero", "sparse"] = "zero",
    tasks: Tasks = ONLY_KEY_POINTS,
) -> CoPretrainingNetwork:
    """The network of masked co-pre-training; its partner rebuilds the image at full resolution only.

    Args:
        shape: shape of both networks.
        in_channels: image channels.
        architecture: the plan's architecture.
        branches: the networks that compute and are trained; the weights do not depend on it. A ViT that the plan does
            not have is never among them.
        planned: builds the plan's own network where that is the partner.
        masking: how its encoder is kept from hidden voxels (architectures/sparse.py).
        tasks: what the networks predict besides the image.
    """
    outputs = in_channels * (2 if tasks.boundaries else 1)
    vit = None
    if architecture.has_vit:
        preset = VIT_PRESETS[architecture.vit]
        grid, size = shape.token_grid, shape.token_size
        vit = ViTBranch(
            ViTEncoder(grid, size, in_channels, preset),
            MAEDecoder(grid, size, outputs, preset),
            _heads(tasks, [preset.width], grid),
        )
    partner = build_partner(shape, in_channels, outputs, architecture, planned, purpose="reconstruction")
    return CoPretrainingNetwork(
        vit=vit,
        encoder=partner.encoder,
        decoder=partner.decoder,
        heads=_heads(tasks, shape.dims[-SCALES:], shape.grids[-1]),
        token_grid=shape.token_grid,
        token_size=shape.token_size,
        branches=branches,
        masking=SparseMasking(partner.encoder) if masking == "sparse" else None,
    )


def _heads(tasks: Tasks, channels: Sequence[int], grid: Size3) -> SpatialHeads:
    """Heads on features of one or several scales, of which the last one has the grid."""
    return SpatialHeads(
        KeyPointHead(channels[-1], grid) if tasks.key_points else None, VectorHead(channels) if tasks.vectors else None
    )
