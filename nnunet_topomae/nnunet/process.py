"""nnU-Net's commands as child processes. Standard library only."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def find_program(name: str) -> str:
    """Path of a console script, first next to the running Python.

    Raises:
        RuntimeError: not found.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        raise RuntimeError(
            f"command {name} is neither in {beside} nor on PATH. Install nnunetv2 into this environment."
        )
    return found


def die_with_parent() -> None:
    """For ``preexec_fn``: ask Linux to kill this process when its parent dies, however it dies. Nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@cache
def end_forks_with_this_process() -> None:
    """From now on, a fork of this process ends when this process ends, however it ends. Nothing but Linux has that.

    nnU-Net's loader workers are forks, and nothing else tells them that a training was killed: they would wait for ever
    for somebody to take their batches. Forks of other threads than the main one are left alone, because Linux takes the
    end of a thread for the end of the parent.
    """
    if sys.platform != "linux":
        return
    parent = os.getpid()
    by_main_thread = False

    def before() -> None:
        nonlocal by_main_thread
        by_main_thread = os.getpid() == parent and threading.current_thread() is threading.main_thread()

    def in_child() -> None:
        if by_main_thread:
            die_with_parent()
            if os.getppid() != parent:  # it ended before the request
                os._exit(1)

    os.register_at_fork(before=before, after_in_child=in_child)


def end_session(child: subprocess.Popen[bytes]) -> None:
    """Kill the process group of a child that leads one: nnU-Net's workers outlive a killed parent."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_lines(log: Path, count: int = 20) -> list[str]:
    """The end of a log, without empty lines; of a line that was overwritten like a progress bar, its last state.

    Args:
        log: where there is no such file, the result is empty.
        count: the largest number of lines.
    """
    text = log.read_bytes().decode(errors="replace") if log.is_file() else ""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-count:]
