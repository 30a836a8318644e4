"""Vision transformer on anisotropic 3D tokens, the encoder of the masked autoencoder (Sec. II; Zhou et al. 2023)."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from nnunet_topomae.architectures.layers import SMALL_STD, Features, initialise_weights
from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.masking import patchify
from nnunet_topomae.types import Size3, Volume

Tokens = Float[Tensor, "B N E"]


@dataclass(frozen=True)
class ViTPreset:
    """Size of the ViT encoder and of the light decoder that completes it to an autoencoder."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


# Paper is silent on the ViT's size. `default` brings the fusion network near the 85.96 M parameters of Table I;
# `base` is the encoder and the decoder of Zhou et al. 2023.
VIT_PRESETS: dict[str, ViTPreset] = {
    "tiny": ViTPreset(width=192, depth=4, heads=3, decoder_width=96, decoder_depth=1, decoder_heads=3),
    "small": ViTPreset(width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=6),
    "default": ViTPreset(width=512, depth=12, heads=8, decoder_width=256, decoder_depth=4, decoder_heads=8),
    "base": ViTPreset(width=768, depth=12, heads=12, decoder_width=384, decoder_depth=8, decoder_heads=12),
}


class ViTEncoder(nn.Module):
    """Pre-norm transformer over the tokens of a crop.

    Args:
        grid: tokens along (D, H, W).
        token_size: voxels of a token.
        in_channels: image channels.
        preset: width, depth and heads.
        drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
    """

    resampled_as: ClassVar = {"patch_embedding.weight": Resampling.TOKEN_EMBEDDING}
    layers_from_input: ClassVar = ("blocks",)
    after_layers: ClassVar = ("norm",)
    positions: Tensor

    def __init__(
        self, grid: Size3, token_size: Size3, in_channels: int, preset: ViTPreset, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.grid = grid
        self.token_size = token_size
        voxels = in_channels * token_size[0] * token_size[1] * token_size[2]
        self.patch_embedding = nn.Linear(voxels, preset.width)
        self.register_buffer("positions", sincos_position_embedding(grid, preset.width), persistent=False)
        rates = [drop_path * index / max(preset.depth - 1, 1) for index in range(preset.depth)]
        self.blocks = transformer_blocks(preset.width, preset.heads, rates)
        self.norm = nn.LayerNorm(preset.width)
        self.apply(initialise_weights)

    def forward(self, data: Volume, visible: Int[Tensor, "B V"] | None = None) -> Tokens:
        """Encode a crop.

        Args:
            data: (B, C, D, H, W).
            visible: raster numbers of the visible tokens; the others are left out of the computation.

        Returns:
            The encoded tokens, in raster order: all of them, or only the visible ones.
        """
        if visible is None:
            tokens = self._embed(data)
        else:
            voxels = gather_tokens(patchify(data, self.token_size), visible)
            positions = gather_tokens(self.positions.expand(len(data), -1, -1), visible)
            tokens = self.patch_embedding(voxels) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))

    def forward_taps(self, data: Volume, taps: int = 4) -> list[Features]:
        """Encode a whole crop and return what ``taps`` evenly spaced layers give, the last after the final norm.

        Four taps of twelve layers are those of UNETR: 3, 6, 9 and 12.

        Args:
            data: (B, C, D, H, W), nothing hidden.
            taps: number of feature maps, at most the number of layers.

        Returns:
            Feature maps (B, E, d, h, w), first layer first.

        Raises:
            ValueError: more taps than layers.
        """
        depth = len(self.blocks)
        if not 1 <= taps <= depth:
            raise ValueError(f"{taps} taps of a ViT of {depth} layers; choose a deeper topomae.architecture.vit")
        layers = [depth * (tap + 1) // taps for tap in range(taps)]
        tokens = self._embed(data)
        outputs = []
        for layer, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if layer in layers:
                outputs.append(tokens if layer < depth else self.norm(tokens))
        return [tokens_to_grid(output, self.grid) for output in outputs]

    def _embed(self, data: Volume) -> Tokens:
        return cast(Tensor, self.patch_embedding(patchify(data, self.token_size))) + self.positions


def transformer_blocks(width: int, heads: int, drop_path: list[float]) -> nn.ModuleList:
    """Pre-norm transformer blocks with four times wider MLPs, one for every drop-path rate.

    Args:
        width: channels of a token.
        heads: attention heads, a divisor of ``width``.
        drop_path: stochastic depth of each block, first layer first.
    """
    return nn.ModuleList(Block(width, heads, mlp_ratio=4.0, qkv_bias=True, drop_path=rate) for rate in drop_path)


def sincos_position_embedding(grid: Size3, width: int) -> Float[Tensor, "N E"]:
    """Fixed position embedding: sines and cosines of the three token coordinates, in raster order.

    Each axis gets ``width // 6`` frequencies ``10000^(-i / (width // 6))`` and fills two sixths of the channels: sines,
    then cosines. Channels that are left over because 6 does not divide ``width`` stay zero.

    Args:
        grid: tokens along (D, H, W).
        width: channels E of a token.

    Raises:
        ValueError: fewer than six channels.
    """
    frequencies = width // 6
    if frequencies == 0:
        raise ValueError(f"a 3D sine-cosine embedding needs at least 6 channels, got {width}")
    omega = 10000.0 ** (-torch.arange(frequencies, dtype=torch.float64) / frequencies)
    axes = [torch.arange(size, dtype=torch.float64) for size in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (d, h, w, 3)
    angles = coordinates[..., None] * omega  # (d, h, w, 3, F)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (d, h, w, 3, 2F)
    embedding = waves.flatten(3).flatten(0, 2)  # -> (d, h, w, 6F) -> (N, 6F)
    return nn.functional.pad(embedding, (0, width - 6 * frequencies)).float()


def gather_tokens(tokens: Float[Tensor, "B N E"], index: Int[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
    """The tokens with the given raster numbers.

    Args:
        tokens: (B, N, E), all tokens of a crop in raster order.
        index: raster numbers (B, V); they may differ between samples.
    """
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(
    tokens: Float[Tensor, "B V E"], index: Int[Tensor, "B V"], background: Float[Tensor, "B N E"]
) -> Float[Tensor, "B N E"]:
    """Put tokens back to their raster numbers, over a background.

    Args:
        tokens: (B, V, E).
        index: raster number (B, V) of each of them.
        background: (B, N, E), what stands in the other places; its type becomes that of ``tokens``.
    """
    return background.to(tokens.dtype).scatter(1, index[..., None].expand_as(tokens), tokens)


def tokens_to_grid(tokens: Float[Tensor, "B N E"], grid: Size3) -> Float[Tensor, "B E d h w"]:
    """Tokens in raster order as a feature map (B, E, d, h, w).

    Args:
        tokens: (B, N, E), all tokens of the grid.
        grid: tokens along (D, H, W).
    """
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)  # (B, N, E) -> (B, E, d, h, w)


def new_token(width: int) -> nn.Parameter:
    """A learned token (1, 1, E)."""
    token = nn.Parameter(torch.empty(1, 1, width))
    nn.init.trunc_normal_(token, std=SMALL_STD)
    return token
