"""Where a job's results lie, and whether it is done. Quick to import; POSIX only.

``runs/<job>/<fingerprint>/`` holds everything of one job. ``done.json`` is written last, by rename, with hashes of the
outputs; nothing else means done. A lock on ``lease`` is held while a process works on the job and vanishes with the
process, however it ends.
"""

import fcntl
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.files import hash_file, read_json, write_json

State = Literal["done", "running", "failed", "stopped", "waiting"]
# What a score job makes.
SCORES = "scores.json"
# In the folder of a score that was made on another machine: the file that it came with.
IMPORTED = "imported.json"
# In the environment of all processes of a job, so that those which outlive it are found.
TOKEN = "NNUNET_TOPOMAE_JOB"


class BusyError(RuntimeError):
    """Another process works on it."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job.

    Attributes:
        job: the job.
        path: `runs/<job>/<fingerprint>`.
    """

    job: Job
    path: Path

    @classmethod
    def of(cls, job: Job, spec: BenchmarkSpec) -> "JobFolder":
        """The folder of a job with its present fingerprint.

        Args:
            job: the job.
            spec: the benchmark; the folder lies in `runs` of its `out`.
        """
        return cls(job, spec.out / "runs" / job.place / job.fingerprint)

    @property
    def log(self) -> Path:
        """Everything that the job's commands printed."""
        return self.path / "log.txt"

    @property
    def results(self) -> Path:
        """The job's own nnUNet_results."""
        return self.path / "nnUNet_results"

    @property
    def preprocessed(self) -> Path:
        """The job's own nnUNet_preprocessed."""
        return self.path / "nnUNet_preprocessed"

    @property
    def dataset(self) -> Path:
        """The data set in the job's own nnUNet_preprocessed."""
        return self.preprocessed / self.job.dataset

    @property
    def model(self) -> Path:
        """nnU-Net's folder of the model that the job trains."""
        parameters, configuration = self.job.parameters, self.job.need("plan").parameters["configuration"]
        name = f"{parameters['trainer']}__{variant_name(parameters['plans'])}__{configuration}"
        return self.results / self.job.dataset / name

    @property
    def fold(self) -> Path:
        """The trained fold inside :attr:`model`."""
        return self.model / f"fold_{self.job.fold}"

    @property
    def predictions(self) -> Path:
        """Where the job puts, or reads, the label maps that are scored."""
        return self.fold / "validation" if self.job.kind == "train" else self.path / "predictions"

    def state(self) -> State:
        """What is known from outside, without touching anything."""
        if (self.path / "done.json").is_file():
            return "done"
        lease = self.path / "lease"
        if not lease.is_file():
            return "waiting"
        if is_locked(lease):
            return "running"
        return "failed" if (self.path / "failed.json").is_file() else "stopped"

    def done(self) -> dict[str, Any] | None:
        """Content of done.json, None if the job is not done.

        Raises:
            ValueError: it is damaged; names the file and the cure.
        """
        file = self.path / "done.json"
        return self._read(file, "outputs", dict) if file.is_file() else None

    def _read(self, file: Path, key: str, kind: type) -> dict[str, Any]:
        """A table that a job wrote, with a value that it always has."""
        cure = f"Delete {self.path} to make it again."
        try:
            read = read_json(file)
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}. {cure}") from error
        if not isinstance(read, dict) or not isinstance(read.get(key), kind):
            raise ValueError(f"{file} is damaged: it is no table with {key!r} as it should be. {cure}")
        return read

    def check_outputs(self) -> None:
        """Compare the outputs with the hashes in done.json.

        Raises:
            ValueError: a file is missing or has changed.
        """
        done = self.done() or {"outputs": {}}
        for name, expected in done["outputs"].items():
            file = self.path / name
            if not file.is_file() or hash_file(file) != expected:
                raise ValueError(
                    f"{file} is not what its job made: missing, or changed. Delete {self.path} to make it again."
                )

    def finish(self, outputs: Iterable[Path], facts: Mapping[str, Any]) -> None:
        """Mark the job as done.

        Args:
            outputs: files in the job's folder; `done.json` lists their hashes.
            facts: JSON values that `done.json` also holds, such as `seconds`.
        """
        hashes = {str(path.relative_to(self.path)): hash_file(path) for path in outputs}
        write_json(self.path / "done.json", {"outputs": hashes, **facts})
        (self.path / "failed.json").unlink(missing_ok=True)

    def error(self) -> str:
        """Why the job failed; empty if it did not."""
        file = self.path / "failed.json"
        return str(self._read(file, "error", str)["error"]) if file.is_file() else ""

    def fail(self, facts: Mapping[str, Any]) -> None:
        """Record a failure.

        Args:
            facts: JSON values of `failed.json`: `time` in seconds since 1970, and `error`, the message.
        """
        write_json(self.path / "failed.json", dict(facts))

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the job. Processes that a killed predecessor left behind are ended first.

        Raises:
            BusyError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path / "lease"):
            end_orphans(self.path)
            yield

    def end_orphans(self) -> None:
        """End what a job's process left behind, unless another process works on the job now."""
        if self.path.is_dir():
            with suppress(BusyError), self.lease():
                pass


