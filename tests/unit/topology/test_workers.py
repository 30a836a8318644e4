import copy
import multiprocessing
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest

from nnunet_topomae.topology import workers
from nnunet_topomae.topology.workers import MOST_GIVEN_UP, HungThreadsError, WorkerPool, shared_pool, within


def test_chains_longer_than_the_pool_do_not_lock_up() -> None:
    pool = WorkerPool(1)
    leaves = [pool.submit(int, i) for i in range(20)]
    while len(leaves) > 1:
        leaves = [pool.when_all(leaves[i : i + 2], lambda *v: sum(v)) for i in range(0, len(leaves), 2)]
    assert leaves[0].result(timeout=10) == sum(range(20))


def test_results_come_in_the_order_of_the_futures() -> None:
    pool, gate = WorkerPool(2), threading.Event()
    slow = pool.submit(lambda: gate.wait(10) and "slow")
    fast = pool.submit(lambda: "fast")
    joined = pool.when_all([slow, fast], lambda *v: v)
    assert fast.result(timeout=10) == "fast"
    assert not joined.done()
    gate.set()
    assert joined.result(timeout=10) == ("slow", "fast")


def test_exceptions_pass_through() -> None:
    pool = WorkerPool(1)
    joined = pool.when_all([pool.submit(int, "1"), pool.submit(int, "x")], max)
    with pytest.raises(ValueError, match="invalid literal"):
        joined.result(timeout=10)


def test_known_futures_are_accepted() -> None:
    known: Future[int] = Future()
    known.set_result(3)
    assert WorkerPool(1).when_all([known], lambda v: v + 1).result(timeout=10) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))])
def test_copies_are_the_pool_that_a_process_shares(duplicate: object) -> None:
    pool = WorkerPool(3)
    other = duplicate(pool)  # type: ignore[operator]
    assert other is not pool
    assert other is shared_pool(3) is duplicate(other)  # type: ignore[operator]
    assert other.submit(int, "6").result(timeout=10) == 6


def test_a_forked_child_starts_anew() -> None:
    pool = WorkerPool(1)
    assert pool.submit(int, 5).result(timeout=10) == 5
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(pool.submit(int, 7).result(timeout=10)))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get() == 7


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="threads must be 0"):
        WorkerPool(-1)


def test_within_waits_for_a_result_or_an_error_and_no_longer_than_it_may() -> None:
    assert within(10.0, max, 3, 4) == within(None, max, 3, 4) == 4
    with pytest.raises(ValueError, match="invalid literal"):
        within(10.0, int, "x")
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, gate.wait)
    gate.set()


def test_threads_that_hang_are_bounded_and_those_that_end_are_forgotten() -> None:
    gate = threading.Event()
    others = set(threading.enumerate())  # some of other tests, which may end meanwhile

    def started() -> int:
        return len(set(threading.enumerate()) - others)

    try:
        for _ in range(MOST_GIVEN_UP):
            with pytest.raises(TimeoutError):
                within(0.001, gate.wait, 60)
        for _ in range(3):
            with pytest.raises(HungThreadsError, match=r"4 computations .*hang.*topology.time_limit.*--c"):
                within(0.001, gate.wait, 60)
        assert started() == MOST_GIVEN_UP
        # Those of a pool are bounded by its size.
        pool = WorkerPool(2)
        waiting = [pool.submit(gate.wait, 60) for _ in range(20)]
        assert started() == MOST_GIVEN_UP + 2
    finally:
        gate.set()
    assert all(future.result(10) for future in waiting)
    for thread in list(workers._given_up):
        thread.join(10)
    assert within(10.0, max, 3, 4) == 4


HANGING = """
import threading
from nnunet_topomae.topology.workers import WorkerPool, within
WorkerPool(1).submit(threading.Event().wait)
try:
    within(0.01, threading.Event().wait)
except TimeoutError:
    print("goes on")
"""


def test_a_process_ends_although_its_threads_hang() -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-c", HANGING], timeout=30, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "goes on\n" and not ended.stderr


def test_both_run_at_once_where_a_thread_is_free() -> None:
    meeting = threading.Barrier(2, timeout=10)
    assert set(WorkerPool(1).both(meeting.wait, meeting.wait)) == {0, 1}


def test_both_run_in_turn_where_none_is_free() -> None:
    """Within the only thread of a pool, which waits for nobody."""
    pool = WorkerPool(1)
    threads = pool.submit(pool.both, threading.get_ident, threading.get_ident).result(timeout=10)
    assert len(set(threads)) == 1


def test_what_was_not_started_is_not_kept_and_an_error_is_raised_here() -> None:
    pool, gate = WorkerPool(1), threading.Event()
    pool.submit(gate.wait, 10)  # the only thread is busy
    volume = np.zeros(3)
    kept = weakref.ref(volume)
    second = partial(np.sum, volume)
    assert pool.both(int, second) == (0, 0)
    with pytest.raises(ZeroDivisionError):
        pool.both(lambda: 1 // 0, second)
    del volume, second
    assert kept() is None
    gate.set()


def test_without_a_thread_there_is_an_error_and_no_lost_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = WorkerPool(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(int)
    assert pool.submit(int).result(timeout=10) == 0
