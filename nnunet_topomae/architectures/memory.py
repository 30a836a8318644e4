"""How much memory the two trainings need, from tensors without data: nothing is computed or allocated.

The tensors that autograd keeps for the backward pass are counted one by one, each storage once, on the device `meta`.
Around them stand the weights with their gradients and AdamW's averages, the gradients in flight at the widest place,
the loss's copies of the output, and what the CUDA libraries take for themselves.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.copretraining import example_inputs
from nnunet_topomae.architectures.partner import PlannedNetwork
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.config import ArchitectureConfig

GIB = 2**30
# CUDA context, cuDNN's workspaces and the allocator's unused blocks.
RESERVED_BYTES = GIB
# float32 weight, gradient and AdamW's two averages; mixed precision adds a half-precision copy of the weight.
WEIGHT_BYTES, MIXED_WEIGHT_BYTES = 16, 18
# Activations in mixed precision over those in float32: norms, softmax and residual sums stay in float32.
MIXED_SHARE = 0.8
# Gradients in flight while the widest layer runs backwards, in units of the largest kept tensor.
IN_FLIGHT = 2
# Copies of the output while the loss is computed: itself, softmax, log-softmax and its gradient, in float32.
OUTPUT_COPIES = 4
_PROBE_BATCH = 2  # some norms refuse a single value


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one training in bytes.

    Attributes:
        fixed: weights, their gradients and averages, and the libraries.
        per_sample: kept activations and gradients in flight of one crop.
    """

    fixed: int
    per_sample: int

    def total(self, batch_size: int) -> int:
        """Bytes with ``batch_size`` crops."""
        return self.fixed + batch_size * self.per_sample


def estimate_pretraining(
    shape: NetworkShape,
    architecture: ArchitectureConfig,
    channels: int,
    mixed_precision: bool = True,
    planned: PlannedNetwork | None = None,
    masking: Literal["zero", "sparse"] = "zero",
) -> TrainingMemory:
    """Memory of co-pre-training with the default mask ratio.

    Args:
        shape: shape of both networks.
        architecture: what they are made of.
        channels: input channels.
        mixed_precision: half precision where nnU-Net uses it, that is on CUDA.
        planned: builds the plan's own network where that is the partner.
        masking: how the partner is kept from hidden voxels; `sparse` keeps more tensors.
    """
    return _estimate(
        lambda: build_copretraining_network(shape, channels, architecture, planned=planned, masking=masking),
        shape,
        channels,
        2 * channels,
        mixed_precision,
    )


def estimate_finetuning(
    shape: NetworkShape,
    architecture: ArchitectureConfig,
    channels: int,
    classes: int,
    mixed_precision: bool = True,
    planned: PlannedNetwork | None = None,
) -> TrainingMemory:
    """Memory of training the fusion network with deep supervision.

    Args:
        shape: shape of both networks.
        architecture: what they are made of.
        channels: input channels.
        classes: output channels, background included.
        mixed_precision: half precision where nnU-Net uses it, that is on CUDA.
        planned: builds the plan's own network where that is the partner.
    """
    return _estimate(
        lambda: build_fusion_network(shape, channels, classes, architecture, deep_supervision=True, planned=planned),
        shape,
        channels,
        classes,
        mixed_precision,
    )


def saved_tensor_bytes(network: nn.Module, data: Tensor) -> tuple[int, int]:
    """Bytes of all tensors that autograd keeps in one forward pass, and of the largest; weights do not count.

    Args:
        network: a network of this package, on the device of ``data``.
        data: (B, C, D, H, W).
    """
    weights = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # holding a storage keeps its address from being used again

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage

    fused = _FusedAttention() if data.is_meta else nullcontext()
    with saved_tensors_hooks(keep, _no_backward), fused:
        network(data, *example_inputs(network, len(data), data.device))
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes), max(sizes)


def _no_backward(packed: None) -> Tensor:
    raise RuntimeError("the tensors were counted, not kept: there is no backward pass")


class _KeepsInputsAndOutput(torch.autograd.Function):
    """Attention without data, for the tensors that a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sums = query.new_empty(query.shape[:-1])  # of the softmax, one per query
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output


class _FusedAttention(TorchFunctionMode):
    """Without data, torch takes the attention that keeps all pairs of tokens; with data a fused kernel, that does not.

    Attention with dropout does not count as fused: not every device has a kernel for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and not (kwargs or {}).get("dropout_p"):
            return _KeepsInputsAndOutput.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def _estimate(
    build: Callable[[], nn.Module], shape: NetworkShape, channels: int, outputs: int, mixed_precision: bool
) -> TrainingMemory:
    with torch.device("meta"):
        network = build()
        data = torch.empty(_PROBE_BATCH, channels, *shape.patch_size)
    kept, largest = saved_tensor_bytes(network, data)
    weights = sum(parameter.numel() for parameter in network.parameters())
    loss = 4 * OUTPUT_COPIES * outputs * math.prod(shape.patch_size)
    share = MIXED_SHARE if mixed_precision else 1.0
    return TrainingMemory(
        fixed=RESERVED_BYTES + weights * (MIXED_WEIGHT_BYTES if mixed_precision else WEIGHT_BYTES),
        per_sample=int(share * (kept + IN_FLIGHT * largest) / _PROBE_BATCH) + loss,
    )
