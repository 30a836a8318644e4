"""Child processes and their logs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_topomae.nnunet.process import find_program, last_lines


def test_a_missing_program_is_named() -> None:
    with pytest.raises(RuntimeError, match="nnUNetv2_no_such_command"):
        find_program("nnUNetv2_no_such_command")


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert last_lines(log) == []
    log.write_bytes(b"".join(b"line %d\n\n" % number for number in range(30)))
    assert last_lines(log) == [f"line {number}" for number in range(10, 30)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_of_an_overwritten_line_its_last_state_is_shown(tmp_path: Path, end: bytes) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"start\n 10 %|\r 50 %|\r100 %|" + end)
    assert last_lines(log) == ["start", "100 %|"]


PARENT = """
import sys, time
from multiprocessing import get_context
from threading import Thread
from nnunet_topomae.nnunet.process import end_forks_with_this_process
end_forks_with_this_process()
workers = []
def start():
    workers.append(get_context("fork").Process(target=time.sleep, args=(60,), daemon=True))
    workers[-1].start()
start()
thread = Thread(target=start)
thread.start()
thread.join()
time.sleep(0.1)
print(*(worker.pid for worker in workers), workers[1].is_alive(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a request to Linux")
def test_workers_end_with_a_parent_that_was_killed() -> None:
    """Forks of the main thread; those of a thread that has ended live on as long as they like."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    *numbers, alive = parent.stdout.readline().split()
    worker, of_thread = map(int, numbers)
    assert alive == "True"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(worker)
    os.kill(of_thread, signal.SIGKILL)


def _runs(number: int) -> bool:
    """Whether a process runs; one that has ended and waits to be fetched does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
