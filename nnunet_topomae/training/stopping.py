"""Asking a training to stop: signals, which schedulers send before they end a job, and a file in the run's folder.

A signal stops a training in the middle of an epoch, and ``--c`` continues it. The file ends it after the epoch, as if
that were its last one. Standard library only: the command ``stop`` must be quick.
"""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from nnunet_topomae.files import write_text

# In the fold's folder, next to the checkpoints.
STOP_FILE = "stop_after_epoch"
_NAMES = ("SIGTERM", "SIGUSR1")


class EndOfTraining(BaseException):
    """A training ends before its last epoch; its text says why. Like `SystemExit` it is no error."""


def ask_to_end(folder: Path) -> Path:
    """Ask the training in a fold's folder to end after its epoch.

    Args:
        folder: the fold's.

    Returns:
        The file that asks; whoever deletes it in time takes the request back.
    """
    write_text(folder / STOP_FILE, "end after this epoch, with the final checkpoint\n")
    return folder / STOP_FILE


def asked_to_end(folder: Path) -> str | None:
    """The reason to end, where somebody has asked for it.

    Args:
        folder: the fold's.
    """
    return (
        "nnunet-topomae stop has asked for it; --c goes on with the other epochs"
        if (folder / STOP_FILE).exists()
        else None
    )


def forget_request(folder: Path) -> bool:
    """Remove a request; returns whether there was one.

    Args:
        folder: the fold's.
    """
    there = (folder / STOP_FILE).exists()
    (folder / STOP_FILE).unlink(missing_ok=True)
    return there


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while it is entered, so that a training can end between two steps.

    SIGINT counts as the same request once there was one, and where the parent of this process has ended: torch then
    sends it to the processes that it has started (`torch.multiprocessing.spawn`, nnU-Net's ``-num_gpus``). Otherwise it
    is Ctrl-C, as ever, and ends the training at once.

    Before :attr:`ready` is set, and in forks of this process, the signals do what they always do: they end the process.

    Attributes:
        ready: whether there is anything to save.
        asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.ready = False
        self.asked: signal.Signals | None = None
        self._owner, self._parent = os.getpid(), os.getppid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.asked, self.ready, self._owner, self._parent = None, False, os.getpid(), os.getppid()
        if threading.current_thread() is threading.main_thread():
            chosen = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            self._previous = {number: signal.signal(number, self._note) for number in chosen}
            if callable(signal.getsignal(signal.SIGINT)):  # else it is ignored, as by the shell's &
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _counts(self) -> bool:
        return self.ready and os.getpid() == self._owner

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._counts():
            self.asked = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Where SIGTERM has come too, Python may call this first: it goes by the signals' numbers."""
        if self._counts() and (self.asked is not None or os.getppid() != self._parent):
            self.asked = self.asked or signal.SIGINT
            return
        self._previous[signal.SIGINT](number, frame)
