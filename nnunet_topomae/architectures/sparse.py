"""Convolutions that skip hidden voxels: an encoder of nnU-Net's that sees a masked crop as it sees a whole one.

With hidden voxels set to 0, half of a convolution's input is 0 in pre-training and never again, InstanceNorm averages
the zeros, and deep features know the shape of the mask. Tian et al. 2023 (SparK) avoid this: after every convolution
the hidden cells are set to 0 again, norms take their statistics from visible cells only, and the decoder gets a learned
mask token where nothing is visible. The code is our own.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_topomae.architectures.layers import SMALL_STD, Features
from nnunet_topomae.types import Volume, VoxelMask


class VisibleCells:
    """Which cells of the crops in work hold a visible voxel, on the grid of any feature map.

    One object belongs to one network. Outside of pre-training it says nothing, and all layers compute as usual.
    """

    def __init__(self) -> None:
        self.visible: Tensor | None = None

    def at(self, features: Features) -> Tensor | None:
        """1 where a cell holds a visible voxel, else 0; None where nothing is masked.

        Args:
            features: (B, C, d, h, w), of a grid that divides the crop.

        Returns:
            (B, 1, d, h, w) of the type of ``features``.
        """
        if self.visible is None:
            return None
        size = features.shape[2:]
        cells = self.visible if self.visible.shape[2:] == size else functional.adaptive_max_pool3d(self.visible, size)
        return cells.to(features.dtype)


class HideAgain:
    """A forward hook that sets hidden cells of a layer's output to 0."""

    def __init__(self, cells: VisibleCells) -> None:
        self.cells = cells

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """The output without hidden cells."""
        cells = self.cells.at(output)
        return output if cells is None else output * cells


class VisibleInstanceNorm(nn.InstanceNorm3d):
    """InstanceNorm whose mean and variance are those of the visible cells; hidden cells are 0 afterwards."""

    cells: VisibleCells

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, d, h, w), in float32."""
        cells = self.cells.at(features)
        if cells is None:
            return super().forward(features)
        values, weights = features.float(), cells.float()
        axes = (2, 3, 4)
        count = weights.sum(axes, keepdim=True).clamp(min=1.0)
        mean = (values * weights).sum(axes, keepdim=True) / count
        centred = (values - mean) * weights
        normed = centred * torch.rsqrt(centred.square().sum(axes, keepdim=True) / count + self.eps)
        if self.affine:
            per_channel = (1, -1, 1, 1, 1)
            normed = normed * self.weight.float().view(per_channel) + self.bias.float().view(per_channel) * weights
        return normed.to(features.dtype)


class SparseMasking(nn.Module):
    """Runs an encoder on the visible voxels only.

    The encoder's convolutions and norms are prepared once. Its weights keep their names, and without a mask it computes
    as before.

    Args:
        encoder: of nnU-Net, with ``output_channels``; it is changed in place.

    Raises:
        ValueError: a layer whose statistics would include hidden voxels.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.cells = VisibleCells()
        channels = cast("Sequence[int]", encoder.output_channels)
        self.tokens = nn.ParameterList(torch.empty(1, count, 1, 1, 1) for count in channels)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=SMALL_STD)
        self.no_decay = tuple(f"tokens.{number}" for number in range(len(channels)))
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(HideAgain(self.cells))
            elif type(module) is nn.InstanceNorm3d:
                module.__class__ = VisibleInstanceNorm
                cast(VisibleInstanceNorm, module).cells = self.cells
            elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                raise ValueError(
                    f"pretraining.partner_masking = 'sparse' knows InstanceNorm only, and {name} of the plan's network "
                    f"is a {type(module).__name__}. Set it to 'zero'."
                )

    def forward(self, encoder: nn.Module, data: Volume, hidden: VoxelMask) -> list[Features]:
        """Features of masked crops, with a mask token in every cell without a visible voxel.

        Args:
            encoder: the one that was prepared.
            data: crops (B, C, D, H, W); hidden voxels are not looked at.
            hidden: (B, 1, D, H, W), True = hidden.

        Returns:
            Feature maps, fine to coarse.
        """
        self.cells.visible = (~hidden).float()
        features = encoder(data.masked_fill(hidden, 0.0))
        filled = []
        for level, token in zip(features, self.tokens, strict=True):
            cells = self.cells.at(level)
            assert cells is not None
            filled.append(level + token.to(level.dtype) * (1.0 - cells))
        self.cells.visible = None
        return filled
