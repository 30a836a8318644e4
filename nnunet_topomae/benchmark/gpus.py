"""Locks on GPUs, so that several drivers on a machine do not use one at the same time. POSIX only."""

import fcntl
import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TextIO

# Under this order of CUDA's, an index means the same GPU to CUDA and to nvidia-smi.
DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_LIST = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
_LIST_SECONDS = 30.0


class HeldGPU:
    """A GPU that nobody else takes until this object and all processes that inherit its descriptors are gone.

    Args:
        file: open and locked; None where no GPU was named.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a child has to inherit to hold the GPU too."""
        return () if self.file is None else (self.file.fileno(),)

    def __enter__(self) -> "HeldGPU":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()


def hold_gpu(gpu: str | None) -> HeldGPU | None:
    """Take a GPU.

    Args:
        gpu: as in CUDA_VISIBLE_DEVICES; None stands for no GPU in particular, which is always free.

    Returns:
        None where another process of this user and machine holds it, by its index or its UUID.
    """
    if gpu is None:
        return HeldGPU()
    folder = lock_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / f"gpu_{re.sub(r'[^A-Za-z0-9-]', '_', _one_name(gpu))}").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return HeldGPU(file)


def _one_name(gpu: str) -> str:
    """The UUID of a GPU where nvidia-smi tells it, else the name as it is.

    The same index may be different GPUs: a container, or a job of SLURM, counts only those that it may use.
    """
    return next((uuid for index, uuid in gpu_uuids().items() if gpu == index or uuid.startswith(gpu)), gpu)


@cache
def gpu_uuids() -> dict[str, str]:
    """UUIDs of the GPUs that this process may use by their indices; empty where nvidia-smi is missing or fails."""
    try:
        said = subprocess.run(_LIST, capture_output=True, text=True, timeout=_LIST_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {index: uuid for line in said.splitlines() for index, _, uuid in [line.partition(", ")]}


def lock_folder() -> Path:
    """Where the locks of this user are: on the machine itself, as GPUs are, and at one place whatever TMPDIR is."""
    return Path("/tmp") / f"nnunet_topomae_{os.getuid()}"


def choose_gpus(asked: str | None, slots: int, device: str, environment: Mapping[str, str]) -> list[str | None]:
    """A slot for each job that may run at a time: its GPU as in CUDA_VISIBLE_DEVICES, None for none in particular.

    Args:
        asked: GPUs that the user names, with commas between them; None where the user does not.
        slots: jobs at a time, where no GPUs are named.
        device: `cpu` or `cuda`. On `cuda`, every slot gets a GPU: the first ones that are visible.
        environment: variables, of which CUDA_VISIBLE_DEVICES counts.

    Raises:
        ValueError: an empty name, no GPU is visible, or fewer are known than there are slots.
    """
    if asked is not None:
        return list(_names("--gpus", asked))
    if device != "cuda":
        return [None] * slots
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    known = ["0"] if visible is None else _names("CUDA_VISIBLE_DEVICES", visible)
    if slots > len(known):
        raise ValueError(
            f"--slots {slots}: one job runs on a GPU at a time. Name {slots} GPUs, as in --gpus 0,1, and leave --slots "
            "out."
        )
    return list(known[:slots])


def _names(source: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names) or "-1" in names:
        raise ValueError(f"{source} = {text!r} must name GPUs, each once, such as 0,1")
    return names
