"""How far a benchmark is: from the jobs' folders alone, in less than a second, without torch."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import JobFolder, State, jobs_to_do
from nnunet_topomae.training.record import METRICS_FILE, duration, read_epochs

BAR = 20


@dataclass(frozen=True)
class JobStatus:
    """What is known of one job.

    Attributes:
        job: the job.
        state: as in :class:`JobFolder`.
        epochs: finished epochs.
        seconds_per_epoch: of the last epochs; None where there is none.
        seconds: what a done job took.
    """

    job: Job
    state: State
    epochs: int = 0
    seconds_per_epoch: float | None = None
    seconds: float | None = None

    @property
    def remaining(self) -> float | None:
        """Seconds that the training probably still takes."""
        if self.state == "done" or not self.job.epochs or self.seconds_per_epoch is None:
            return None
        return (self.job.epochs - self.epochs) * self.seconds_per_epoch


def job_status(job: Job, spec: BenchmarkSpec) -> JobStatus:
    """Look at one job's folder.

    Args:
        job: the job.
        spec: the benchmark, which knows where the folder is.
    """
    folder = JobFolder.of(job, spec)
    state = folder.state()
    if state == "done":
        done = folder.done() or {}
        return JobStatus(job, state, job.epochs, seconds=done.get("seconds"))
    if state == "waiting" or not job.epochs:
        return JobStatus(job, state)
    times = epoch_seconds(folder)
    recent = times[-5:]
    return JobStatus(job, state, len(times), sum(recent) / len(recent) if recent else None)


def epoch_seconds(folder: JobFolder) -> list[float]:
    """Seconds of every finished epoch, from the records of our trainers or nnU-Net's log.

    Args:
        folder: of a training.
    """
    if (folder.fold / METRICS_FILE).is_file():
        return [record["seconds"] for record in read_epochs(folder.fold)]
    text = folder.log.read_text(errors="replace") if folder.log.is_file() else ""
    return [float(value) for value in re.findall(r"Epoch time: ([\d.]+) s", text)]


def total_macs(facts: Sequence[Mapping[str, Any]]) -> float | None:
    """Multiply-accumulate operations of the forward passes of trainings; None where one does not say.

    Args:
        facts: of each training, as in `training.json`.
    """
    if any({"steps", "crops_per_step", "macs"} - set(found) for found in facts):
        return None
    return float(sum(found["steps"] * found["crops_per_step"] * found["macs"] for found in facts))


def describe(jobs: Sequence[Job], spec: BenchmarkSpec, slots: int = 1) -> str:
    """The whole benchmark on a page: one line per job that runs or failed, and sums.

    Args:
        jobs: the benchmark's jobs; all of them are counted.
        spec: the benchmark.
        slots: jobs that run at a time, for the estimate of the end.
    """
    to_do = {job.name for job in jobs_to_do(jobs, spec)}
    found = [job_status(job, spec) for job in jobs]
    counts = Counter(
        "not needed here" if status.state == "waiting" and status.job.name not in to_do else status.state
        for status in found
    )
    lines = [f"{spec.name}: {len(found)} jobs, " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))]
    found = [status for status in found if status.state != "waiting" or status.job.name in to_do]
    for status in found:
        if status.state in ("running", "failed", "stopped"):
            lines.append(f"  {status.state:<8} {_progress(status)} {status.job.name}{_hint(status, spec)}")
    lines.append(_estimate(found, slots))
    return "\n".join(line for line in lines if line)


def _progress(status: JobStatus) -> str:
    total = status.job.epochs
    if not total:
        return " " * (BAR + 2)
    filled = round(BAR * status.epochs / total)
    speed = "" if status.seconds_per_epoch is None else f" {status.seconds_per_epoch:.3g} s per epoch"
    left = "" if not status.remaining else f", {duration(status.remaining)} left"
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {status.epochs}/{total}{speed}{left}"


def _hint(status: JobStatus, spec: BenchmarkSpec) -> str:
    return f"\n           {JobFolder.of(status.job, spec).error()}" if status.state == "failed" else ""


def _estimate(found: Sequence[JobStatus], slots: int) -> str:
    """Hours that are left, from the mean of finished jobs of the same stage."""
    missing = [status for status in found if status.state != "done"]
    if not missing:
        total = sum(status.seconds or 0.0 for status in found)
        return f"all done, {duration(total)} of work"
    seconds = 0.0
    for status in missing:
        alike = [s.seconds for s in found if s.job.kind == status.job.kind and s.seconds is not None]
        if status.remaining is not None:
            seconds += status.remaining
        elif alike:
            seconds += sum(alike) / len(alike)
        else:
            return "no estimate yet: no job of every stage is done"
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds / slots))
    return f"about {duration(seconds)} of work left; done at {end} with {slots} at a time"
