"""Batches of nnU-Net's loaders, whose workers are watched while a training waits for them."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_topomae.data.worker_errors import WorkerErrors
from nnunet_topomae.data.workers import NUMBER, NumberedLoader

POLL_SECONDS = 0.2
# A stopped worker (Ctrl-Z, or a debugger) is an error once a training has waited for it so long.
PATIENCE_SECONDS = 5.0


class WatchedBatches:
    """A loader of batches, in their order, that ends with the reason when one of its worker processes does.

    nnU-Net's own loader gives batches as they come, and waits for ever where a worker was killed while it handed over a
    batch.

    Args:
        loader: nnU-Net's loader, with worker processes or without. Batches of data/workers.py have numbers; others keep
            the order in which they come.
        before: called before every batch, and while one is awaited.
        after: called when a batch has come, before it is used.

    Attributes:
        taken: how many batches were taken.
    """

    def __init__(self, loader: Any, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
        self.loader = loader
        self.before = before
        self.after = after
        self.taken = 0
        source = getattr(loader, "generator", None)
        self._numbered = source if isinstance(source, NumberedLoader) else None
        self._number = 0 if self._numbered is None else self._numbered.first
        self._early: dict[int, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            RuntimeError: a worker has ended or is stopped; says why.
        """
        self.before()
        batch = self._wait() if isinstance(self.loader, NonDetMultiThreadedAugmenter) else next(self.loader)
        self.after()
        self.taken += 1
        return batch

    def _wait(self) -> Any:
        loader = self.loader
        if not loader.initialized:
            loader._start()
        start = time.monotonic()
        while True:
            self._check_workers(count_stopped=time.monotonic() - start >= PATIENCE_SECONDS)
            if self._number in self._early:
                self._number += 1
                if self._numbered is not None:
                    self._numbered.tickets.used()
                return self._early.pop(self._number - 1)
            try:
                batch = loader.results_loop_queue.get(timeout=POLL_SECONDS)
            except Empty:
                self.before()
            else:
                loader.results_loop_queue.task_done()
                self._early[batch.pop(NUMBER, self._number)] = batch

    def _check_workers(self, count_stopped: bool) -> None:
        """Raise where a worker has ended; batches that wait in the queue are left there."""
        loader = self.loader
        reason = why_no_batches(loader._processes, count_stopped)
        # nnU-Net's thread ends when a worker has met an error, before the worker itself does.
        if reason is None and not loader.results_loop_thread.is_alive():
            reason = "a worker that loads batches has ended: what it printed above says why"
        if reason is not None:
            self.before()  # a signal to all processes ends the workers too, and may be the reason to end
            raise RuntimeError(reported_error(loader.generator) or reason)

    def close(self) -> None:
        """End the worker processes.

        nnU-Net's own way reads the rest of the batches first, which never ends where a worker is stopped or was killed
        in the middle of one.
        """
        loader = self.loader
        if not isinstance(loader, NonDetMultiThreadedAugmenter) or not loader.initialized:
            return
        if why_no_batches(loader._processes) is None:  # else a worker may hold the lock of the event for ever
            loader.abort_event.set()
            loader.results_loop_thread.join(timeout=1)
        for worker in loader._processes:
            worker.kill()
            worker.join()
            _remove_shared_memory(worker)
        loader._processes.clear()  # the same list as that of nnU-Net's thread, which complains about dead workers
        loader.initialized = False


def close_loaders(*loaders: Any) -> None:
    """End the worker processes of those loaders that are watched."""
    for loader in loaders:
        if isinstance(loader, WatchedBatches):
            loader.close()


def _remove_shared_memory(worker: BaseProcess) -> None:
    """Remove what a worker was about to hand over when it was killed: torch names such files after the process."""
    for file in Path("/dev/shm").glob(f"torch_{worker.pid}_*"):
        with suppress(OSError):
            file.unlink()


def reported_error(generator: Any) -> str | None:
    """The error that a worker of a loader has reported, if any.

    Args:
        generator: a loader of data/workers.py.
    """
    errors = getattr(generator, "errors", None)
    return errors.last() if isinstance(errors, WorkerErrors) else None


def why_no_batches(workers: list[BaseProcess], count_stopped: bool = True) -> str | None:
    """Why worker processes bring no more batches; None if all of them are well.

    Args:
        workers: started processes.
        count_stopped: whether a stopped worker is a reason.
    """
    cure = "Checkpoints on disk are untouched: continue with --c."
    for worker in workers:
        code = worker.exitcode
        if code is None:
            if count_stopped and _is_stopped(worker):
                return f"worker {worker.pid}, which loads batches, was stopped from outside. {cure}"
        elif code < 0:
            return (
                f"worker {worker.pid}, which loads batches, was killed from outside (signal {-code}). Where the system "
                f"is short of memory, it does that: try fewer workers, nnUNet_n_proc_DA=2. {cure}"
            )
        else:
            return "a worker that loads batches has ended: what it printed above says why"
    return None


def _is_stopped(worker: BaseProcess) -> bool:
    """Whether Linux says so; the state follows the name in brackets."""
    if sys.platform == "linux":
        with suppress(OSError, IndexError):
            return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
