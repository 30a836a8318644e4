"""Small building blocks that the networks share."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.types import Size3

LEAKY_SLOPE = 0.01
SMALL_STD = 0.02

# Feature maps of any scale: only the batch size ties them to other arguments.
Features = Float[Tensor, "B _ _ _ _"]


def residual_block(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3x3x3 convolutions with InstanceNorm, LeakyReLU and a skip connection."""
    block = BasicBlockD(
        nn.Conv3d,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=1,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"negative_slope": LEAKY_SLOPE, "inplace": True},
    )
    return cast(nn.Module, block)


class Downsampling(nn.Conv3d):
    """Convolution with kernel = stride."""

    resampled_as: ClassVar = {"weight": Resampling.READS_FIELD}

    def __init__(self, in_channels: int, out_channels: int, stride: Size3, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=stride, stride=stride, bias=bias)


class Upsampling(nn.ConvTranspose3d):
    """Transposed convolution with kernel = stride."""

    resampled_as: ClassVar = {"weight": Resampling.WRITES_FIELD}

    def __init__(self, in_channels: int, out_channels: int, stride: Size3, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=stride, stride=stride, bias=bias)


def downsample(in_channels: int, out_channels: int, stride: Size3) -> nn.Sequential:
    """Strided convolution, then InstanceNorm.

    Args:
        in_channels: of the finer features.
        out_channels: of the coarser features.
        stride: factors along (D, H, W), also the size of the kernel.
    """
    return nn.Sequential(Downsampling(in_channels, out_channels, stride), nn.InstanceNorm3d(out_channels, affine=True))


class Pointwise(nn.Conv3d):
    """1x1x1 convolution that ends a residual branch or projects features.

    Args:
        in_channels: channels of its input.
        out_channels: channels of its output.
        gain: initial ratio of the standard deviations of output and input. With 1 / sqrt(n) in each of n residual
            branches in a row, all of them together double the variance.
    """

    def __init__(self, in_channels: int, out_channels: int, gain: float = 1.0):
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.gain = gain


class SegmentationHead(nn.Conv3d):
    """1x1x1 convolution from features to logits. It starts at full scale, as in nnU-Net.

    Adam moves a weight by at most about the learning rate per step. A head that starts near zero therefore needs
    hundreds of steps to reach the scale of useful logits, and everything before it waits for its gradient.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)


class ReconstructionHead(nn.Conv3d):
    """1x1x1 convolution from features to intensities, in float32 even inside autocast.

    It starts small: near 0, the mean of normalised intensities.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Intensities (B, C, D, H, W) from features (B, F, D, H, W)."""
        return run_in_float32(super().forward, features)


def run_in_float32(module: Callable[[Tensor], Any], inputs: Tensor) -> Tensor:
    """Run ``module`` in float32 even inside autocast.

    Args:
        module: a layer with float32 weights, or its forward pass.
        inputs: converted to float32 first.

    Returns:
        The float32 output.
    """
    device = inputs.device.type
    if not torch.amp.is_autocast_available(device):
        return cast(Tensor, module(inputs.float()))
    with torch.autocast(device_type=device, enabled=False):
        return cast(Tensor, module(inputs.float()))


def use_channels_last(network: nn.Module) -> None:
    """Store the weights of 3D convolutions with the channels last, in place; no result changes.

    A convolution then computes in this layout, whatever the layout of its input. On CPUs this is faster, except for
    1x1x1 kernels, which keep their layout (docs/studies.md). On GPUs the libraries choose for themselves.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and max(module.kernel_size) > 1:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def initialise_weights(module: nn.Module) -> None:
    """Set the weights of one layer; use with ``nn.Module.apply``.

    Linear layers: Xavier, as in masked autoencoders; the last ones of a network set their own scale. Unit gain, a
    standard deviation of 1 / sqrt(input channels), for :class:`SegmentationHead` and for transposed convolutions with
    kernel = stride, of which every output voxel sees each input channel once; likewise for :class:`Pointwise`, times
    its own gain. :class:`ReconstructionHead`: 0.02, truncated normal. Other convolutions: Kaiming. Biases: zero.
    docs/recipe.md shows what these scales are worth.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, ReconstructionHead):
        nn.init.trunc_normal_(module.weight, std=SMALL_STD)
    elif isinstance(module, Pointwise | SegmentationHead | nn.ConvTranspose3d):
        gain = module.gain if isinstance(module, Pointwise) else 1.0
        nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_channels))
    elif isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
