"""Does one job, in a process of its own that can be killed at any moment.

Training is continued from its last good checkpoint; everything else starts anew. The commands are nnU-Net's, with the
job's own `nnUNet_results`, and with an `nnUNet_preprocessed` that links to the data of the plan job and adds the
recipe's plans. Nothing is shared with another job but what that job has finished.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.jobs import PRESET, Job
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.store import TOKEN, BusyError, JobFolder, end_orphans
from nnunet_topomae.files import strict_json, write_json
from nnunet_topomae.nnunet.process import die_with_parent, end_session, find_program

DONE, FAILED, BUSY, WAITING, INTERRUPTED = 0, 1, 75, 76, 77
SCORES = "scores.json"
CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth")
# What batch normalisation keeps in a state dict besides its parameters.
_BUFFERS = ("running_mean", "running_var")


class Interrupted(Exception):  # noqa: N818
    """The job was asked to stop, and can be taken up again."""


class Worker:
    """Works on one job.

    Args:
        job: what to do.
        spec: the benchmark.
        raw: nnU-Net's folder of raw data.
    """

    def __init__(self, job: Job, spec: BenchmarkSpec, raw: Path) -> None:
        self.job, self.spec, self.raw = job, spec, raw
        self.folder = JobFolder.of(job, spec)
        plan = job if job.kind == "plan" else job.need("plan")
        assert plan is not None
        self.plan = JobFolder.of(plan, spec)
        self.dataset: str = plan.parameters["dataset"]
        self.configuration: str = plan.parameters["configuration"]

    def run(self) -> int:
        """Do the job; returns 0 done, 75 somebody else is on it, 76 a job that it needs is not done, 77 interrupted.

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
            return INTERRUPTED
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def _attempt(self) -> int:
        if self.folder.done():  # by somebody who held the lease a moment ago
            return DONE
        for need in self.job.needs:
            JobFolder.of(need, self.spec).check_outputs()
        write_json(self.folder.path / "job.json", {"name": self.job.name, "parameters": dict(self.job.parameters)})
        attempts = _read(self.folder.path / "attempts.json", [])
        start, used = time.time(), _cpu_seconds()
        stages: dict[str, Callable[[], list[Path]]] = {
            "plan": self._plan,
            "pretrain": self._train,
            "train": self._train,
            "score": self._score,
        }
        attempts.append({"started": start, "host": socket.gethostname()})
        try:
            outputs = stages[self.job.kind]()
        except Exception as error:
            if not isinstance(error, Interrupted):
                self.folder.fail({"time": time.time(), "error": str(error)})
            raise
        finally:
            attempts[-1] |= {"seconds": time.time() - start, "cpu_seconds": _cpu_seconds() - used}
            write_json(self.folder.path / "attempts.json", attempts)
        facts = {key: sum(attempt.get(key, 0.0) for attempt in attempts) for key in ("seconds", "cpu_seconds")}
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self.folder.finish(outputs, {**facts, "peak_process_bytes": memory, "finished": time.time()})
        return DONE

    def _plan(self) -> list[Path]:
        """Fingerprint, plans, preprocessed data and folds, from nothing."""
        shutil.rmtree(self.folder.preprocessed, ignore_errors=True)
        self.folder.preprocessed.mkdir()
        number, workers = self.dataset[7:10], str(max(1, min(8, (os.cpu_count() or 2) // 2)))
        self._command("nnUNetv2_extract_fingerprint", "-d", number, "-np", workers)
        target = self.job.parameters["gpu_memory_target"]
        memory = [] if target is None else ["-gpu_memory_target", str(target)]
        for plans, planner in self.job.parameters["planners"].items():
            if planner.startswith(PRESET):
                preset = planner.removeprefix(PRESET)
                self._command("nnunet-topomae", "plan", "-d", number, "--preset", preset, "--no_pp", *memory)
            else:
                self._command("nnUNetv2_plan_experiment", "-d", number, "-pl", planner, *memory)
            what = ["-d", number, "-plans_name", plans, "-c", self.configuration]
            self._command("nnUNetv2_preprocess", *what, "-np", workers)
        folder = self.folder.preprocessed / self.dataset
        self._write_splits(folder)
        plans = [folder / f"{name}.json" for name in self.job.parameters["planners"]]
        return [*plans, folder / "splits_final.json", folder / "dataset.json"]

    def _write_splits(self, folder: Path) -> None:
        """nnU-Net's own folds, where the data set brings none: now, not by whichever training is first."""
        from nnunet_topomae.datasets.splits import make_splits

        file = folder / "splits_final.json"
        if not file.is_file():
            ending = _read(folder / "dataset.json", {})["file_ending"]
            cases = [path.name[: -len(ending)] for path in (folder / "gt_segmentations").glob(f"*{ending}")]
            write_json(file, make_splits(cases))

    def _train(self) -> list[Path]:
        """Train, continuing where an earlier attempt stopped, and validate."""
        plans = self._prepare_plans()
        trainer, fold = self.job.parameters["trainer"], self.job.parameters["fold"]
        self._link_pretraining(plans)
        folder = self.model(self.job) / f"fold_{fold}"
        shutil.rmtree(folder / "validation", ignore_errors=True)
        resume = ["--c"] if _usable_checkpoint(folder) else []
        what = [self.dataset[7:10], self.configuration, str(fold), "-tr", trainer, "-p", plans]
        self._command("nnUNetv2_train", *what, "-device", self.job.parameters["device"], *resume)
        return [folder / "checkpoint_final.pth", folder / "validation" / "summary.json"]

    def _prepare_plans(self) -> str:
        """Link the preprocessed data and write the recipe's plans beside them; returns their name."""
        from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
        from nnunet_topomae.plans.variants import make_variant

        source, target = self.plan.preprocessed / self.dataset, self.folder.preprocessed / self.dataset
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            if not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
        base = self.job.parameters["plans"]
        settings = self.job.parameters["settings"]
        variant = make_variant(read_plans(source / f"{base}.json"), variant_name(base), [self.configuration], settings)
        write_plans(variant, target)
        return variant_name(base)

    def _link_pretraining(self, plans: str) -> None:
        """Put the pre-training where the fusion trainer looks for it."""
        pretraining = next((need for need in self.job.needs if need.kind == "pretrain"), None)
        if pretraining is not None:
            model = self.model(pretraining)
            link = self.folder.results / self.dataset / model.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(model)

    def model(self, job: Job) -> Path:
        """nnU-Net's folder of the model that a job trains."""
        name = f"{job.parameters['trainer']}__{variant_name(job.parameters['plans'])}__{self.configuration}"
        return JobFolder.of(job, self.spec).results / self.dataset / name

    def _score(self) -> list[Path]:
        """Score the fold's validation cases."""
        from dataclasses import asdict

        from nnunet_topomae.evaluation.metrics import MetricOptions
        from nnunet_topomae.nnunet.scoring import score_folder

        training = self.job.needs[0]
        folder = self.plan.preprocessed / self.dataset
        description = _read(folder / "dataset.json", {})
        fold = training.parameters["fold"]
        scores = score_folder(
            folder / "gt_segmentations",
            self.model(training) / f"fold_{fold}" / "validation",
            description["labels"],
            description["file_ending"],
            MetricOptions(self.job.parameters["tolerance"], betti=self.job.parameters["betti"]),
            _read(folder / "splits_final.json", [])[fold]["val"],
        )
        plain = {case: {name: asdict(score) for name, score in of.items()} for case, of in scores.items()}
        file = self.folder.path / SCORES
        parameters = count_parameters(self.model(training) / f"fold_{fold}" / "checkpoint_final.pth")
        write_json(file, strict_json({"scores": plain, "parameters": parameters}))
        return [file]

    def _command(self, program: str, *arguments: str) -> None:
        """Run one command; whatever it starts ends with it."""
        environment = {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.folder.preprocessed),
            "nnUNet_results": str(self.folder.results),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            TOKEN: str(self.folder.path),
        }
        argv = [find_program(program), *arguments]
        with self.folder.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {program} {' '.join(arguments)}\n")
            log.flush()
            child = subprocess.Popen(
                argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            try:
                child.wait()
            finally:
                end_session(child)
                end_orphans(self.folder.path)
        if child.returncode != 0:
            raise RuntimeError(f"{program} of job {self.job.name} failed ({child.returncode}); see {self.folder.log}")


def variant_name(plans: str) -> str:
    """Name of a recipe's plans, made from base plans."""
    return f"{plans}_benchmark"


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(signal.Signals(number).name)


def _usable_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from; broken ones, of a kill while writing, are moved aside."""
    found = False
    for name in CHECKPOINTS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip() is not None
        except zipfile.BadZipFile:
            broken = True
        if broken:
            file.replace(file.with_suffix(".broken"))
        found = found or not broken
    return found


def count_parameters(checkpoint: Path) -> int:
    """Number of parameters of the network in a checkpoint.

    A state dict lists a parameter under every name that it has; nnU-Net's blocks have up to four. Names of one
    parameter share its memory, also after loading, so each place in memory is counted once.
    """
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    sizes = {
        (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape): value.numel()
        for name, value in weights.items()
        if value.is_floating_point() and not name.endswith(_BUFFERS)
    }
    return sum(sizes.values())


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
