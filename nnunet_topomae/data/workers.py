"""Processes that draw batches: any of them may draw any batch, and the batches keep their order."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

# The entry of a batch that says which one it is.
NUMBER = "batch_number"
_WORKERS_VARIABLE = "nnUNet_n_proc_DA"


@runtime_checkable
class DrawsByNumber(Protocol):
    """A loader whose batches follow from their numbers.

    Attributes:
        number: of the batch that it gives next, where nobody asks for another one.
        errors: reports to the process that waits, or None.
    """

    number: int
    errors: Any

    def draw(self, number: int) -> dict[str, Any]:
        """The batch of a number."""

    def __next__(self) -> dict[str, Any]: ...


class Tickets:
    """Numbers of batches, given to worker processes in their order.

    Args:
        first: the first number.
        most: how many batches may be drawn, or wait to be used, at the same time; this bounds the memory where one
            worker is slow.
    """

    def __init__(self, first: int, most: int) -> None:
        self._next: Any = multiprocessing.Value("q", first)
        self._room: Any = multiprocessing.Semaphore(most)

    def take(self) -> int:
        """The next number; waits until so few batches are on their way that another one may be drawn."""
        self._room.acquire()
        with self._next.get_lock():
            number = int(self._next.value)
            self._next.value += 1
        return number

    def used(self) -> None:
        """A batch was used, so that a worker may draw another one."""
        self._room.release()


class NumberedLoader:
    """What a worker process runs: it draws the batch whose turn it is, and writes the number on it.

    Args:
        loader: draws batches.
        tickets: shared by all workers.
        first: number of the first batch.
    """

    def __init__(self, loader: DrawsByNumber, tickets: Tickets, first: int) -> None:
        self.loader, self.tickets, self.first = loader, tickets, first
        self.errors = loader.errors

    def set_thread_id(self, number: int) -> None:
        """Asked for by nnU-Net's workers; what they draw does not depend on it."""

    def __next__(self) -> dict[str, Any]:
        number = self.tickets.take()
        return {**self.loader.draw(number), NUMBER: number}


def start_workers(
    loader: DrawsByNumber, device: torch.device, first: int = 0, share: int = 1
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Run a loader in as many worker processes as nnU-Net allows (``nnUNet_n_proc_DA``).

    The batches come in any order, with their numbers; training.batches.WatchedBatches sorts them.

    Args:
        loader: what every process draws batches from; without processes, this one does.
        device: where the batches go; for CUDA they are put into pinned memory.
        first: number of the first batch.
        share: the n-th part of the processes; at least one.

    Raises:
        ValueError: the variable is no number.
    """
    wanted = os.environ.get(_WORKERS_VARIABLE, "0")
    if not wanted.strip().isdecimal():
        raise ValueError(f"{_WORKERS_VARIABLE} = {wanted!r} must be a number of loader workers, 0 or more")
    allowed = get_allowed_n_proc_DA()
    if allowed == 0:
        loader.number = first
        return SingleThreadedAugmenter(loader, None)
    processes, cached = max(1, allowed // share), max(6 // share, allowed // (2 * share))
    # As many as nnU-Net's two queues and its workers hold.
    numbered = NumberedLoader(loader, Tickets(first, 2 * cached + processes), first)
    pinned = device.type == "cuda"
    return NonDetMultiThreadedAugmenter(numbered, None, processes, cached, pin_memory=pinned, wait_time=0.002)


@contextmanager
def without_workers() -> Iterator[None]:
    """Let nnU-Net start no worker processes in the block."""
    before = os.environ.get(_WORKERS_VARIABLE)
    os.environ[_WORKERS_VARIABLE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WORKERS_VARIABLE]
        else:
            os.environ[_WORKERS_VARIABLE] = before
