"""The scores and costs of finished trainings, read from the jobs' folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_topomae.benchmark.exchange import Known, read_known
from nnunet_topomae.benchmark.jobs import Job, names
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.status import total_macs
from nnunet_topomae.benchmark.store import SCORES, JobFolder
from nnunet_topomae.evaluation.metrics import StructureScore
from nnunet_topomae.files import read_json


@dataclass(frozen=True)
class Entry:
    """Scores and cost of one training.

    Attributes:
        job: the supervised training; knows data set, recipe, fold, seed and share of the labels.
        predicted: the job whose predictions were scored: the training, or the prediction of held-out cases.
        scores: by case and structure.
        parameters: of the network.
        macs: multiply-accumulate operations of the network on one crop; None where the training does not say.
        gpu_bytes: largest GPU memory of the training and its pre-training; None without a GPU.
        steps: of the supervised training; None where it does not say.
        pretraining_steps: of the pre-training, 0 without one; None where it does not say.
        total_macs: of the forward passes of all steps, pre-training included; None where a training does not say.
        training: `done.json` of the supervised training.
        pretraining: `done.json` of the pre-training, None without one.
        ended_early: the training and the pre-training, where they ended before their last epoch, in words.
    """

    job: Job
    predicted: Job
    scores: Mapping[str, Mapping[str, StructureScore]]
    parameters: int
    macs: float | None
    gpu_bytes: float | None
    steps: int | None
    pretraining_steps: int | None
    total_macs: float | None
    training: Mapping[str, Any]
    pretraining: Mapping[str, Any] | None
    ended_early: Sequence[str] = ()


def collect(spec: BenchmarkSpec, jobs: Sequence[Job], partial: bool = False) -> list[Entry]:
    """Read the scores of all finished jobs.

    Args:
        spec: the benchmark.
        jobs: its jobs.
        partial: take what is there.

    Raises:
        ValueError: jobs are not done, and that was not asked for; or nothing is done.
    """
    known = read_known(spec, jobs)
    scoring = [job for job in jobs if job.kind == "score"]
    missing = [job for job in scoring if not _is_known(job, known)]
    if missing and (not partial or len(missing) == len(scoring)):
        raise ValueError(
            f"{len(missing)} of {len(scoring)} scores are missing: {names(missing)}. Run the benchmark to its end"
            + ("." if partial else ", or report what is there with --partial.")
        )
    return [_read(spec, job, known) for job in scoring if job not in missing]


def _is_known(job: Job, known: Known) -> bool:
    """Whether a score and the trainings behind it are done: without their records, nobody knows what it has cost."""
    behind = (job, job.need("train"), job.find("pretrain"))
    return all(known.done.get(one.fingerprint) for one in behind if one is not None)


def _read(spec: BenchmarkSpec, job: Job, known: Known) -> Entry:
    folder = JobFolder.of(job, spec)
    folder.check_outputs()
    read = read_json(folder.path / SCORES)
    training, pretraining = job.need("train"), job.find("pretrain")
    trainings = [one for one in (training, pretraining) if one]
    facts = {one.kind: known.facts.get(one.fingerprint, {}) for one in trainings}
    memory = [found["peak_gpu_bytes"] for found in facts.values() if found.get("peak_gpu_bytes")]
    return Entry(
        job=training,
        predicted=job.needs[0],
        scores={case: {name: _score(one) for name, one in of.items()} for case, of in read["scores"].items()},
        parameters=read["parameters"],
        macs=facts["train"].get("macs"),
        gpu_bytes=max(memory, default=None),
        steps=facts["train"].get("steps"),
        pretraining_steps=facts["pretrain"].get("steps") if pretraining else 0,
        total_macs=total_macs(list(facts.values())),
        training=known.done.get(training.fingerprint, {}),
        pretraining=known.done.get(pretraining.fingerprint) if pretraining else None,
        ended_early=[
            f"{one.name} after {early['epochs']} epochs ({early['reason']})"
            for one in trainings
            if (early := facts[one.kind].get("ended_early"))
        ],
    )


def _score(values: Mapping[str, Any]) -> StructureScore:
    """A score from JSON, where null stands for NaN."""
    typed: dict[str, Any] = {key: float("nan") if value is None else value for key, value in values.items()}
    return StructureScore(**typed)