def jobs_to_do(jobs: Sequence[Job], spec: BenchmarkSpec) -> list[Job]:
    """The jobs that are not done, in their order, without those that only lead to results of other machines.

    Args:
        jobs: each after those that it needs; those that no other one needs are wanted.
        spec: the benchmark.
    """
    used = {need.name for job in jobs for need in job.needs}
    wanted: set[str] = set()
    needed: set[str] = set()
    for job in reversed(jobs):
        folder = JobFolder.of(job, spec)
        done = folder.done() is not None
        elsewhere = done and (folder.path / IMPORTED).is_file()
        if not elsewhere and (job.name in needed or job.name not in used):
            needed |= {need.name for need in job.needs}
            if not done:
                wanted.add(job.name)
    return [job for job in jobs if job.name in wanted]


def variant_name(plans: str) -> str:
    """Name of a recipe's plans, made from base plans."""
    return f"{plans}_benchmark"


def without_folders(command: str, spec: BenchmarkSpec) -> str:
    """A command without this machine's folders, for results that leave it.

    Args:
        command: as for a shell.
        spec: the benchmark; `$OUT` and `$nnUNet_raw` stand for its folders. Those of preprocessed data and of results
            lie in `$OUT`.
    """
    raw = spec.raw_folder()
    folders = {str(spec.out): "$OUT", str(raw): "$nnUNet_raw", str(raw.absolute()): "$nnUNet_raw"}
    for folder in sorted(folders, key=len, reverse=True):  # one may lie in the other
        whole = rf"(?<![^\s'=]){re.escape(folder)}(?![^\s'/])"
        command = re.sub(whole, folders[folder], command)
    return command


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold a file locked.

    Args:
        file: created where it does not exist; it stays when the lock is released.

    Raises:
        BusyError: another process holds it.
    """
    with file.open("a") as opened:
        # More than once: `status` holds a shared lock for a moment.
        for attempt in reversed(range(5)):
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not attempt:
                    raise BusyError(f"another process works in {file.parent}") from error
                time.sleep(0.1)
        yield


def is_locked(lease: Path) -> bool:
    """Whether a process holds the lock."""
    with lease.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def end_orphans(folder: Path) -> list[int]:
    """Kill what still runs for a job whose supervisor is gone; returns the processes' numbers."""
    ended = []
    for process in _processes(folder):
        with suppress(OSError):
            os.kill(int(process.name), signal.SIGKILL)
            ended.append(int(process.name))
    return ended


def running_cpu_seconds(folder: Path) -> float:
    """CPU seconds of a job's running processes, other than this one, and of the ended children that they waited for."""
    ticks = 0
    for process in _processes(folder):
        with suppress(OSError):
            # After the name, which may contain spaces and brackets: user and system time, and those of ended children.
            ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes(folder: Path) -> Iterator[Path]:
    """In /proc, a job's other processes: known by the job's folder in their environment (Linux)."""
    token = f"{TOKEN}={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and token in (process / "environ").read_bytes().split(b"\0"):
                yield process
