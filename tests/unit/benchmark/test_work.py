"""What a job costs, killed attempts included."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnunet_topomae.benchmark import stages, work
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.primary import Primary
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.stages import Task
from nnunet_topomae.benchmark.store import TOKEN
from nnunet_topomae.benchmark.work import DONE, UNFINISHED, Interrupted, Worker
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_is_booked_of_processes_that_nobody_waits_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own child does the work, for at least 20 ticks of 0.01 s, and is killed with it."""
    used = "$(cut -d ' ' -f 14 /proc/$child/stat)"
    busy = f"while :; do :; done & child=$!; while [ {used} -lt 20 ]; do sleep 0.1; done; kill -9 $$"
    monkeypatch.setitem(stages.STAGES, "train", lambda task: task.command("sh", "-c", busy))
    with pytest.raises(RuntimeError, match="failed"):
        worker.run()
    (attempt,) = read_json(worker.folder.path / work.ATTEMPTS)
    assert 0.1 < attempt["cpu_seconds"] <= attempt["seconds"] + 0.1


def send_when(file: Path, number: int, pause: float = 0.0) -> threading.Thread:
    """Send this process a signal when a file is there."""

    def send() -> None:
        while not file.exists():
            time.sleep(0.01)
        time.sleep(pause)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_training_that_is_interrupted_may_save_first(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    ready, asked, saved = (tmp_path / name for name in ("ready", "asked", "saved"))
    booked = worker.folder.path / work.ATTEMPTS
    save = f"cp {booked} {asked}; sleep 0.3; cp {booked} {saved}; exit 143"
    script = f"trap '{save}' TERM; touch {ready}; while :; do sleep 0.02; done"
    monkeypatch.setitem(stages.STAGES, "train", lambda task: task.command("sh", "-c", script) or [])
    sender = send_when(ready, number)
    assert worker.run() == UNFINISHED
    sender.join()
    assert read_json(saved)[0]["seconds"] > read_json(asked)[0]["seconds"] + 0.1  # booked meanwhile


def test_a_second_signal_ends_a_training_that_does_not_stop(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM; touch {ready}; while :; do sleep 0.02; done"
    monkeypatch.setitem(stages.STAGES, "train", lambda task: task.command("sh", "-c", script) or [])
    senders = [send_when(ready, signal.SIGUSR1), send_when(ready, signal.SIGTERM, 0.5)]
    start = time.monotonic()
    assert worker.run() == UNFINISHED
    assert 0.4 < time.monotonic() - start < work.SAVE_SECONDS / 2
    for sender in senders:
        sender.join()


def test_what_a_job_of_another_driver_runs_is_no_orphan(worker: Worker) -> None:
    """The process of this driver has ended, and another driver has the job already."""
    environment = {**os.environ, TOKEN: str(worker.folder.path)}
    with worker.folder.lease():
        child = subprocess.Popen(["sleep", "60"], env=environment)
        worker.folder.end_orphans()
        assert child.poll() is None
    worker.folder.end_orphans()
    assert child.wait(10) == -signal.SIGKILL


def test_killed_attempts_count(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.folder.path.mkdir(parents=True)
    write_json(
        worker.folder.path / work.ATTEMPTS, [{"started": 1.0, "host": "any", "seconds": 50.0, "cpu_seconds": 80.0}]
    )
    monkeypatch.setitem(stages.STAGES, "train", lambda task: [])
    monkeypatch.setattr(work.time, "time", lambda: -3600.0)  # a clock that was set back does not matter
    assert worker.run() == DONE
    done = worker.folder.done()
    assert done is not None and done["attempts"] == 2 and 50.0 < done["seconds"] < 60.0
    assert 80.0 <= done["cpu_seconds"] < 90.0


@pytest.mark.parametrize("content", ["[{", "{}", "7", '[{"seconds": "50"}]'])
def test_damaged_attempts_are_named(worker: Worker, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """What earlier attempts have cost is not forgotten without a word."""
    worker.folder.path.mkdir(parents=True)
    file = worker.folder.path / work.ATTEMPTS
    file.write_text(content)
    monkeypatch.setitem(stages.STAGES, "train", lambda task: [])
    with pytest.raises(ValueError, match=rf"{work.ATTEMPTS} is damaged.*Delete it"):
        worker.run()
    assert file.read_text() == content and worker.folder.done() is None


def test_a_done_job_says_where_and_with_what_it_was_made(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.STAGES, "train", lambda task: [])
    assert worker.run() == DONE
    done = worker.folder.done()
    assert done is not None
    versions, machine = done["provenance"]["versions"], done["provenance"]["machine"]
    assert {"Python", "torch", "nnunetv2", "numpy"} <= set(versions) and {"system", "processor"} <= set(machine)
    assert done["provenance"]["primary"] is None and "later" not in done["provenance"]


@pytest.mark.parametrize("raw", ["data", "out/nnUNet_raw", "out of house"])
def test_recorded_commands_name_no_folders_of_the_machine(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: str
) -> None:
    """One folder may lie in the other, or begin with its name."""
    spec = replace(worker.spec, raw=tmp_path / raw)
    arguments = [str(tmp_path / raw / "imagesTs"), f"--to={spec.out}", str(spec.out / "a b"), f"{spec.out}2/x"]
    monkeypatch.setitem(stages.STAGES, "train", lambda task: task.command("true", *arguments) or [])
    worker = Worker(worker.job, spec)
    assert worker.run() == DONE
    done = worker.folder.done()
    assert done is not None
    quote = "'" if " " in raw else ""
    images = f"{quote}$nnUNet_raw/imagesTs{quote}"
    assert done["commands"] == [f"true {images} --to=$OUT '$OUT/a b' {tmp_path}/out2/x"]
    assert shlex.join(arguments) in worker.folder.log.read_text()  # which stays here


def interrupted(job: Job, spec: BenchmarkSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that begins to train and is then asked to stop."""

    def stage(task: Task) -> list[Path]:
        task.command("true")
        raise Interrupted

    monkeypatch.setitem(stages.STAGES, "train", stage)
    assert Worker(job, spec).run() == UNFINISHED


def finished(job: Job, spec: BenchmarkSpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Provenance of a job whose last attempt succeeds."""
    monkeypatch.setitem(stages.STAGES, "train", lambda task: [])
    worker = Worker(job, spec)
    assert worker.run() == DONE
    done = worker.folder.done()
    assert done is not None
    return dict(done["provenance"])


def test_what_was_stated_is_what_the_file_said_when_the_training_began(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what was added while the training was interrupted and its validation could be watched."""
    later = replace(worker.spec, primary=Primary("full", "unetrpp", "dice", 0.25), margin=0.01, seeds=(0, 1))
    stated = {"recipe": "full", "against": "unetrpp", "metric": "dice", "fraction": 0.25, "margin": 0.01}
    interrupted(worker.job, worker.spec, monkeypatch)
    monkeypatch.setattr(work, "describe_commit", lambda: "newer")
    found = finished(worker.job, later, monkeypatch)
    assert (found["primary"], found["planned"]["seeds"]) == (None, [0])
    # But with what all attempts were made is known.
    assert found["commit"] != "newer" and [made["commit"] for made in found["later"]] == ["newer"]
    # The other way round: what was taken out of the file later was stated.
    other = replace(worker.job, name="other")
    interrupted(other, later, monkeypatch)
    found = finished(other, worker.spec, monkeypatch)
    assert (found["primary"], found["planned"]["seeds"]) == (stated, [0, 1])
    assert "later" not in found


@pytest.mark.parametrize("delete", [False, True])
def test_what_a_first_attempt_without_a_record_stated_is_not_known(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    """Of an earlier version, or where the record was deleted because it was damaged."""
    stated = replace(worker.spec, primary=Primary("full", "unetrpp", "dice"))
    interrupted(worker.job, stated, monkeypatch)
    file = worker.folder.path / work.ATTEMPTS
    if delete:
        file.unlink()
    else:
        write_json(file, [{"started": 1.0, "host": "any", "seconds": 50.0, "cpu_seconds": 80.0}])
    found = finished(worker.job, stated, monkeypatch)
    assert {"primary", "planned"}.isdisjoint(found) and "torch" in found["versions"]
    done = worker.folder.done()
    assert done is not None and done["attempts"] == 2


def test_the_gpu_is_looked_for_by_another_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one would keep some of its memory while the training runs."""
    monkeypatch.setattr(work, "describe_machine", lambda gpu: {"system": f"asked here, GPU {gpu}"})
    there = work.provenance(replace(JOB, parameters={"device": "cuda"}), worker.spec)["machine"]
    assert "asked here" not in there["system"] and "processor" in there
    here = work.provenance(replace(JOB, parameters={"device": "cpu"}), worker.spec)["machine"]
    assert here == {"system": "asked here, GPU False"}
