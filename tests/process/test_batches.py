"""Workers that load batches and are killed, stopped or fail, and the signals that end a training."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Event, Process, get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_topomae.data.worker_errors import WorkerErrors
from nnunet_topomae.nnunet.process import end_forks_with_this_process
from nnunet_topomae.training import batches
from nnunet_topomae.training.batches import WatchedBatches
from nnunet_topomae.training.stopping import StopSignals


class _Numbers:
    """A loader that counts, then hangs or fails; large batches fill the pipe to the trainer."""

    def __init__(self, last: int, fail: str | None = None) -> None:
        self.last, self.fail, self.errors = last, fail, WorkerErrors()

    def set_thread_id(self, number: int) -> None:
        self.number = 0

    def __next__(self) -> dict[str, Any]:
        self.number += 1
        if self.number > self.last:
            with self.errors.reported():
                if self.fail is not None:
                    raise ValueError(self.fail)
            time.sleep(60)
        return {"number": self.number, "ballast": b"0" * 1_000_000}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.05)


@pytest.fixture
def workers() -> Iterator[Any]:
    """Makes watched loaders with worker processes, and ends them."""
    made: list[WatchedBatches] = []

    def make(loader: _Numbers, processes: int = 1, before: Any = lambda: None) -> WatchedBatches:
        augmenter = NonDetMultiThreadedAugmenter(loader, None, processes, 1, wait_time=0.01)
        made.append(WatchedBatches(augmenter, before))
        return made[-1]

    yield make
    for watched in made:
        watched.close()


def test_batches_come_through_and_are_counted(workers: Any) -> None:
    watched = workers(_Numbers(100))
    assert [next(watched)["number"] for _ in range(5)] == [1, 2, 3, 4, 5] and watched.taken == 5
    assert next(WatchedBatches(iter("ab"), lambda: None)) == "a"


@pytest.mark.parametrize(("number", "says"), [(signal.SIGKILL, r"killed from outside \(signal 9\).*nnUNet_n_proc_DA"),
                                               (signal.SIGSTOP, "was stopped from outside.*--c")])  # fmt: skip
def test_a_killed_or_stopped_worker_ends_the_wait_with_the_reason(
    workers: Any, number: signal.Signals, says: str
) -> None:
    watched = workers(_Numbers(3), processes=2)
    next(watched)
    os.kill(watched.loader._processes[0].pid, number)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=says):
        for _ in range(20):
            next(watched)
    assert time.monotonic() - start < 5


def test_a_worker_killed_while_it_hands_over_a_batch(workers: Any) -> None:
    """It dies with the lock of the pipe: nnU-Net's loader then waits for ever."""
    watched = workers(_Numbers(1000))
    next(watched)
    time.sleep(0.2)  # the pipe is full by now
    worker = watched.loader._processes[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    with pytest.raises(RuntimeError, match="killed from outside"):
        next(watched)  # also while batches of earlier are there


def test_the_error_of_a_worker_reaches_the_training(workers: Any) -> None:
    watched = workers(_Numbers(2, fail="case c1 holds NaN"))
    with pytest.raises(RuntimeError, match="^case c1 holds NaN$"):
        for _ in range(5):
            next(watched)


def test_a_signal_ends_the_wait_for_a_batch(workers: Any) -> None:
    with StopSignals() as stop:

        def before() -> None:
            stop.ready = True
            if stop.asked:
                raise SystemExit(128 + stop.asked)
            if watched.taken == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

        watched = workers(_Numbers(2), before=before)
        with pytest.raises(SystemExit) as ended:
            for _ in range(3):
                next(watched)
    assert ended.value.code == 128 + signal.SIGUSR1 and watched.taken == 2


def test_a_signal_to_all_processes_is_no_dead_worker(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sends it to the workers too, and they end at once, here while the training waits for a batch."""
    with StopSignals() as stop:

        def before() -> None:
            stop.ready = True
            if stop.asked:
                raise SystemExit(128 + stop.asked)

        watched = workers(_Numbers(1000), before=before)
        next(watched)
        queue, (worker,) = watched.loader.results_loop_queue, watched.loader._processes
        get = queue.get

        def signal_all(timeout: float) -> Any:
            batch = get(timeout=10)
            os.kill(worker.pid, signal.SIGTERM)
            worker.join(10)
            os.kill(os.getpid(), signal.SIGTERM)
            return batch

        monkeypatch.setattr(queue, "get", signal_all)
        with pytest.raises(SystemExit) as ended:
            next(watched)
    assert ended.value.code == 128 + signal.SIGTERM and watched.taken == 1


def _begin(begun: Any) -> None:
    begun.set()
    time.sleep(60)


def test_forks_and_trainings_that_have_not_begun_end_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        stop.ready = True
        begun = Event()
        child = Process(target=_begin, args=(begun,))
        child.start()
        begun.wait(10)
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM and stop.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before

    def not_begun() -> None:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    child = Process(target=not_begun)
    child.start()
    child.join(10)
    assert child.exitcode == -signal.SIGTERM


class _Tensors(_Numbers):
    """Batches that go through shared memory."""

    def __next__(self) -> dict[str, Any]:
        return {**super().__next__(), "data": torch.ones(2**18)}


def _train(processes: Any, failing: bool) -> None:
    """As a trainer does it: batches until a signal or an error comes."""
    end_forks_with_this_process.__wrapped__()  # this process is a fork, which counts as another one
    with StopSignals() as stop:

        def before() -> None:
            stop.ready = True
            if stop.asked:
                raise SystemExit(128 + stop.asked)

        watched = WatchedBatches(NonDetMultiThreadedAugmenter(_Tensors(10**6), None, 2, 1, wait_time=0.01), before)
        try:
            for _ in range(3):
                assert next(watched)["data"].is_shared()
            processes.send([worker.pid for worker in watched.loader._processes])
            while not failing:
                next(watched)
            raise RuntimeError("a bug")
        finally:
            watched.close()


def _is_there(number: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /dev/shm")
def test_what_a_killed_worker_was_about_to_hand_over_is_removed() -> None:
    loader = NonDetMultiThreadedAugmenter(_Tensors(10**6), None, 1, 1, wait_time=0.01)
    watched = WatchedBatches(loader, lambda: None)
    next(watched)
    (worker,) = loader._processes
    left, other = (Path(f"/dev/shm/torch_{number}_0_test") for number in (worker.pid, 10**9))
    try:
        left.touch()
        other.touch()
        watched.close()
        assert not left.exists() and other.exists()
    finally:
        for file in (left, other):
            file.unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and /dev/shm")
@pytest.mark.parametrize(
    ("end", "code"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL), ("a bug", 1)],
)
def test_however_a_training_ends_it_leaves_no_process_and_no_shared_memory(end: Any, code: int) -> None:
    fork = get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    training = fork.Process(target=_train, args=(sender, end == "a bug"))
    training.start()
    assert receiver.poll(20)
    workers = receiver.recv()
    assert len(workers) == 2
    if end != "a bug":
        os.kill(training.pid, end)  # type: ignore[arg-type]
    training.join(20)
    assert training.exitcode == code
    deadline = time.monotonic() + 5
    while any(map(_is_there, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_is_there, workers))
    numbers = {str(number) for number in (training.pid, *workers)}
    assert not [file for file in Path("/dev/shm").iterdir() if numbers & set(file.name.split("_"))]
