"""Networks inside nnU-Net's wrappers, several GPUs, and the memory of a GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from nnunet_topomae.training.record import add_facts, average_terms


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside nnU-Net's DDP and torch.compile wrappers."""
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    return getattr(inner, "_orig_mod", inner)


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized()


def average_terms_of_all_gpus(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the averages of all processes of a distributed training; each calls this with its own steps."""
    gathered: list[dict[str, float]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, average_terms(steps))
    return average_terms(gathered)


def decided_by_first(value: Any) -> Any:
    """What the first process of a distributed training says; all processes call this, also where there is only one.

    Args:
        value: of this process; small.
    """
    if not is_distributed():
        return value
    shared = [value]
    distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def record_gpu_memory(trainer: Any) -> None:
    """Write torch's largest allocation to a training's ``training.json`` and log; nothing on the CPU."""
    if trainer.device.type == "cuda" and trainer.local_rank == 0:
        peak = torch.cuda.max_memory_allocated(trainer.device)
        add_facts(Path(trainer.output_folder), {"peak_gpu_bytes": int(peak)})
        trainer.print_to_log_file(f"peak GPU memory {peak / 1e9:.2f} GB")
