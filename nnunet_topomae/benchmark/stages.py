"""What a job of each stage does: nnU-Net's commands, and the files that go in and come out.

The commands run with the job's own `nnUNet_results`, and with an `nnUNet_preprocessed` that links to the data of the
plan job and adds the recipe's plans. Nothing is shared with another job but what that job has finished.
"""

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_topomae.benchmark.jobs import PRESET, Job, Kind, iterations
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.benchmark.status import epoch_seconds, total_macs
from nnunet_topomae.benchmark.store import SCORES, JobFolder, variant_name
from nnunet_topomae.files import read_json, strict_json, write_json
from nnunet_topomae.nnunet.names import (
    BEST_CHECKPOINT,
    DATASET_FILE,
    FINAL_CHECKPOINT,
    LATEST_CHECKPOINT,
    PATIENTS_FILE,
    PREVIOUS_CHECKPOINT,
    SPLITS_FILE,
)
from nnunet_topomae.training.record import FACTS_FILE, read_facts

CHECKPOINTS = (FINAL_CHECKPOINT, LATEST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT)
# What batch normalisation keeps in a state dict besides its parameters.
_BUFFERS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Task:
    """A job with all that its stage needs.

    Attributes:
        job: what to do.
        spec: the benchmark.
        command: runs a program with arguments and returns when it has succeeded.
    """

    job: Job
    spec: BenchmarkSpec
    command: Callable[..., None]

    @property
    def folder(self) -> JobFolder:
        """The job's folder."""
        return JobFolder.of(self.job, self.spec)

    @property
    def plan(self) -> JobFolder:
        """The folder of the plan that the job uses."""
        return JobFolder.of(self.job.need("plan"), self.spec)

    @property
    def raw(self) -> Path:
        """The data set in nnUNet_raw."""
        return self.spec.raw_folder() / self.job.dataset


