"""Hands a benchmark to SLURM, or to the user as a list of commands.

Queueing, dependencies, pre-emption and requeueing are SLURM's. Jobs go to `sbatch` directly: each already is one
idempotent command, so there is no Python function to pickle, which is what submitit does, and `sbatch` alone has
`--kill-on-invalid-dep`. The driver need not stay alive.
"""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_topomae.benchmark.jobs import Job, Kind, job_command
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import JobFolder, jobs_to_do
from nnunet_topomae.benchmark.work import UNFINISHED
from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.nnunet.names import one_line
from nnunet_topomae.nnunet.process import find_program

# Seconds before the wall time at which SLURM warns a job, which then stops and goes back into the queue.
WARNING_SECONDS = 120
# In a job's folder: SLURM's number of its last submission.
NUMBER = "slurm.json"
NEEDS_GPU: tuple[Kind, ...] = ("pretrain", "train", "predict")


def batch_script(file: Path, job: Job) -> str:
    """The script of one SLURM job: passes SLURM's warning on, and asks for another turn after it.

    Args:
        file: the benchmark's file.
        job: what the script does.
    """
    command = shlex.join([*job_command(file, job), "--fingerprint", job.fingerprint])
    return "\n".join(
        [
            "#!/bin/bash",
            f"{command} &",
            "child=$!",
            "trap 'kill -USR1 $child' USR1",
            # The first wait ends with the signal, the second with the child.
            "wait $child",
            "code=$?",
            "if kill -0 $child 2>/dev/null; then wait $child; code=$?; fi",
            f'if [ "$code" -eq {UNFINISHED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            "exit $code",
            "",
        ]
    )


def sbatch_arguments(spec: BenchmarkSpec, job: Job, needs: Sequence[str]) -> list[str]:
    """Options of sbatch for one job.

    Args:
        spec: the benchmark; its table `slurm` adds options or overrides these.
        job: the job.
        needs: SLURM's numbers of the jobs that it needs and that are not done.
    """
    folder = JobFolder.of(job, spec).path
    options: dict[str, object] = {
        "job-name": _slurm_name(spec, job.name),
        "output": str(folder / "slurm.txt").replace("%", "%%"),
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR1@{WARNING_SECONDS}",
        "kill-on-invalid-dep": "yes",
    }
    if spec.device == "cuda" and job.kind in NEEDS_GPU:
        options["gres"] = "gpu:1"
    if needs:
        options["dependency"] = "afterok:" + ":".join(needs)
    options |= spec.slurm
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]


@dataclass(frozen=True)
class Submission:
    """What became of the jobs that are not done.

    Attributes:
        submitted: SLURM's number of every job that was submitted, by name.
        queued: the same of those that wait or run in SLURM since an earlier submission.
        blocked: names of jobs that run outside of SLURM, and of those that need them.
    """

    submitted: Mapping[str, str]
    queued: Mapping[str, str]
    blocked: Sequence[str]


def submit(spec: BenchmarkSpec, file: Path, jobs: Sequence[Job], environment: Mapping[str, str]) -> Submission:
    """Submit all jobs that are not done and not in SLURM's queue already.

    A job that needs one of those, new or old, waits for it. SLURM cannot wait for a job that it did not start: what
    needs a job that runs outside of SLURM is not submitted.

    Args:
        spec: the benchmark.
        file: its file.
        jobs: each after those that it needs.
        environment: variables of sbatch; jobs inherit them.

    Raises:
        RuntimeError: there is no sbatch, or it refuses a job; or squeue does not say what is queued.
    """
    sbatch = find_program("sbatch")
    queued = queued_jobs(spec, jobs, environment)
    submitted: dict[str, str] = {}
    blocked: list[str] = []
    to_do = {job.name for job in jobs_to_do(jobs, spec)}
    for job in jobs:
        folder = JobFolder.of(job, spec)
        state = folder.state()
        if job.name not in to_do:
            queued.pop(job.name, None)
            continue
        if job.name in queued:
            continue
        if state == "running" or any(need.name in blocked for need in job.needs):
            blocked.append(job.name)
            continue
        folder.path.mkdir(parents=True, exist_ok=True)
        known = {**queued, **submitted}
        needs = [known[need.name] for need in job.needs if need.name in known]
        done = subprocess.run(
            [sbatch, "--parsable", *sbatch_arguments(spec, job, needs)],
            input=batch_script(file, job),
            capture_output=True,
            text=True,
            env=dict(environment),
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"sbatch refuses {job.name}: {done.stderr.strip()}")
        submitted[job.name] = done.stdout.strip().split(";")[0]
        write_json(folder.path / NUMBER, submitted[job.name])
    return Submission(submitted, queued, blocked)


def queued_jobs(spec: BenchmarkSpec, jobs: Sequence[Job], environment: Mapping[str, str]) -> dict[str, str]:
    """SLURM's numbers of the jobs that wait or run since an earlier submission, by name.

    Args:
        spec: the benchmark.
        jobs: its jobs; one with another fingerprint than at its submission is another job.
        environment: variables of squeue.

    Raises:
        RuntimeError: there is no squeue, or it fails.
    """
    files = {job.name: JobFolder.of(job, spec).path / NUMBER for job in jobs}
    numbers = {name: str(read_json(file)) for name, file in files.items() if file.is_file()}
    if not numbers:
        return {}
    where = [f"--clusters={spec.slurm['clusters']}"] if "clusters" in spec.slurm else []
    asked = [find_program("squeue"), "--me", "--noheader", "--format=%A|%j", *where]
    found = subprocess.run(asked, capture_output=True, text=True, env=dict(environment), check=False)
    if found.returncode != 0:
        raise RuntimeError(f"squeue does not say which jobs are queued: {found.stderr.strip()}")
    listed = set(found.stdout.split("\n"))
    return {name: number for name, number in numbers.items() if f"{number}|{_slurm_name(spec, name)}" in listed}


def _slurm_name(spec: BenchmarkSpec, name: str) -> str:
    return f"{spec.name}:{name}"


def command_list(spec: BenchmarkSpec, file: Path, jobs: Sequence[Job]) -> str:
    """A shell script with one line for every job that is not done, in an order that works.

    Args:
        spec: the benchmark.
        file: its file.
        jobs: each after those that it needs; the lines keep this order.
    """
    lines = [
        "#!/bin/bash",
        f"# Jobs of {one_line(file.name)},",
        "# each after those that it needs. Any of them may run on another machine that sees this folder; one that is",
        "# done is left alone. Exit codes: 0 done, 75 it runs elsewhere, 76 too early.",
        "set -e",
    ]
    for job in jobs_to_do(jobs, spec):
        needs = one_line(", ".join(need.name for need in job.needs))
        lines.append(f"{shlex.join(job_command(file, job))}" + (f"   # after {needs}" if needs else ""))
    return "\n".join(lines) + "\n"
