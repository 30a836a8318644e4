"""What a job costs, killed attempts included."""

from pathlib import Path

import pytest

from nnunet_topomae.benchmark import stages, work
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.stages import Task
from nnunet_topomae.benchmark.work import DONE, Worker
from nnunet_topomae.files import read_json, write_json

JOB = Job("train", "train", "Dataset005_Five", {})


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(work, "BOOKING_SECONDS", 0.02)
    spec = BenchmarkSpec("bench", tmp_path / "out", (5,), (), ("x",), raw=tmp_path)
    return Worker(JOB, spec)


def test_an_attempt_is_booked_while_it_runs(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that kill -9, after which nothing is written, does not hide what it has cost."""
    booked = []

    def stage(task: Task) -> list[Path]:
        file = task.folder.path / work.ATTEMPTS
        booked.append(read_json(file)[-1]["seconds"])
        task.command("sleep", "0.2")
        booked.append(read_json(file)[-1]["seconds"])
        return []

    monkeypatch.setitem(stages.STAGES, "train", stage)
    assert worker.run() == DONE
    assert booked[0] < 0.1 < 0.15 < booked[1]


def test_killed_attempts_count(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.folder.path.mkdir(parents=True)
    write_json(worker.folder.path / work.ATTEMPTS, [{"started": 1.0, "host": "any", "seconds": 50.0}])
    monkeypatch.setitem(stages.STAGES, "train", lambda task: [])
    monkeypatch.setattr(work.time, "time", lambda: -3600.0)  # a clock that was set back does not matter
    assert worker.run() == DONE
    done = worker.folder.done()
    assert done is not None and done["attempts"] == 2 and 50.0 < done["seconds"] < 60.0
