"""The network of masked co-pre-training: the same masked crop through a ViT autoencoder and through UNETR++."""

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.keypoint_head import KeyPointHead
from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.unetrpp import UNETRPPDecoder, UNETRPPEncoder
from nnunet_topomae.architectures.vit import ViTEncoder, scatter_tokens, tokens_to_grid, visible_index
from nnunet_topomae.masking import token_to_voxel_mask
from nnunet_topomae.types import KeyPoints, TokenMask, Volume


class BranchOutput(NamedTuple):
    """What one network predicts.

    Attributes:
        reconstruction: float32 (B, C, D, H, W), all voxels.
        key_points: float32 (B, 9, 3) in (-1, 1).
    """

    reconstruction: Volume
    key_points: KeyPoints


class CoPretrainingOutput(NamedTuple):
    """What the two networks predict."""

    vit: BranchOutput
    unetrpp: BranchOutput


class CoPretrainingNetwork(nn.Module):
    """ViT masked autoencoder and UNETR++, each with a key-point head (paper Fig. 1).

    Neither branch can read a hidden voxel: the ViT encodes visible tokens only, and UNETR++ sees hidden voxels as 0.
    """

    def __init__(
        self,
        vit_encoder: ViTEncoder,
        vit_decoder: MAEDecoder,
        vit_key_points: KeyPointHead,
        encoder: UNETRPPEncoder,
        decoder: UNETRPPDecoder,
        key_points: KeyPointHead,
    ) -> None:
        super().__init__()
        self.vit_encoder = vit_encoder
        self.vit_decoder = vit_decoder
        self.vit_key_points = vit_key_points
        self.encoder = encoder
        self.decoder = decoder
        self.key_points = key_points

    def forward(
        self, data: Volume, token_mask: TokenMask, on_vit: Callable[[BranchOutput], None] | None = None
    ) -> CoPretrainingOutput:
        """Run both branches.

        Args:
            data: (B, C, D, H, W).
            token_mask: True = hidden, equally many in every sample. A mask on the CPU avoids waiting for the GPU.
            on_vit: called with the ViT's output before UNETR++ computes, so that work on it can start.

        Raises:
            ValueError: samples hide different numbers of tokens, or all of them.
        """
        vit = self.forward_vit(data, token_mask)
        if on_vit is not None:
            on_vit(vit)
        return CoPretrainingOutput(vit=vit, unetrpp=self.forward_unetrpp(data, token_mask))

    def forward_vit(self, data: Volume, token_mask: TokenMask) -> BranchOutput:
        """The ViT branch. Its key-point head sees zeros in the hidden places of the token grid."""
        tokens = self.vit_encoder(data, token_mask)
        reconstruction = self.vit_decoder(tokens, token_mask)
        index = visible_index(token_mask).to(data.device)
        grid = self.vit_encoder.grid
        background = torch.zeros(len(data), math.prod(grid), tokens.shape[-1], dtype=tokens.dtype, device=data.device)
        features = tokens_to_grid(scatter_tokens(tokens, index, background), grid)
        return BranchOutput(reconstruction, self.vit_key_points(features))

    def forward_unetrpp(self, data: Volume, token_mask: TokenMask) -> BranchOutput:
        """The UNETR++ branch, on a crop whose hidden voxels are 0."""
        hidden = token_to_voxel_mask(token_mask.to(data.device), self.vit_encoder.token_size)
        features = self.encoder(data.masked_fill(hidden, 0.0))
        reconstruction = cast(Tensor, self.decoder(features))
        return BranchOutput(reconstruction, self.key_points(features[-1]))
