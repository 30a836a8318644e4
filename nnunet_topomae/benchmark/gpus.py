"""Locks on GPUs, so that several drivers on a machine do not use one at the same time. POSIX only."""

import fcntl
import os
import re
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TextIO


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
        None where another process of this user and machine holds it.
    """
    if gpu is None:
        return HeldGPU()
    folder = lock_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / f"gpu_{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return HeldGPU(file)


def lock_folder() -> Path:
    """Where the locks of this user are: on the machine itself, as GPUs are, not in a shared folder."""
    return Path(tempfile.gettempdir()) / f"nnunet_topomae_{os.getuid()}"
