"""Asking a training to stop: SIGTERM and SIGUSR1, which schedulers send before they end a job."""

import os
import signal
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGUSR1")


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while it is entered, so that a training can end between two steps.

    Before :attr:`ready` is set, and in forks of this process, the signals do what they always do: they end the process.

    Attributes:
        ready: whether there is anything to save.
        asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.ready = False
        self.asked: signal.Signals | None = None
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.asked, self.ready, self._owner = None, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            chosen = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            self._previous = {number: signal.signal(number, self._note) for number in chosen}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.ready and os.getpid() == self._owner:
            self.asked = signal.Signals(number)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
