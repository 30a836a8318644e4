import math

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.memory import (
    GIB,
    RESERVED_BYTES,
    WEIGHT_BYTES,
    TrainingMemory,
    estimate_finetuning,
    estimate_pretraining,
    saved_tensor_bytes,
)
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.config import ArchitectureConfig


def test_kept_tensors_of_a_small_network_by_hand(four_stages: NetworkShape) -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 5 * 6, 7))
    data = torch.rand(2, 2, 4, 5, 6)
    kept, largest = saved_tensor_bytes(network, data)
    # The convolution keeps its input, ReLU its output, which the linear layer shares.
    assert kept == 4 * (2 * 2 * 120 + 2 * 3 * 120)
    assert largest == 4 * 2 * 3 * 120


@pytest.mark.slow
@pytest.mark.parametrize("training", ["pre-training", "fine-tuning"])
def test_estimate_without_data_is_what_real_tensors_keep(
    training: str, shape: NetworkShape, architecture: ArchitectureConfig
) -> None:
    if training == "pre-training":
        build = lambda: build_copretraining_network(shape, 2, architecture)  # noqa: E731
        estimate = estimate_pretraining(shape, architecture, 2, mixed_precision=False)
    else:
        build = lambda: build_fusion_network(shape, 2, 5, architecture, True)  # noqa: E731
        estimate = estimate_finetuning(shape, architecture, 2, 5, mixed_precision=False)
    network = build()
    kept, largest = saved_tensor_bytes(network, torch.randn(3, 2, *shape.patch_size))
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert estimate.fixed == RESERVED_BYTES + weights * WEIGHT_BYTES
    loss = 4 * 4 * (4 if training == "pre-training" else 5) * math.prod(shape.patch_size)
    assert 3 * (estimate.per_sample - loss) == pytest.approx(kept + 2 * largest, rel=0.05)


@pytest.mark.slow
def test_channels_classes_and_precision_move_the_estimate_the_right_way(
    four_stages: NetworkShape, architecture: ArchitectureConfig
) -> None:
    base = estimate_finetuning(four_stages, architecture, 1, 2)
    assert estimate_finetuning(four_stages, architecture, 4, 2).per_sample > base.per_sample
    assert estimate_finetuning(four_stages, architecture, 1, 20).per_sample > base.per_sample
    assert estimate_finetuning(four_stages, architecture, 1, 2, mixed_precision=False).per_sample > base.per_sample


def test_memory_grows_with_the_batch() -> None:
    memory = TrainingMemory(fixed=2 * GIB, per_sample=GIB)
    assert memory.total(3) == 5 * GIB