def make_plan(task: Task) -> list[Path]:
    """Fingerprint, plans, preprocessed data and folds, from nothing."""
    folder, job = task.folder, task.job
    shutil.rmtree(folder.preprocessed, ignore_errors=True)
    folder.preprocessed.mkdir()
    workers = str(max(1, min(8, (os.cpu_count() or 2) // 2)))
    what = ["-d", job.dataset_id, "-c", job.parameters["configuration"], "-npfp", workers, "-np", workers]
    if (target := job.parameters["gpu_memory_target"]) is not None:
        what += ["-gpu_memory_target", str(target)]
    plans, planner = job.parameters["plans"], job.parameters["planner"]
    # One command for all steps: each would spend seconds on importing torch.
    if planner.startswith(PRESET):
        task.command("nnunet-topomae", "plan", "--preset", planner.removeprefix(PRESET), *what)
    else:
        task.command("nnUNetv2_plan_and_preprocess", "-pl", planner, *what)
    write_splits(folder.dataset)
    if (patients := task.raw / PATIENTS_FILE).is_file():  # stock nnU-Net's planners leave it out
        shutil.copyfile(patients, folder.dataset / PATIENTS_FILE)
    return [folder.dataset / name for name in (f"{plans}.json", SPLITS_FILE, DATASET_FILE)]


def write_splits(dataset: Path) -> None:
    """nnU-Net's own folds, where the data set brings none: now, not by whichever training is first."""
    file = dataset / SPLITS_FILE
    if not file.is_file():
        from nnunet_topomae.datasets.splits import make_splits

        ending = read_json(dataset / DATASET_FILE)["file_ending"]
        cases = [path.name[: -len(ending)] for path in (dataset / "gt_segmentations").glob(f"*{ending}")]
        write_json(file, make_splits(cases))


def train(task: Task) -> list[Path]:
    """Train, continuing where an earlier attempt stopped, and validate; for pre-training too."""
    _prepare_plans(task)
    # Fine-tuning looks for its pre-training in nnUNet_results.
    if task.job.kind == "train" and (pretraining := task.job.find("pretrain")) is not None:
        _link_model(task, pretraining)
    fold = task.folder.fold
    shutil.rmtree(fold / "validation", ignore_errors=True)
    resume = ["--c"] if _usable_checkpoint(fold) else []
    trainer, plans, configuration = _model_of(task.job)
    what = [task.job.dataset_id, configuration, str(task.job.fold), "-tr", trainer, "-p", plans]
    task.command("nnUNetv2_train", *what, "-device", task.job.parameters["device"], *resume)
    return [fold / FINAL_CHECKPOINT, fold / "validation" / "summary.json"]


def _model_of(job: Job) -> tuple[str, str, str]:
    """Trainer, plans and configuration of a training, as nnU-Net's commands take them."""
    plans = variant_name(job.parameters["plans"])
    return job.parameters["trainer"], plans, job.need("plan").parameters["configuration"]


def _prepare_plans(task: Task) -> None:
    """Link the preprocessed data and write the recipe's plans next to them."""
    from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
    from nnunet_topomae.plans.variants import make_variant

    source, target = task.plan.dataset, task.folder.dataset
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        _link(target / entry.name, entry)
    _, name, configuration = _model_of(task.job)
    plans = read_plans(source / f"{task.job.parameters['plans']}.json")
    settings = {**task.job.parameters["settings"], **_measured_epochs(task)}
    write_plans(make_variant(plans, name, [configuration], settings), target)


def _measured_epochs(task: Task) -> dict[str, int]:
    """As many epochs as fit into the time, or the multiply-adds, of the measured pre-training and fine-tuning.

    The last measured training tells what an epoch of this one costs. Of time, epochs alone count, not what comes before
    and after them.
    """
    if not task.job.measured:
        return {}
    folders = [JobFolder.of(job, task.spec) for job in task.job.measured]
    if task.job.parameters.get("equal") == "macs":
        facts = [read_facts(folder.fold) for folder in folders]
        steps = {"steps": iterations(task.job.parameters["settings"])}
        total, one = total_macs(facts[:2]), total_macs([{**facts[-1], **steps}])
        if total is None or one is None:
            files = ", ".join(str(folder.fold / FACTS_FILE) for folder in folders)
            raise ValueError(f"steps and multiply-adds are not in all of {files}. Train with this package's trainers.")
    else:
        times = [epoch_seconds(folder) for folder in folders]
        if missing := [folder for folder, found in zip(folders, times, strict=True) if not found]:
            raise ValueError(f"{missing[0].path} does not say how long its epochs took. Delete it to train again.")
        total, one = sum(times[0]) + sum(times[1]), sum(times[-1]) / len(times[-1])
    return {"finetuning.epochs": max(1, round(total / one))}


def _link_model(task: Task, job: Job) -> None:
    """Put the model of another job into this job's nnUNet_results."""
    model = JobFolder.of(job, task.spec).model
    link = task.folder.results / job.dataset / model.name
    link.parent.mkdir(parents=True, exist_ok=True)
    _link(link, model)


def _link(link: Path, target: Path) -> None:
    """A relative link, so that the benchmark's folder can be moved as a whole; a link elsewhere is replaced."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and str(link.readlink()) != relative:
        link.unlink()
    if not link.exists():
        link.symlink_to(relative)


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


def predict(task: Task) -> list[Path]:
    """Predict the held-out cases, from nothing: nnU-Net would take a file that a kill cut off for a finished one."""
    training = task.job.need("train")
    _link_model(task, training)
    target = task.folder.predictions
    shutil.rmtree(target, ignore_errors=True)
    trainer, plans, configuration = _model_of(training)
    model = ["-d", training.dataset_id, "-c", configuration, "-tr", trainer, "-p", plans, "-f", str(training.fold)]
    mirroring = ["--disable_tta"] if training.parameters["settings"].get("finetuning.mirror_axes") == [] else []
    # Few processes: each takes seconds to start, and memory for a whole prediction. A CPU has nothing to overlap.
    device = training.parameters["device"]
    workers = "0" if device == "cpu" else "1"
    machine = ["-npp", workers, "-nps", workers, "-device", device]
    task.command("nnUNetv2_predict", "-i", str(task.raw / "imagesTs"), "-o", str(target), *model, *mirroring, *machine)
    return sorted(target.glob(f"*{read_json(task.plan.dataset / DATASET_FILE)['file_ending']}"))


def score(task: Task) -> list[Path]:
    """Score the fold's validation cases, or the held-out cases where they were predicted."""
    from nnunet_topomae.evaluation.metrics import MetricOptions
    from nnunet_topomae.nnunet.scoring import score_folder

    source = task.job.needs[0]
    description = read_json(task.plan.dataset / DATASET_FILE)
    held_out = source.kind == "predict"
    scores = score_folder(
        truth_folder(source, task.spec),
        JobFolder.of(source, task.spec).predictions,
        description["labels"],
        description["file_ending"],
        MetricOptions(task.job.parameters["tolerance"], betti=task.job.parameters["betti"]),
        None if held_out else read_json(task.plan.dataset / SPLITS_FILE)[task.job.fold]["val"],
    )
    plain = {case: {name: asdict(found) for name, found in of.items()} for case, of in scores.items()}
    fold = JobFolder.of(task.job.need("train"), task.spec).fold
    parameters = read_facts(fold).get("parameters") or count_parameters(fold / FINAL_CHECKPOINT)
    file = task.folder.path / SCORES
    write_json(file, strict_json({"scores": plain, "parameters": parameters}))
    return [file]


def truth_folder(source: Job, spec: BenchmarkSpec) -> Path:
    """The label maps that a job's predictions are compared with.

    Args:
        source: the job that predicted: a training for the fold's validation cases, or a prediction of held-out cases.
        spec: the benchmark.

    Returns:
        `labelsTs` of the raw data set for held-out cases, else `gt_segmentations` of the preprocessed one.
    """
    if source.kind == "predict":
        return spec.raw_folder() / source.dataset / "labelsTs"
    return JobFolder.of(source.need("plan"), spec).dataset / "gt_segmentations"


def count_parameters(checkpoint: Path) -> int:
    """Number of parameters of the network in a checkpoint.

    A state dict lists a parameter under every name that it has; nnU-Net's blocks have up to four. Names of one
    parameter share its memory, also after loading, so each place in memory is counted once.
    """
    from nnunet_topomae.training.loading import load_checkpoint_file

    weights = load_checkpoint_file(checkpoint)["network_weights"]
    sizes = {
        (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape): value.numel()
        for name, value in weights.items()
        if value.is_floating_point() and not name.endswith(_BUFFERS)
    }
    return sum(sizes.values())


STAGES: dict[Kind, Callable[[Task], list[Path]]] = {
    "plan": make_plan,
    "pretrain": train,
    "train": train,
    "predict": predict,
    "score": score,
}
