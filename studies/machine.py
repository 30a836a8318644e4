"""What a measurement ran on, without paths or names of machines."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from nnunet_topomae.nnunet.provenance import describe_commit, describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, GPU, versions and the commit, as far as they are known."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "processor": describe_machine(gpu=False)["processor"],
        "cores": cores,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "device": device.type,
        "commit": describe_commit(REPOSITORY),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def title(machine: dict[str, Any]) -> str:
    """One line for the head of a table."""
    where = machine.get("gpu") or f"{machine['processor']}, {machine['torch_threads']} thread(s)"
    return f"{where}, torch {machine['torch']}"
