"""Runs a benchmark's jobs on one machine: in order, as many at a time as there are slots."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from nnunet_topomae.benchmark.gpus import DEVICE_ORDER, hold_gpu
from nnunet_topomae.benchmark.jobs import Job, job_command
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.status import job_status
from nnunet_topomae.benchmark.store import JobFolder, jobs_to_do
from nnunet_topomae.benchmark.work import BUSY, CHANGED, DONE, REASONS, SAVE_SECONDS, UNFINISHED, WAITING
from nnunet_topomae.training.record import duration

POLL_SECONDS = 0.5
OTHERS_SECONDS = 5.0
# A job that was asked to stop waits for its training, and then ends what that has left behind.
STOP_SECONDS = SAVE_SECONDS + 10.0


class Stopped(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C raises a plain KeyboardInterrupt."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """The shell's code for a program that was ended by SIGTERM (143) or by Ctrl-C (130)."""
    return 143 if isinstance(stop, Stopped) else 130


@dataclass
class Outcome:
    """What became of the jobs: names by state."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)


class LocalScheduler:
    """Runs jobs as child processes.

    Args:
        spec: the benchmark.
        file: the benchmark's file, for the children.
        gpus: a slot for each entry: what CUDA_VISIBLE_DEVICES is in it, None to leave it as it is. Of all drivers of a
            user on a machine, one uses a GPU at a time.
    """

    def __init__(self, spec: BenchmarkSpec, file: Path, gpus: Sequence[str | None]) -> None:
        self.spec, self.file = spec, file.absolute()
        self.free = list(gpus)
        self.threads = max(1, (os.cpu_count() or 1) // len(self.free))
        self.running: dict[subprocess.Popen[bytes], tuple[Job, str | None]] = {}
        self.bars: dict[str, tqdm[NoReturn]] = {}

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Run all jobs that are not done; a failed one takes those that need it with it, and no others.

        SIGTERM ends what runs, as Ctrl-C does, after trainings have written a checkpoint; the second time at once. Run
        again to continue. Where stderr is a terminal, bars show the jobs
        and the epochs of the running trainings.

        Args:
            jobs: each after those that it needs.

        Raises:
            KeyboardInterrupt: Ctrl-C; after SIGTERM its subclass Stopped.
        """
        outcome = Outcome()
        previous = signal.signal(signal.SIGTERM, _stop)
        waiting = jobs_to_do(jobs, self.spec)
        left = {job.name for job in waiting}
        outcome.done += [job.name for job in jobs if job.name not in left]
        try:
            with tqdm(total=len(jobs), initial=len(outcome.done), unit="job", smoothing=0, disable=None) as bar:
                while waiting or self.running:
                    self._start(waiting, outcome)
                    if self.running:
                        time.sleep(POLL_SECONDS)
                    elif waiting:
                        time.sleep(OTHERS_SECONDS)
                    waiting += self._collect(outcome)
                    self._show_epochs(bar)
                    bar.set_description(", ".join(job.name for job, _ in self.running.values())[:60])
                    bar.update(len(jobs) - len(waiting) - len(self.running) - bar.n)
        finally:
            self._end()
            signal.signal(signal.SIGTERM, previous)
        return outcome

    def _start(self, waiting: list[Job], outcome: Outcome) -> None:
        """Start what can start; drop what never can."""
        lost = {*outcome.failed, *outcome.skipped, *outcome.interrupted}
        finished = set(outcome.done)
        for job in list(waiting):
            needs = {need.name for need in job.needs}
            if needs & lost:
                waiting.remove(job)
                lost.add(job.name)
                outcome.skipped.append(job.name)
            elif needs <= finished and self.free:
                state = JobFolder.of(job, self.spec).state()
                if state == "running":  # another driver is on it
                    continue
                if state != "done" and not self._launch(job):
                    return
                waiting.remove(job)
                if state == "done":
                    outcome.done.append(job.name)

    def _launch(self, job: Job) -> bool:
        """Start a job on a free GPU; False where other drivers use all of them."""
        gpu, held = next(((gpu, held) for gpu in self.free if (held := hold_gpu(gpu)) is not None), (None, None))
        if held is None:
            return False
        self.free.remove(gpu)
        environment = {**DEVICE_ORDER, **os.environ}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        argv = [*job_command(self.file, job), "--fingerprint", job.fingerprint]
        # A session of its own: Ctrl-C reaches this process alone, which then stops the children in order.
        # It inherits the lock on the GPU, which lasts as long as it lives, whatever becomes of this process.
        with held:
            child = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=held.descriptors
            )
        self.running[child] = (job, gpu)
        return True

    def _show_epochs(self, jobs: "tqdm[NoReturn]") -> None:
        """A bar for each training that runs, below the bar of the jobs."""
        running = {job.name: job for job, _ in self.running.values() if job.epochs and not jobs.disable}
        for name in [name for name in self.bars if name not in running]:
            self.bars.pop(name).close()
        for name, job in running.items():
            if name not in self.bars:
                place = min(set(range(1, len(self.bars) + 2)) - {-bar.pos for bar in self.bars.values()})
                self.bars[name] = tqdm(total=job.epochs, desc=name, unit="epoch", leave=False, position=place)
            self.bars[name].n = job_status(job, self.spec).epochs
            self.bars[name].refresh()

    def _collect(self, outcome: Outcome) -> list[Job]:
        """Take the results of children that have ended; returns jobs to try again."""
        again = []
        for child, (job, gpu) in list(self.running.items()):
            code = child.poll()
            if code is None:
                continue
            del self.running[child]
            self.free.append(gpu)
            folder = JobFolder.of(job, self.spec)
            if code not in REASONS:
                folder.end_orphans()
            if code == DONE:
                outcome.done.append(job.name)
                tqdm.write(f"done: {job.name}, {duration((folder.done() or {}).get('seconds', 0.0))}")
            elif code == BUSY:
                again.append(job)
            elif code == CHANGED:
                raise RuntimeError(
                    f"{self.file}, the data or the code were changed during the run: {job.name} is another job now, "
                    "or none. "
                    "What runs is stopped. Run again, and it continues with what there is now."
                )
            elif code == UNFINISHED:
                outcome.interrupted.append(job.name)
            else:
                outcome.failed.append(job.name)
                why = "a job that it needs is not done any more" if code == WAITING else f"see {folder.log}"
                tqdm.write(f"failed: {job.name}, {why}")
        return again

    def _end(self) -> None:
        """End what still runs; another run continues it."""
        for bar in self.bars.values():
            bar.close()
        if self.running:
            tqdm.write(
                f"Stopping: trainings write a checkpoint, for up to {SAVE_SECONDS:g} s. Ctrl-C again kills them."
            )
        deadline = time.monotonic() + STOP_SECONDS
        with suppress(KeyboardInterrupt):
            for child in self.running:
                child.terminate()
            for child in self.running:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.1, deadline - time.monotonic()))
        for child, (job, _) in self.running.items():
            child.kill()
            child.wait()
            JobFolder.of(job, self.spec).end_orphans()
        self.running.clear()


def _stop(number: int, frame: Any) -> None:
    raise Stopped
