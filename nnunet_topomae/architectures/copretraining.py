"""The network of masked co-pre-training: the same masked crop through a ViT autoencoder and through its partner."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.keypoint_head import KeyPointHead
from nnunet_topomae.architectures.layers import Features
from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.roles import part_prefixes, parts_for_decoder
from nnunet_topomae.architectures.sparse import SparseMasking
from nnunet_topomae.architectures.vector_head import SCALES, VectorHead
from nnunet_topomae.architectures.vit import ViTEncoder, scatter_tokens, tokens_to_grid
from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.masking import CropMask, crop_mask, random_token_mask
from nnunet_topomae.types import KeyPoints, Size3, Vectors, Volume

Branch = Literal["vit", "partner"]
BRANCHES: tuple[Branch, ...] = ("vit", "partner")


class BranchOutput(NamedTuple):
    """What one network predicts; None for what the plan does not ask for.

    Attributes:
        reconstruction: float32 (B, C, D, H, W), all voxels.
        key_points: float32 (B, 9, 3) in (-1, 1).
        vectors: float32 (B, 9, 3), see vectors.to_spherical.
        boundaries: float32 (B, C, D, H, W) in (0, 1).
    """

    reconstruction: Volume
    key_points: KeyPoints | None
    vectors: Vectors | None = None
    boundaries: Volume | None = None


class CoPretrainingOutput(NamedTuple):
    """What the two networks predict; None for a network that is left out."""

    vit: BranchOutput | None
    partner: BranchOutput | None

    def present(self) -> dict[str, BranchOutput]:
        """The outputs of the networks that computed, by name."""
        return {name: branch for name, branch in self._asdict().items() if branch is not None}


class ViTBranch(NamedTuple):
    """The ViT's masked autoencoder.

    Attributes:
        encoder: of the visible tokens.
        decoder: rebuilds the crop.
        heads: of the spatial task, on the encoder's features.
    """

    encoder: ViTEncoder
    decoder: MAEDecoder
    heads: "SpatialHeads"


class SpatialHeads(NamedTuple):
    """What predicts where a crop was taken; None for what the plan does not ask for."""

    key_points: KeyPointHead | None = None
    vectors: VectorHead | None = None


class CoPretrainingNetwork(nn.Module):
    """ViT masked autoencoder and its partner, each with heads of the spatial task (paper Fig. 2: UNETR++, key points).

    Neither branch can read a hidden voxel: the ViT encodes visible tokens only, and the partner sees hidden voxels as
    0. Without a ViT the partner is pre-trained alone.

    A branch that is not in ``branches`` keeps its initial weights: it does not compute, and its parameters ask for no
    gradient, so the optimiser, weight decay and DDP leave them out. They stay in the state dict.

    Attributes:
        transferred_parts: the encoders that fine-tuning takes over, by the plan's `topomae.finetuning.transfer_parts`.
        rebuilding_parts: those of them that only terms of the reconstruction train.
        pretraining_parts: what serves pre-training alone.
        former_parts: what checkpoints of earlier versions also hold, in its initial state.
        optional_parts: what serves pre-training alone, with some plans only.

    Args:
        vit: the ViT's autoencoder, None to leave it out.
        encoder: of the partner (architectures/partner.py).
        decoder: of the partner, rebuilding the image.
        heads: of the spatial task: for key points on the partner's deepest features, for vectors on several scales.
        token_grid: tokens of the mask along (D, H, W).
        token_size: voxels of a token.
        branches: the networks that compute and are trained.
        masking: how the partner's encoder is kept from hidden voxels; None sets them to 0 and leaves it at that.

    Raises:
        ValueError: no branch, or an unknown one.
    """

    transferred_parts: ClassVar = {"vit": ("vit_encoder",), "partner": ("encoder", "decoder")}
    rebuilding_parts: ClassVar = ("decoder",)
    pretraining_parts: ClassVar = ("vit_decoder", "vit_key_points", "key_points")
    optional_parts: ClassVar = ("masking", "vit_vectors", "vectors")
    former_parts: ClassVar = ("fusion",)

    def __init__(
        self,
        vit: ViTBranch | None,
        encoder: nn.Module,
        decoder: nn.Module,
        heads: SpatialHeads,
        token_grid: Size3,
        token_size: Size3,
        branches: Sequence[Branch] = BRANCHES,
        masking: SparseMasking | None = None,
    ) -> None:
        super().__init__()
        if vit is not None:
            self.vit_encoder, self.vit_decoder, (self.vit_key_points, self.vit_vectors) = vit
        self.encoder = encoder
        self.decoder = decoder
        self.key_points, self.vectors = heads
        self.token_grid = token_grid
        self.token_size = token_size
        self.masking = masking
        of_vit = () if vit is None else (vit.encoder, vit.decoder, *vit.heads)
        parts = {"vit": of_vit, "partner": (encoder, decoder, *heads, masking)}
        self.branches = tuple(name for name in branches if parts.get(name) != ())
        if not self.branches or not set(self.branches) <= set(BRANCHES):
            raise ValueError(f"branches must be one or both of {', '.join(BRANCHES)}, got {tuple(branches)}")
        for name in set(BRANCHES) - set(self.branches):
            for module in parts[name]:
                if module is not None:
                    module.requires_grad_(False)

    def freeze_decoder(self, branch: Branch) -> None:
        """Leave a branch's decoder as it is, and what of the encoder only the decoder reads.

        For losses without a term that reads it. DDP would wait for its gradients, and weight decay would shrink it.

        Args:
            branch: one that is trained.
        """
        if branch == "vit":
            self.vit_decoder.requires_grad_(False)
            return
        frozen = part_prefixes(self, ("decoder", *parts_for_decoder(self)))
        for name, parameter in self.named_parameters():  # nnU-Net's decoders hold the encoder, whose name comes first
            if name.startswith(frozen):
                parameter.requires_grad_(False)

    @property
    def trained_encoders(self) -> dict[str, nn.Module]:
        """The part of every branch that is trained which all terms of its loss reach."""
        return {name: self.get_submodule(self.transferred_parts[name][0]) for name in self.branches}

    @property
    def partner_prefixes(self) -> tuple[str, ...]:
        """Beginnings of the names of the partner's parameters."""
        parts = ("encoder", "decoder", "key_points", "vectors", "masking")
        return tuple(f"{part}." for part in parts if getattr(self, part) is not None)

    def forward(
        self, data: Volume, mask: CropMask, on_vit: Callable[[BranchOutput], None] | None = None
    ) -> CoPretrainingOutput:
        """Run the branches that are trained.

        Args:
            data: (B, C, D, H, W).
            mask: what is hidden of it (masking.crop_mask).
            on_vit: called with the ViT's output, if there is one, before the partner computes, so that work on it can
                start.
        """
        vit = self.forward_vit(data, mask) if "vit" in self.branches else None
        if vit is not None and on_vit is not None:
            on_vit(vit)
        partner = self.forward_partner(data, mask) if "partner" in self.branches else None
        return CoPretrainingOutput(vit=vit, partner=partner)

    def forward_vit(self, data: Volume, mask: CropMask) -> BranchOutput:
        """The ViT branch. Its key-point head sees zeros in the hidden places of the token grid.

        Args:
            data: whole crops (B, C, D, H, W).
            mask: what is hidden of them; the visible tokens are encoded.
        """
        tokens = self.vit_encoder(data, mask.visible)
        reconstruction = self.vit_decoder(tokens, mask.visible)
        grid = self.vit_encoder.grid
        background = torch.zeros(len(data), math.prod(grid), tokens.shape[-1], dtype=tokens.dtype, device=data.device)
        features = tokens_to_grid(scatter_tokens(tokens, mask.visible, background), grid)
        return _branch_output(reconstruction, [features], data.shape[1], self.vit_key_points, self.vit_vectors)

    def forward_partner(self, data: Volume, mask: CropMask) -> BranchOutput:
        """The partner's branch, on a crop whose hidden voxels are 0.

        Args:
            data: whole crops (B, C, D, H, W).
            mask: what is hidden of them.
        """
        if self.masking is None:
            features = self.encoder(data.masked_fill(mask.hidden, 0.0))
        else:
            features = self.masking(self.encoder, data, mask.hidden)
        reconstruction = cast(Tensor, self.decoder(features))
        stages = features[1:][-SCALES:]  # networks of few stages have fewer; full resolution is none of them
        return _branch_output(reconstruction, stages, data.shape[1], self.key_points, self.vectors)


def _branch_output(
    reconstruction: Volume,
    features: Sequence[Features],
    channels: int,
    key_points: KeyPointHead | None,
    vectors: VectorHead | None,
) -> BranchOutput:
    """Run the heads; what the decoder gives beyond the image's channels are boundaries."""
    return BranchOutput(
        reconstruction[:, :channels],
        None if key_points is None else key_points(features[-1]),
        None if vectors is None else vectors(features),
        reconstruction[:, channels:].sigmoid() if reconstruction.shape[1] > channels else None,
    )


def example_inputs(network: nn.Module, batch: int, device: torch.device | str) -> tuple[CropMask, ...]:
    """What the network's forward pass takes besides the crops: a random mask of the default ratio, or nothing.

    Args:
        network: only a :class:`CoPretrainingNetwork` takes more than the crops.
        batch: number of crops.
        device: where the mask is put.
    """
    if not isinstance(network, CoPretrainingNetwork):
        return ()
    generator = torch.Generator().manual_seed(0)
    mask = random_token_mask(batch, network.token_grid, PretrainingConfig().mask_ratio, generator)
    return (crop_mask(mask, network.token_size, device),)
