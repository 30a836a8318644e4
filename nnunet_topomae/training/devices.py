"""Networks inside nnU-Net's wrappers, several GPUs, and the memory of a GPU."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet_module
import torch
from torch import distributed, nn

from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.training.record import add_facts, average_terms

Value = TypeVar("Value")


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside nnU-Net's DDP and torch.compile wrappers."""
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    return getattr(inner, "_orig_mod", inner)


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized()


def processes_of_this_machine() -> int:
    """How many processes of a training share this machine; nnU-Net's `-num_gpus` knows only one machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size())) if is_distributed() else 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's generator of the CPU and that of a device, which dropout draws from.

    Args:
        device: of the network.
        seed: not negative.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def keep_to_thread_limit(device: torch.device) -> None:
    """Compute on a CPU with no more threads than `OMP_NUM_THREADS` allows.

    nnU-Net's command takes all cores whatever that says, so that trainings side by side get in each other's way.

    Args:
        device: of the network; nothing changes unless it is a CPU.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if device.type == "cpu" and limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))


def own_device(asked: torch.device) -> torch.device:
    """The device of this process in a distributed training, for which nnU-Net takes the GPU with the process's number.

    That number is too large on the second machine, and there may be no GPU at all.

    Args:
        asked: kind of the device; for `cuda`, the process has chosen its GPU already.
    """
    return torch.device("cuda", torch.cuda.current_device()) if asked.type == "cuda" else asked


@contextmanager
def parallel_on_own_device() -> Iterator[None]:
    """In this block, nnU-Net makes networks parallel on the device that they are on, see :func:`own_device`.

    On a CPU their convolutions take the faster layout before that: DDP mixes up gradients of weights whose layout
    changes later.
    """
    original = nnunet_module.DDP

    def parallel(network: nn.Module, device_ids: list[int]) -> nn.Module:
        if all(parameter.device.type == "cpu" for parameter in network.parameters()):
            use_channels_last(unwrap(network))
        return original(network)  # type: ignore[no-any-return]

    nnunet_module.DDP = parallel
    try:
        yield
    finally:
        nnunet_module.DDP = original


def first_sample(batch_size: int) -> int:
    """Place of this process's first sample in the batch of all processes, as nnU-Net spreads it; 0 where it is alone.

    Args:
        batch_size: of all processes together.
    """
    if not is_distributed():
        return 0
    rank, share, rest = distributed.get_rank(), *divmod(batch_size, distributed.get_world_size())
    return rank * share + min(rank, rest)


def average_terms_of_all_gpus(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the averages of all processes of a distributed training; each calls this with its own steps."""
    gathered: list[dict[str, float]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, average_terms(steps))
    return average_terms(gathered)


def decided_by_first(value: Value) -> Value:
    """What the first process of a distributed training says; all processes call this, also where there is only one.

    Args:
        value: of this process; small.
    """
    if not is_distributed():
        return value
    shared = [value]
    distributed.broadcast_object_list(shared)
    return shared[0]


def record_gpu_memory(trainer: Any) -> None:
    """Write torch's largest allocation to a training's ``training.json`` and log; nothing on the CPU."""
    if trainer.device.type == "cuda" and trainer.local_rank == 0:
        peak = torch.cuda.max_memory_allocated(trainer.device)
        add_facts(Path(trainer.output_folder), {"peak_gpu_bytes": int(peak)})
        trainer.print_to_log_file(f"peak GPU memory {peak / 1e9:.2f} GB")
