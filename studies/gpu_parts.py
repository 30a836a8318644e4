"""The parts of studies/gpu_evidence.py, and those of them that only compute.

Each fills a dictionary step by step, so that a part that fails leaves what it has measured, and raises where something
is wrong. On a CPU every part runs at its smallest size, which shows that it works and measures nothing.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import step_time
import torch
import training_step
from gpu_memory import memory_estimates
from gpu_trainings import benchmark, trainers
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.files import write_json

Record = dict[str, Any]
Save = Callable[[], None]


def step_times(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """Our UNETR++ and co-pre-training against the published UNETR++, without compilation."""
    cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = cuda
    architecture, repeats = (None, 15) if cuda else (step_time.QUICK, 2)
    record["sizes"] = []
    for patch, batch in step_time.SIZES["cuda" if cuda else "quick"]:
        record["sizes"].append(step_time.measure(patch, batch, device, repeats, architecture=architecture))
        save()


def compiled_step_times(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """Our UNETR++ against the published one, both compiled, as nnU-Net does on a GPU; on a CPU not compiled."""
    cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = cuda
    patch, batch = step_time.SIZES["cuda" if cuda else "quick"][0]
    architecture, repeats = (None, 15) if cuda else (step_time.QUICK, 1)
    names = step_time.CONTESTANTS[:2]
    record |= step_time.measure(patch, batch, device, repeats, cuda, architecture, names)


def topology_steps(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """Step time with and without L_topo, by region policy."""
    cuda = device.type == "cuda"
    patch, architecture = ([96, 96, 96], ArchitectureConfig()) if cuda else ([16, 16, 16], training_step.QUICK)
    record |= training_step.measure(device, patch, architecture, repeats=5 if cuda else 2)


def idle(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """Share of a co-pre-training step in which the device computes nothing, by region policy.

    Wall-clock time is taken without the profiler, busy time with it: its kernels last as long, only the gaps grow.
    The batch is on hand, so waiting for data is not part of it.
    """
    cuda = device.type == "cuda"
    patch, architecture = ([96, 96, 96], ArchitectureConfig()) if cuda else ([16, 16, 16], training_step.QUICK)
    policies = (*training_step.POLICIES,) if cuda else ("without", "crop 48")
    steps = training_step.build_steps(device, patch, architecture, policies)
    record["policies"] = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        for _ in range(count := 5 if cuda else 1):
            step()
        wall = (time.perf_counter() - start) / count
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
            for _ in range(count):
                step()
        busy = busy_seconds(profiler, DeviceType.CUDA if cuda else DeviceType.CPU) / count
        if not busy > 0:
            raise RuntimeError("the profiler saw nothing on the device")
        record["policies"][name] = {"step": wall, "busy": busy, "idle_share": max(0.0, 1.0 - busy / wall)}
        save()


def busy_seconds(profiler: profile, device: DeviceType) -> float:
    """Time in which at least one kernel, or on a CPU one operator, was running."""
    spans = [
        event.time_range
        for event in profiler.events()
        if event.device_type == device
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith("Optimizer.")  # spans from the first kernel to the last, gaps included
    ]
    busy = end = 0.0
    for span in sorted(spans, key=lambda span: span.start):
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return busy / 1e6


PARTS: dict[str, Callable[[torch.device, Path, Record, Save], None]] = {
    "trainers": trainers,
    "benchmark": benchmark,
    "step_time": step_times,
    "topology_step": topology_steps,
    "idle": idle,
    "memory": memory_estimates,
    "compiled_step_time": compiled_step_times,
}


def run_part(name: str, device: torch.device, folder: Path, file: Path) -> None:
    """Run one part and write what it finds to ``file``, also on the way."""
    record: Record = {}
    save = partial(write_json, file, record)
    try:
        PARTS[name](device, folder, record, save)
    finally:
        save()
