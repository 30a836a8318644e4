"""Parameters and multiply-accumulate operations (MACs) of a network."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.masking import random_token_mask
from nnunet_topomae.types import Size3


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, input_shape: tuple[int, int, int, int], *inputs: Any) -> int:
    """MACs of one forward pass of one sample: convolutions and matrix products, fused attention included.

    Nothing is computed and no memory is used: the pass runs on tensors without data.

    Args:
        network: any network of this package.
        input_shape: (C, D, H, W).
        inputs: further arguments of ``forward``.
    """
    weightless = {id(tensor): tensor.to("meta") for tensor in [*network.parameters(), *network.buffers()]}
    twin = copy.deepcopy(network, memo=weightless)
    data = torch.empty(1, *input_shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(data, *inputs)
    return int(counter.get_total_flops()) // 2


def network_macs(network: nn.Module, shape: NetworkShape, in_channels: int) -> int:
    """MACs of one crop, in co-pre-training with the default mask ratio."""
    inputs: tuple[Tensor, ...] = ()
    if isinstance(network, CoPretrainingNetwork):
        ratio = PretrainingConfig().mask_ratio
        inputs = (random_token_mask(1, shape.token_grid, ratio, torch.Generator().manual_seed(0)),)
    return count_macs(network, (in_channels, *shape.patch_size), *inputs)


def summary_line(network: nn.Module, shape: NetworkShape, in_channels: int) -> str:
    """One line for the log: what the rule chose and what the network costs."""
    tokens = shape.token_grid[0] * shape.token_grid[1] * shape.token_grid[2]
    return (
        f"{type(network).__name__}: patch {format_size(shape.patch_size)}, stem {format_size(shape.stem)}, "
        f"{len(shape.dims)} stages down to {format_size(shape.grids[-1])}, "
        f"{tokens} tokens of {format_size(shape.token_size)} voxels, "
        f"{count_parameters(network) / 1e6:.2f} M parameters, "
        f"{network_macs(network, shape, in_channels) / 1e9:.2f} G MACs"
    )


def cost_line(network: nn.Module, input_shape: tuple[int, int, int, int]) -> str:
    """Parameters and MACs of any network, in the words of `summary_line`."""
    macs = count_macs(network, input_shape) / 1e9
    return f"{count_parameters(network) / 1e6:.2f} M parameters, {macs:.2f} G MACs"


def format_size(size: Size3) -> str:
    """Three numbers with crosses: 96x96x96."""
    return "x".join(map(str, size))
