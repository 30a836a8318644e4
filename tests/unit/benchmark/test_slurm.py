"""What is handed to SLURM, with stand-ins for its commands."""

import re
from pathlib import Path

import pytest

from nnunet_topomae.benchmark import slurm
from nnunet_topomae.benchmark.jobs import Job
from nnunet_topomae.benchmark.slurm import submit
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import JobFolder

PLAN = Job("plan", "plan", "Dataset005_Five", {})
PRETRAIN = Job("pretrain", "pretrain", "Dataset005_Five", {}, (PLAN,))
TRAIN = Job("train", "train", "Dataset005_Five", {}, (PLAN, PRETRAIN))
SCORE = Job("score", "score", "Dataset005_Five", {}, (TRAIN,))
JOBS = [PLAN, PRETRAIN, TRAIN, SCORE]


class Cluster:
    """Stand-ins for sbatch and squeue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = BenchmarkSpec("bench", folder / "out", (5,), (), ("x",), device="cpu")
        self.write("sbatch", f'echo "$@" >> {folder}/log; cat > /dev/null; echo $((99 + $(wc -l < {folder}/log)))')
        self.queue()

    def write(self, name: str, body: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def queue(self, **numbers: int) -> None:
        lines = "\n".join(f"{number}|bench:{name}" for name, number in numbers.items())
        self.write("squeue", f"cat <<'END'\n7|somebody:else\n{lines}\nEND")

    def submit(self) -> slurm.Submission:
        return submit(self.spec, self.folder / "bench.toml", JOBS, {})

    def dependencies(self) -> list[str]:
        """Dependency of every job submitted since the last call, in order."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.is_file() else []
        new, self.seen = lines[getattr(self, "seen", 0) :], len(lines)
        return [found.group(1) if (found := re.search(r"afterok:(\S+)", line)) else "" for line in new]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(slurm, "find_program", lambda name: str(tmp_path / name))
    return Cluster(tmp_path)


def test_every_job_waits_for_those_that_it_needs(cluster: Cluster) -> None:
    (cluster.folder / "squeue").unlink()  # nothing was submitted before: SLURM is not asked
    found = cluster.submit()
    assert found.submitted == {"plan": "100", "pretrain": "101", "train": "102", "score": "103"}
    assert cluster.dependencies() == ["", "100", "100:101", "102"]
    assert not found.queued and not found.blocked


def test_submitting_again_changes_nothing(cluster: Cluster) -> None:
    cluster.submit()
    cluster.dependencies()
    cluster.queue(plan=100, pretrain=101, train=102, score=103)
    found = cluster.submit()
    assert not found.submitted and len(found.queued) == 4
    assert cluster.dependencies() == []


def test_what_needs_a_job_of_an_earlier_submission_waits_for_it(cluster: Cluster) -> None:
    cluster.submit()
    cluster.dependencies()
    JobFolder.of(PLAN, cluster.spec).finish([], {})
    # The pre-training runs; the others were cancelled.
    cluster.queue(pretrain=101)
    with JobFolder.of(PRETRAIN, cluster.spec).lease():
        found = cluster.submit()
    assert found.queued == {"pretrain": "101"} and list(found.submitted) == ["train", "score"]
    assert cluster.dependencies() == ["101", "104"]
    # A number that SLURM has given to another job since is not ours.
    cluster.queue(other=101, train=104, score=105)
    assert list(cluster.submit().submitted) == ["pretrain"]


def test_a_job_that_just_ended_is_done_whatever_the_queue_says(cluster: Cluster) -> None:
    cluster.submit()
    JobFolder.of(PLAN, cluster.spec).finish([], {})
    cluster.queue(plan=100)
    cluster.dependencies()
    found = cluster.submit()
    assert "plan" not in found.queued and cluster.dependencies() == ["", "104", "105"]


def test_what_needs_a_job_outside_of_slurm_is_not_submitted(cluster: Cluster) -> None:
    plan = JobFolder.of(PLAN, cluster.spec)
    plan.path.mkdir(parents=True)
    plan.finish([], {})
    with JobFolder.of(PRETRAIN, cluster.spec).lease():
        found = cluster.submit()
    assert found.blocked == ["pretrain", "train", "score"] and not found.submitted


def test_a_queue_that_cannot_be_read_is_an_error(cluster: Cluster) -> None:
    cluster.submit()
    cluster.write("squeue", "echo no controller >&2; exit 1")
    with pytest.raises(RuntimeError, match="squeue does not say which jobs are queued: no controller"):
        cluster.submit()
