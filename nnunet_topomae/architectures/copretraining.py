"""The network of masked co-pre-training: the same masked crop through a ViT autoencoder and through UNETR++."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.keypoint_head import KeyPointHead
from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.unetrpp import UNETRPPDecoder, UNETRPPEncoder
from nnunet_topomae.architectures.vit import ViTEncoder, scatter_tokens, tokens_to_grid
from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.masking import CropMask, crop_mask, random_token_mask
from nnunet_topomae.types import KeyPoints, Volume

Branch = Literal["vit", "unetrpp"]
BRANCHES: tuple[Branch, ...] = ("vit", "unetrpp")


class BranchOutput(NamedTuple):
    """What one network predicts.

    Attributes:
        reconstruction: float32 (B, C, D, H, W), all voxels.
        key_points: float32 (B, 9, 3) in (-1, 1).
    """

    reconstruction: Volume
    key_points: KeyPoints


class CoPretrainingOutput(NamedTuple):
    """What the two networks predict; None for a network that is left out."""

    vit: BranchOutput | None
    unetrpp: BranchOutput | None

    def present(self) -> dict[str, BranchOutput]:
        """The outputs of the networks that computed, by name."""
        return {name: branch for name, branch in self._asdict().items() if branch is not None}


class CoPretrainingNetwork(nn.Module):
    """ViT masked autoencoder and UNETR++, each with a key-point head (paper Fig. 2).

    Neither branch can read a hidden voxel: the ViT encodes visible tokens only, and UNETR++ sees hidden voxels as 0.

    A branch that is not in ``branches`` keeps its initial weights: it does not compute, and its parameters ask for no
    gradient, so the optimiser, weight decay and DDP leave them out. They stay in the state dict.

    Attributes:
        transferred_parts: the encoders that fine-tuning takes over, by the plan's `topomae.finetuning.transfer_parts`.
        pretraining_parts: what serves pre-training alone.
        former_parts: what checkpoints of earlier versions also hold, in its initial state.

    Args:
        vit_encoder: encoder of the visible tokens.
        vit_decoder: decoder of the masked autoencoder.
        vit_key_points: key-point head on the ViT's features.
        encoder: encoder of UNETR++.
        decoder: decoder of UNETR++ with one image head.
        key_points: key-point head on UNETR++'s deepest features.
        branches: the networks that compute and are trained.

    Raises:
        ValueError: no branch, or an unknown one.
    """

    transferred_parts: ClassVar = {"vit": ("vit_encoder",), "partner": ("encoder", "decoder")}
    pretraining_parts: ClassVar = ("vit_decoder", "vit_key_points", "key_points")
    former_parts: ClassVar = ("fusion",)

    def __init__(
        self,
        vit_encoder: ViTEncoder,
        vit_decoder: MAEDecoder,
        vit_key_points: KeyPointHead,
        encoder: UNETRPPEncoder,
        decoder: UNETRPPDecoder,
        key_points: KeyPointHead,
        branches: Sequence[Branch] = BRANCHES,
    ) -> None:
        super().__init__()
        self.vit_encoder = vit_encoder
        self.vit_decoder = vit_decoder
        self.vit_key_points = vit_key_points
        self.encoder = encoder
        self.decoder = decoder
        self.key_points = key_points
        self.branches = tuple(branches)
        if not self.branches or not set(self.branches) <= set(BRANCHES):
            raise ValueError(f"branches must be one or both of {', '.join(BRANCHES)}, got {self.branches}")
        parts: dict[Branch, tuple[nn.Module, ...]] = {
            "vit": (vit_encoder, vit_decoder, vit_key_points),
            "unetrpp": (encoder, decoder, key_points),
        }
        for name in set(BRANCHES) - set(self.branches):
            for module in parts[name]:
                module.requires_grad_(False)

    def forward(
        self, data: Volume, mask: CropMask, on_vit: Callable[[BranchOutput], None] | None = None
    ) -> CoPretrainingOutput:
        """Run the branches that are trained.

        Args:
            data: (B, C, D, H, W).
            mask: what is hidden of it (masking.crop_mask).
            on_vit: called with the ViT's output, if there is one, before UNETR++ computes, so that work on it can
                start.
        """
        vit = self.forward_vit(data, mask) if "vit" in self.branches else None
        if vit is not None and on_vit is not None:
            on_vit(vit)
        unetrpp = self.forward_unetrpp(data, mask) if "unetrpp" in self.branches else None
        return CoPretrainingOutput(vit=vit, unetrpp=unetrpp)

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
        return BranchOutput(reconstruction, self.vit_key_points(features))

    def forward_unetrpp(self, data: Volume, mask: CropMask) -> BranchOutput:
        """The UNETR++ branch, on a crop whose hidden voxels are 0.

        Args:
            data: whole crops (B, C, D, H, W).
            mask: what is hidden of them.
        """
        features = self.encoder(data.masked_fill(mask.hidden, 0.0))
        reconstruction = cast(Tensor, self.decoder(features))
        return BranchOutput(reconstruction, self.key_points(features[-1]))


def example_inputs(network: nn.Module, batch: int, device: torch.device | str) -> tuple[CropMask, ...]:
    """What the network's forward pass takes besides the crops: a random mask of the default ratio, or nothing.

    Args:
        network: only a :class:`CoPretrainingNetwork` takes more than the crops.
        batch: number of crops.
        device: where the mask is put.
    """
    if not isinstance(network, CoPretrainingNetwork):
        return ()
    encoder = network.vit_encoder
    generator = torch.Generator().manual_seed(0)
    mask = random_token_mask(batch, encoder.grid, PretrainingConfig().mask_ratio, generator)
    return (crop_mask(mask, encoder.token_size, device),)
