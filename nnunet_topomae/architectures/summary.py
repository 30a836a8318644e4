"""Parameters and multiply-accumulate operations (MACs) of a network."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_topomae.architectures.copretraining import example_inputs
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.types import Size3


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, input_shape: Sequence[int], *inputs: Any) -> int:
    """MACs of one forward pass of one sample: convolutions and matrix products, fused attention included.

    Nothing is computed and no memory is used: the pass runs on tensors without data.

    Args:
        network: any network of this package.
        input_shape: (C, D, H, W), or (C, H, W) in 2D.
        inputs: further arguments of ``forward``, on the device ``meta``.
    """
    weightless = {id(tensor): tensor.to("meta") for tensor in [*network.parameters(), *network.buffers()]}
    twin = copy.deepcopy(network, memo=weightless)
    data = torch.empty(1, *input_shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(data, *inputs)
    return int(counter.get_total_flops()) // 2


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: number of trainable parameters.
        macs: multiply-accumulate operations of a forward pass of one crop.
    """

    parameters: int
    macs: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e9:.2f} G MACs"


def measure_cost(network: nn.Module, in_channels: int, patch_size: Sequence[int]) -> Cost:
    """Parameters and MACs of any network, in co-pre-training with the default mask ratio.

    Args:
        network: takes crops (1, C, D, H, W), or (1, C, H, W) in 2D.
        in_channels: C.
        patch_size: voxels of a crop.
    """
    inputs = example_inputs(network, 1, "meta")
    return Cost(count_parameters(network), count_macs(network, (in_channels, *patch_size), *inputs))


def network_macs(network: nn.Module, shape: NetworkShape, in_channels: int) -> int:
    """MACs of one crop, in co-pre-training with the default mask ratio.

    Args:
        network: any network of this package in 3D.
        shape: gives the size of the crop.
        in_channels: image channels.
    """
    return measure_cost(network, in_channels, shape.patch_size).macs


def summary_line(network: nn.Module, shape: NetworkShape, cost: Cost) -> str:
    """One line for the log: what the rule chose and what the network costs.

    Args:
        network: gives the name of its class.
        shape: sizes from the rule.
        cost: from :func:`measure_cost`.
    """
    tokens = shape.token_grid[0] * shape.token_grid[1] * shape.token_grid[2]
    name = getattr(network, "name", type(network).__name__)
    return (
        f"{name}: patch {format_size(shape.patch_size)}, stem {format_size(shape.stem)}, "
        f"{len(shape.dims)} stages down to {format_size(shape.grids[-1])}, "
        f"{tokens} tokens of {format_size(shape.token_size)} voxels, {cost}"
    )


def format_size(size: Size3) -> str:
    """Three numbers with crosses: 96x96x96."""
    return "x".join(map(str, size))
