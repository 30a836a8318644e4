"""Does one job, in a process of its own that can be killed at any moment.

Training is continued from its last good checkpoint; every other stage starts from nothing.
"""

import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import (
    TOKEN,
    BusyError,
    JobFolder,
    end_orphans,
    running_cpu_seconds,
    without_folders,
)
from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.nnunet.process import die_with_parent, end_session, find_program
from nnunet_topomae.nnunet.provenance import describe_commit, describe_machine, describe_versions

ATTEMPTS = "attempts.json"
# Between two notes of what a running attempt has taken: this much may be missing after kill -9.
BOOKING_SECONDS = 30.0
DONE, FAILED, BUSY, WAITING, UNFINISHED, CHANGED = 0, 1, 75, 76, 77, 78
# Why a job was not even started.
REASONS = {
    BUSY: "another process is running this job",
    WAITING: "a job that it needs has not finished",
    CHANGED: "the file, the data or the code were changed since it was submitted: it is another job now",
}
# Of an attempt's provenance, what the result is made with; the rest is what the file states.
_MADE_WITH = ("versions", "commit", "machine", "device")
# What an interrupted training gets for its step and its checkpoint. SLURM warns 120 s ahead (benchmark/slurm.py).
SAVE_SECONDS = 90.0


class Interrupted(Exception):  # noqa: N818
    """The job was asked to stop, and can be continued."""


