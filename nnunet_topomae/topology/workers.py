"""Threads for persistent homology and matching; both release the interpreter lock while they compute."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

MAX_AUTOMATIC_THREADS = 8
# Threads of one process that hang, beyond which `within` starts no other one.
MOST_GIVEN_UP = 4
First = TypeVar("First")
Second = TypeVar("Second")


Both = Callable[[Callable[[], Any], Callable[[], Any]], tuple[Any, Any]]
"""Calls two functions that do not write to each other's data, perhaps at the same time; returns both results."""


def in_turn(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """`Both` in one thread."""
    return first(), second()


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def automatic_threads(processes: int = 1) -> int:
    """Number of threads where nobody says another one: the cores of this process, at most 8.

    Args:
        processes: on this machine that share the cores.
    """
    return max(1, min(available_cores() // processes, MAX_AUTOMATIC_THREADS))


def threads_of_process(asked: int, processes: int, log: Callable[[str], object] = str) -> int:
    """Number of threads of one of several processes: never more than its share of the cores.

    Args:
        asked: `topology.threads`; 0 for automatic. A process that is alone gets what it asks for.
        processes: on this machine that share the cores.
        log: is told where it gets fewer than it asks for.
    """
    if not asked:
        return automatic_threads(processes)
    share = max(1, available_cores() // processes)
    if processes == 1 or asked <= share:
        return asked
    log(f"topology.threads = {asked}, but {processes} processes share {available_cores()} cores: {share} for each")
    return share


class HungThreadsError(RuntimeError):
    """Too many threads of this process compute what nobody waits for any longer."""


_given_up: list[threading.Thread] = []
_giving_up = threading.Lock()


def within(seconds: float | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``function(*arguments)``, computed in a thread of its own, which nobody waits for any longer.

    Args:
        seconds: to wait at most; None waits for ever.
        function: what to compute; an error of it is raised here.
        arguments: of the function.

    Raises:
        TimeoutError: it needs longer; the thread goes on.
        HungThreadsError: `MOST_GIVEN_UP` such threads of this process still run, so no other one is started.
    """
    with _giving_up:
        _given_up[:] = [thread for thread in _given_up if thread.is_alive()]
        if len(_given_up) >= MOST_GIVEN_UP:
            raise HungThreadsError(
                f"{len(_given_up)} computations of persistent homology hang in this process: they were given up at the "
                "time limit, and none has ended. Give the term less to do (a smaller topology.region_size, or "
                "topology.region = pool) or more time (topology.time_limit), or leave it out: topology.enabled = "
                "false. --c continues from the last checkpoint."
            )
    future: Future[Any] = Future()
    thread = threading.Thread(target=_fulfil, args=(future, function, arguments), daemon=True, name="topology")
    thread.start()
    try:
        return future.result(seconds)
    except TimeoutError:
        with _giving_up:
            _given_up.append(thread)
        raise


def _fulfil(future: "Future[Any]", function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)


class _Threads:
    """Threads that start as they are needed, and that do not keep a process from ending, not even if one hangs.

    Python's own pools wait for their threads when the process ends.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._started = 0
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        with self._lock:
            wanted = self._started < self._most
            self._started += wanted
        if wanted:
            try:
                threading.Thread(target=self._work, daemon=True, name="topology").start()
            except RuntimeError:  # the system gives this process no more threads
                with self._lock:
                    self._started -= 1
                    if not self._started:
                        raise
        return future

    def _work(self) -> None:
        while True:
            _fulfil(*self._tasks.get())


class WorkerPool:
    """A thread pool that starts on first use, survives a fork and can be copied and pickled.

    The pool in a forked child starts its own threads; a copy or an unpickled pool is the shared one of its process.
    Threads end with their process.

    Args:
        threads: number of threads; 0 takes the number of cores, at most 8.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, threads: int = 0) -> None:
        if threads < 0:
            raise ValueError(f"threads must be 0 (automatic) or a positive number, got {threads}")
        self.threads = threads
        self._lock = threading.Lock()
        self._executor: _Threads | None = None
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[Callable[[int], "WorkerPool"], tuple[int]]:
        return shared_pool, (self.threads,)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run ``function(*arguments)`` in a thread."""
        return self._running().submit(function, *arguments)

    def both(self, first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
        """`Both` in two threads, if one is free for ``second`` in time; safe within a thread of the pool."""
        waiting = [second]  # emptied as soon as it runs or is not wanted any more, so that no queue keeps its data
        other = self.submit(lambda: waiting.pop()())
        try:
            mine = first()
        finally:
            # Nobody waits for a function that has not started, so threads cannot block each other.
            if not_started := other.cancel():
                waiting.clear()
        return mine, second() if not_started else other.result()

    def when_all(self, futures: Sequence[Future[Any]], function: Callable[..., Any]) -> Future[Any]:
        """Run ``function(*results)`` in a thread once all ``futures`` are done.

        No thread waits meanwhile, so chains of any length cannot block the pool.

        Args:
            futures: what the function needs.
            function: called with the results of the futures, in their order.

        Returns:
            A future of the function's result. The first exception among ``futures``, in their order, becomes its
            exception.
        """
        outcome: Future[Any] = Future()
        remaining = len(futures)
        lock = threading.Lock()

        def run() -> None:
            try:
                outcome.set_result(function(*[future.result() for future in futures]))
            except BaseException as error:
                outcome.set_exception(error)

        def one_done(_: Future[Any]) -> None:
            nonlocal remaining
            with lock:
                remaining -= 1
                last = remaining == 0
            if last:
                self._running().submit(run)

        for future in futures:
            future.add_done_callback(one_done)
        return outcome

    def _running(self) -> _Threads:
        """The executor of this process."""
        if self._owner != os.getpid():
            self._lock, self._executor, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._executor is None:
                self._executor = _Threads(self.threads or automatic_threads())
            return self._executor


@cache
def shared_pool(threads: int = 0) -> WorkerPool:
    """The pool of this process with so many threads, so that many losses do not start many pools.

    Args:
        threads: number of threads; 0 takes the number of cores, at most 8.
    """
    return WorkerPool(threads)
