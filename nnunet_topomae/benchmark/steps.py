"""Runs a chain of steps that can be stopped at any moment and taken up again.

A step is a Python function or a command. Each leaves a marker file: first `started`, last `done`, with a fingerprint of
the step's parameters and of all steps before it. A finished step with the same fingerprint is skipped; a started one
is continued; one with another fingerprint, and everything after it, loses its outputs and starts anew.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from nnunet_topomae.files import hash_json, write_json
from nnunet_topomae.nnunet.process import end_session, find_program

POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Command:
    """A child process.

    Attributes:
        argv: program and arguments that decide the result.
        machine_argv: arguments that say where to compute; they do not enter the fingerprint.
        resume_argv: arguments added when an interrupted run is continued.
        record: file to which the child writes one line an epoch.
        epochs: number of epochs to expect there.
    """

    argv: tuple[str, ...]
    machine_argv: tuple[str, ...] = ()
    resume_argv: tuple[str, ...] = ()
    record: Path | None = None
    epochs: int = 0


@dataclass(frozen=True)
class Step:
    """One link of the chain.

    Attributes:
        name: also the name of its log and marker.
        title: what the user reads.
        work: a function without arguments, or a command.
        outputs: files and folders that the step makes, deleted before it starts anew.
        parameters: JSON values that decide the result, besides a command's arguments.
    """

    name: str
    title: str
    work: Callable[[], object] | Command
    outputs: tuple[Path, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """What a finished step cost: wall-clock seconds over all attempts, and its command line."""

    name: str
    title: str
    seconds: float
    command: str
    skipped: bool


class StepError(RuntimeError):
    """A command failed; ``log`` holds its output."""

    def __init__(self, step: Step, code: int, log: Path) -> None:
        super().__init__(f"step '{step.name}' failed with exit code {code}; its whole output is in {log}")
        self.log = log


class Chain:
    """Runs steps inside one folder.

    Args:
        folder: everything happens below it: markers in `steps`, output of commands in `logs`.
        environment: variables that commands receive on top of this process's.
        salt: JSON values that enter every fingerprint, for example versions.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], salt: Mapping[str, Any]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.salt = dict(salt)

    def run(self, steps: Sequence[Step]) -> list[StepRecord]:
        """Run what is not done yet, in order, and return the record of every step.

        Raises:
            StepError: a command failed.
            RuntimeError: another process works in the folder.
        """
        for name in ("steps", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        fingerprint = hash_json(self.salt)
        records = []
        with _locked(self.folder / ".lock") as lock, tqdm(total=len(steps), unit="step", disable=None) as bar:
            for step in steps:
                bar.set_description(step.title)
                fingerprint = self._fingerprint(step, fingerprint)
                record = self._run_step(step, fingerprint, lock)
                records.append(record)
                state = "already done" if record.skipped else f"{record.seconds:6.1f} s"
                tqdm.write(f"[{len(records)}/{len(steps)}] {step.title}: {state}")
                bar.update()
        return records

    def _run_step(self, step: Step, fingerprint: str, lock: int) -> StepRecord:
        marker = self.folder / "steps" / f"{step.name}.json"
        found = json.loads(marker.read_text()) if marker.is_file() else {}
        same = found.get("fingerprint") == fingerprint
        command = self.describe(step)
        if same and found["state"] == "done":
            return StepRecord(step.name, step.title, found["seconds"], command, skipped=True)
        if not same:
            for output in step.outputs:
                _remove(output, self.folder)
        spent = found["seconds"] if same else 0.0
        write_json(marker, {"state": "started", "fingerprint": fingerprint, "seconds": spent})
        start = time.monotonic()
        try:
            if isinstance(step.work, Command):
                self._run_command(step, step.work, resume=same, lock=lock)
            else:
                step.work()
        finally:
            spent += time.monotonic() - start
            write_json(marker, {"state": "started", "fingerprint": fingerprint, "seconds": spent})
        write_json(marker, {"state": "done", "fingerprint": fingerprint, "seconds": spent})
        return StepRecord(step.name, step.title, spent, command, skipped=False)

    def _run_command(self, step: Step, command: Command, resume: bool, lock: int) -> None:
        """Run a command in a session of its own; whatever it leaves behind is ended with it."""
        argv = [find_program(command.argv[0]), *command.argv[1:], *command.machine_argv]
        log = self.folder / "logs" / f"{step.name}.log"
        with log.open("a" if resume else "w") as output:
            child = subprocess.Popen(
                argv + list(command.resume_argv if resume else ()),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                start_new_session=True,
                pass_fds=(lock,),
            )
            try:
                _follow(child, command, step.title)
            finally:
                end_session(child)
        if child.returncode != 0:
            raise StepError(step, child.returncode, log)

    def describe(self, step: Step) -> str:
        """The command line of a step with this folder written as `$OUT`; empty for a function."""
        if not isinstance(step.work, Command):
            return ""
        return " ".join((*step.work.argv, *step.work.machine_argv)).replace(str(self.folder), "$OUT")

    def _fingerprint(self, step: Step, before: str) -> str:
        argv = step.work.argv if isinstance(step.work, Command) else ()
        relative = [argument.replace(str(self.folder), "$OUT") for argument in argv]
        return hash_json([before, step.name, relative, dict(step.parameters)])


def last_lines(log: Path, count: int = 20) -> list[str]:
    """The end of a log; of a line that was overwritten like a progress bar, its last state."""
    lines = log.read_text(errors="replace").splitlines(keepends=False) if log.is_file() else []
    return [line for line in lines if line.strip()][-count:]


def _follow(child: subprocess.Popen[bytes], command: Command, title: str) -> None:
    """Wait for ``child`` and show its epochs."""
    with tqdm(total=command.epochs or None, desc=title, unit="epoch", leave=False, disable=None, position=1) as bar:
        while child.poll() is None:
            if command.record is not None and command.record.is_file():
                bar.n = len(command.record.read_bytes().splitlines())
            bar.refresh()
            time.sleep(POLL_SECONDS)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold ``path`` locked. Children inherit the lock, so it also lasts as long as an orphan of a killed run."""
    import fcntl

    file: IO[str]
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another run, or a child that one left behind, still works in {path.parent}. Wait for it, "
                f"or end the processes that `fuser {path}` lists."
            ) from error
        yield file.fileno()


def _remove(path: Path, folder: Path) -> None:
    """Delete an output; refuses anything outside ``folder``."""
    if not path.resolve().is_relative_to(folder.resolve()) or path.resolve() == folder.resolve():
        raise ValueError(f"{path} is not below {folder} and is not deleted")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