class Worker:
    """Works on one job.

    Args:
        job: what to do.
        spec: the benchmark.
    """

    def __init__(self, job: Job, spec: BenchmarkSpec) -> None:
        self.job, self.spec = job, spec
        self.folder = JobFolder.of(job, spec)
        self.commands: list[str] = []
        self.attempts: list[dict[str, Any]] = []
        self.start = self.used_before = 0.0

    def run(self) -> int:
        """Do the job; returns 0 done, 75 another process is on it, 76 a job that it needs is not done, 77 interrupted.

        Raises:
            RuntimeError: a command failed.
            ValueError: an output of another job is not what it was.
        """
        if self.folder.done():
            return DONE
        for need in self.job.needs:
            if not JobFolder.of(need, self.spec).done():
                return WAITING
        previous = {name: signal.signal(name, _interrupt) for name in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            with self.folder.lease():
                return self._attempt()
        except BusyError:
            return BUSY
        except Interrupted:
            return UNFINISHED
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def _attempt(self) -> int:
        from nnunet_topomae.benchmark.stages import STAGES, Task

        if self.folder.done():  # by another process that held the lease a moment ago
            return DONE
        for need in self.job.needs:
            JobFolder.of(need, self.spec).check_outputs()
        write_json(self.folder.path / "job.json", {"name": self.job.name, "parameters": dict(self.job.parameters)})
        self.attempts = self._earlier_attempts()
        self.attempts.append(
            {"started": time.time(), "host": socket.gethostname(), "provenance": provenance(self.job, self.spec)}
        )
        self.start, self.used_before = time.monotonic(), _cpu_seconds()
        self._book()
        try:
            outputs = STAGES[self.job.kind](Task(self.job, self.spec, self.command))
        except Exception as error:
            if not isinstance(error, Interrupted):
                self.folder.fail({"time": time.time(), "error": str(error)})
            raise
        finally:
            self._book()
        self._finish(outputs)
        return DONE

    def _earlier_attempts(self) -> list[dict[str, Any]]:
        file = self.folder.path / ATTEMPTS
        if not file.is_file():  # a log is of an attempt whose record was deleted
            return [{}] if self.folder.log.is_file() else []
        try:
            read: Any = read_json(file)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{file} is damaged: {error}. Delete it: the report then does not know earlier attempts."
            ) from error
        if not isinstance(read, list) or not all(map(_is_attempt, read)):
            raise ValueError(
                f"{file} is damaged: it is no list of attempts. Delete it: the report then does not know earlier "
                "attempts."
            )
        return read

    def _book(self) -> None:
        """Write down what the attempt has taken so far, for the case that it is killed."""
        attempt = self.attempts[-1]
        attempt["seconds"] = time.monotonic() - self.start
        used = _cpu_seconds() + running_cpu_seconds(self.folder.path) - self.used_before
        # What a killed process has used is not seen any more.
        attempt["cpu_seconds"] = max(used, attempt.get("cpu_seconds", 0.0))
        write_json(self.folder.path / ATTEMPTS, self.attempts)

    def _finish(self, outputs: list[Path]) -> None:
        facts: dict[str, Any] = {
            key: sum(attempt.get(key, 0.0) for attempt in self.attempts) for key in ("seconds", "cpu_seconds")
        }
        facts["attempts"] = len(self.attempts)
        facts["peak_process_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        origin = merge_provenance([attempt.get("provenance") for attempt in self.attempts])
        facts |= {"finished": time.time(), "commands": self.commands, "provenance": origin}
        self.folder.finish(outputs, facts)

    def command(self, program: str, *arguments: str) -> None:
        """Run one of nnU-Net's commands; whatever it starts ends with it.

        Args:
            program: name of the console script, such as `nnUNetv2_train`.
            *arguments: its arguments, without a shell.

        Raises:
            RuntimeError: it failed; names the log.
        """
        environment = {
            **os.environ,
            # Threads of torch share the cores with data workers: waiting must not spin.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            **self.spec.environment,
            "nnUNet_raw": str(self.spec.raw_folder().absolute()),
            "nnUNet_preprocessed": str(self.folder.preprocessed),
            "nnUNet_results": str(self.folder.results),
            TOKEN: str(self.folder.path),
        }
        line = shlex.join([program, *arguments])
        self.commands.append(without_folders(line, self.spec))
        with self.folder.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {line}\n")
            log.flush()
            child = subprocess.Popen(
                [find_program(program), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            try:
                self._wait(child)
            except Interrupted:
                child.terminate()  # a training writes a checkpoint and ends; a second signal ends this wait
                self._wait(child, SAVE_SECONDS)
                raise
            finally:
                end_session(child)
                end_orphans(self.folder.path)
        if child.returncode != 0:
            raise RuntimeError(f"{program} of job {self.job.name} failed ({child.returncode}); see {self.folder.log}")

    def _wait(self, child: "subprocess.Popen[bytes]", seconds: float = inf) -> None:
        """Book what a command takes until it has ended, or the seconds are over."""
        end = time.monotonic() + seconds
        while child.poll() is None and (left := end - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                child.wait(min(BOOKING_SECONDS, left))
            self._book()


def provenance(job: Job, spec: BenchmarkSpec) -> dict[str, Any]:
    """What an attempt is made with and where, and what the benchmark's file states when it starts.

    Args:
        job: what is attempted.
        spec: the benchmark, as its file is now.
    """
    device = job.parameters.get("device")
    return {
        "versions": describe_versions(),
        "commit": describe_commit(),
        "machine": _machine_with_gpu() if device == "cuda" else describe_machine(gpu=False),
        "device": device,
        "primary": spec.stated,
        "planned": spec.planned,
    }


def merge_provenance(attempts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """The provenance of a result: that of the first attempt, which alone tells what was stated beforehand.

    Args:
        attempts: what each attempt recorded when it started, None where an earlier version did not; not the last one.

    Returns:
        the first record, with those of later attempts under `later` where they were made with something else. If the
        first attempt has none, what was stated is not known and left out.
    """
    known = [{key: attempt[key] for key in _MADE_WITH} for attempt in attempts if attempt is not None]
    later = [made for number, made in enumerate(known) if made not in known[:number]][1:]
    return {**known[0], **(attempts[0] or {}), **({"later": later} if later else {})}


def _machine_with_gpu() -> dict[str, str]:
    """The machine as a process of its own sees it: the one that asks torch for the GPU keeps some of its memory."""
    code = "import json; from nnunet_topomae.nnunet import provenance as p; print(json.dumps(p.describe_machine()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else describe_machine(gpu=False)


def _is_attempt(read: Any) -> bool:
    """Whether something in the record of attempts is one."""
    return isinstance(read, dict) and all(
        isinstance(read.get(key, 0.0), int | float) for key in ("seconds", "cpu_seconds")
    )


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(signal.Signals(number).name)


def _cpu_seconds() -> float:
    """Of all children that this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
