"""The light decoder that completes the ViT encoder to a masked autoencoder (paper Sec. II; Zhou et al. 2023)."""

import math
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunet_topomae.architectures.layers import SMALL_STD, initialise_weights, run_in_float32
from nnunet_topomae.architectures.vit import (
    ViTPreset,
    new_token,
    scatter_tokens,
    sincos_position_embedding,
    transformer_blocks,
)
from nnunet_topomae.masking import unpatchify
from nnunet_topomae.types import Size3, Volume


class MAEDecoder(nn.Module):
    """Rebuild the crop from the encoded visible tokens and a learned mask token in every hidden place.

    The last linear layer runs in float32: half precision would quantise the intensities. It starts small, as
    :class:`~nnunet_topomae.architectures.layers.ReconstructionHead` does: near 0, the mean of normalised intensities.

    Args:
        grid: tokens along (D, H, W).
        token_size: voxels of a token.
        out_channels: image channels.
        preset: width of the encoder; width, depth and heads of the decoder.
    """

    no_decay: ClassVar = ("mask_token",)
    positions: Tensor

    def __init__(self, grid: Size3, token_size: Size3, out_channels: int, preset: ViTPreset) -> None:
        super().__init__()
        self.grid = grid
        self.token_size = token_size
        width = preset.decoder_width
        self.embedding = nn.Linear(preset.width, width)
        self.mask_token = new_token(width)
        self.register_buffer("positions", sincos_position_embedding(grid, width), persistent=False)
        self.blocks = transformer_blocks(width, preset.decoder_heads, [0.0] * preset.decoder_depth)
        self.norm = nn.LayerNorm(width)
        self.prediction = nn.Linear(width, out_channels * math.prod(token_size))
        self.apply(initialise_weights)
        nn.init.trunc_normal_(self.prediction.weight, std=SMALL_STD)

    def forward(self, tokens: Float[Tensor, "B V E"], visible: Int[Tensor, "B V"]) -> Volume:
        """Reconstruct all voxels, hidden and visible.

        Args:
            tokens: the encoded visible tokens in raster order.
            visible: their raster numbers, as the encoder was given them.

        Returns:
            float32 (B, C, D, H, W).
        """
        background = self.mask_token.expand(len(tokens), math.prod(self.grid), -1)
        decoded = scatter_tokens(self.embedding(tokens), visible, background) + self.positions
        for block in self.blocks:
            decoded = block(decoded)
        return unpatchify(run_in_float32(self.prediction, self.norm(decoded)), self.grid, self.token_size)
