"""Scores that travel between machines as small files, so that many of them make one report. Quick to import.

A file holds the scores of one training, what the jobs behind it cost and with what they were made. It is accepted where
the same benchmark's file asks for a job of the same fingerprint; checkpoints and images stay where they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import IMPORTED, SCORES, JobFolder, without_folders
from nnunet_topomae.files import hash_json, read_json, write_json
from nnunet_topomae.training.record import read_facts

FORMAT = 1
_KEYS = ("format", "job", "fingerprint", "scores", "parameters", "done", "facts", "sha256")
_KEPT = ("seconds", "cpu_seconds", "attempts", "peak_process_bytes", "finished", "commands", "provenance")


@dataclass(frozen=True)
class Import:
    """What became of the files of an import.

    Attributes:
        taken: names of jobs whose scores are new here.
        known: names of jobs that are done here already; nothing of them was changed.
        differing: jobs among them whose scores here are not the same.
    """

    taken: Sequence[str]
    known: Sequence[str]
    differing: Sequence[Job]


def export_scores(spec: BenchmarkSpec, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """Write a file for every score that is done; scores that were imported are passed on.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        folder: where to; files of the same names are replaced.

    Raises:
        ValueError: an output of a job is not what it was; or no score is done.
    """
    done = [job for job in jobs if job.kind == "score" and JobFolder.of(job, spec).done()]
    if not done:
        raise ValueError(f"no score of {spec.name} is done, so there is nothing to export")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for job in done:
        JobFolder.of(job, spec).check_outputs()
        written.append(folder / f"{job.name}.json")
        write_json(written[-1], _read_imported(job, spec) or _describe(job, spec))
    return written


def import_scores(spec: BenchmarkSpec, jobs: Sequence[Job], folder: Path) -> Import:
    """Take scores that were exported elsewhere. All files are checked before anything is written.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        folder: of exported files.

    Raises:
        FileNotFoundError: the folder holds no files.
        ValueError: a file is damaged, or belongs to another benchmark, data, code or version; names it.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no exported scores (*.json)")
    by_name = {job.name: job for job in jobs if job.kind == "score"}
    found, errors = [], []
    for file in files:
        try:
            content = _read_exported(file)
            found.append((_find_job(file, content, by_name), content))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError(
            f"{errors[0]}. Nothing was taken: of the files in {folder}, {len(found)} belong to this benchmark and "
            f"{len(errors)} do not."
        )
    taken, known, differing = [], [], []
    for job, content in found:
        target = JobFolder.of(job, spec)
        if target.done():
            known.append(job.name)
            if read_json(target.path / SCORES) != content["scores"]:
                differing.append(job)
            continue
        with target.lease():
            write_json(target.path / IMPORTED, content)
            write_json(target.path / SCORES, content["scores"])
            target.finish([target.path / IMPORTED, target.path / SCORES], content["done"][job.fingerprint])
        taken.append(job.name)
    return Import(taken, known, differing)


def _describe(job: Job, spec: BenchmarkSpec) -> dict[str, Any]:
    folder = JobFolder.of(job, spec)
    chain = list(_chain(job))
    done = {one.fingerprint: JobFolder.of(one, spec).done() or {} for one in chain}
    trainings = [one for one in chain if one.kind in ("train", "pretrain")]
    content = {
        "format": FORMAT,
        "job": job.name,
        "fingerprint": job.fingerprint,
        "scores": read_json(folder.path / SCORES),
        "parameters": _parameters(job),
        "done": {name: _leaving(facts, spec) for name, facts in done.items()},
        "facts": {one.fingerprint: read_facts(JobFolder.of(one, spec).fold) for one in trainings},
    }
    return {**content, "sha256": hash_json(content)}


def _leaving(facts: Mapping[str, Any], spec: BenchmarkSpec) -> dict[str, Any]:
    """What leaves the machine of a `done.json`; earlier versions recorded folders in its commands."""
    kept = {key: facts[key] for key in _KEPT if key in facts}
    return {**kept, "commands": [without_folders(command, spec) for command in facts.get("commands", [])]}


def _chain(job: Job) -> Iterator[Job]:
    """The job and all that it needs."""
    yield job
    for need in job.needs:
        yield from _chain(need)


def _parameters(job: Job) -> dict[str, dict[str, Any]]:
    """Parameters of the job and of those whose output it uses, by stage."""
    return {str(one.kind): dict(one.parameters) for one in reversed(list(_chain(job)))}


def _read_exported(file: Path) -> dict[str, Any]:
    """The content of a file of exported scores.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    content = read_json(file)
    if not isinstance(content, dict) or set(content) != set(_KEYS) or content["format"] != FORMAT:
        raise ValueError(f"{file} is no file of exported scores of this version. Export it again")
    if hash_json({key: value for key, value in content.items() if key != "sha256"}) != content["sha256"]:
        raise ValueError(f"{file} is damaged or was edited: it does not fit its checksum. Copy it again")
    return content


def _find_job(file: Path, content: Mapping[str, Any], by_name: Mapping[str, Job]) -> Job:
    """The job that the content of a file belongs to.

    Raises:
        ValueError: there is none.
    """
    job = by_name.get(content["job"])
    if job is None:
        raise ValueError(
            f"{file} is of job {content['job']}, which is not in this benchmark: use the same "
            "benchmark file on both machines"
        )
    if job.fingerprint != content["fingerprint"]:
        raise ValueError(f"{file} was made with other settings: {_difference(content['parameters'], _parameters(job))}")
    return job


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first parameter of any stage that differs, from the first stage to the last."""
    for kind in ("plan", "pretrain", "train", "predict", "score"):
        one, other = there.get(kind) or {}, here.get(kind) or {}
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                return f"{key} of the stage {kind} is {one.get(key)!r} there and {other.get(key)!r} here"
    return "the code of the benchmark is of another version"


def _read_imported(job: Job, spec: BenchmarkSpec) -> dict[str, Any] | None:
    file = JobFolder.of(job, spec).path / IMPORTED
    if not file.is_file():
        return None
    try:
        return _read_exported(file)
    except ValueError as error:
        raise ValueError(f"{error}: delete {file.parent} and import the score anew.") from error


@dataclass(frozen=True)
class Known:
    """What is known of jobs, done here or elsewhere, by fingerprint.

    Attributes:
        done: as in `done.json`.
        facts: of trainings, as in `training.json`.
    """

    done: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Mapping[str, Any]]


def read_known(spec: BenchmarkSpec, jobs: Sequence[Job]) -> Known:
    """Read what jobs have said about themselves; what was done here goes before what was imported.

    Args:
        spec: the benchmark.
        jobs: its jobs.
    """
    done: dict[str, Mapping[str, Any]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for job in jobs:
        if job.kind == "score" and (imported := _read_imported(job, spec)):
            done |= imported["done"]
            facts |= imported["facts"]
    for job in jobs:
        folder = JobFolder.of(job, spec)
        if own := folder.done():
            done[job.fingerprint] = own
            if job.kind in ("train", "pretrain"):
                facts[job.fingerprint] = read_facts(folder.fold)
    return Known(done, facts)
