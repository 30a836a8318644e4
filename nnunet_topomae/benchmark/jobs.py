"""The jobs of a benchmark, each with a fingerprint of all that decides its result. Quick to import.

For every data set and its base plans one job plans and preprocesses; for every recipe, fold and seed one pre-trains;
for every label fraction one trains and validates; where held-out cases are asked for, one predicts them; one scores. A
job's fingerprint contains those of the jobs it needs, so that after any change what depends on it has another one. It
contains no setting of which we know that the job does not read; recipes whose pre-trainings are the same share one.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnunet_topomae.benchmark.content import (
    HELD_OUT,
    ContentHashes,
    code_state,
    data_fingerprint,
    digest,
    hash_named,
    held_out_fingerprint,
    library_versions,
)
from nnunet_topomae.benchmark.recipes import PLANNERS, Recipe
from nnunet_topomae.benchmark.settings import (
    PATIENTS,
    PRETRAINED,
    UNSUPERVISED,
    pretraining_settings,
    training_settings,
)
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.names import PLANS, SPLITS_FILE, check_name

Kind = Literal["plan", "pretrain", "train", "predict", "score"]
# Raised when the code of a stage changes what it makes.
STAGE_VERSIONS: dict[Kind, int] = {"plan": 3, "pretrain": 3, "train": 3, "predict": 2, "score": 3}
# Where a job's parameters hold the content of a file that a setting names.
FILES = {"pretrained": PRETRAINED, "patients": PATIENTS}
# nnU-Net's, where a data set brings none.
FOLDS = 5
# What stands for a planner where a preset plans.
PRESET = "preset "
# More than the folds of any data set.
SEED_STRIDE = 1000


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        kind: stage.
        name: unique, also a folder's name.
        dataset: name of the data set.
        parameters: JSON values that decide the result.
        needs: jobs that must be done before.
        recipe: name of the recipe; of a pre-training, the first one that uses it; empty for a plan.
        fold: fold.
        seed: seed.
        fraction: share of the labels.
        epochs: of the training, 0 for other stages and where they are not known yet.
        measured: those of `needs` whose cost alone counts: this one trains for as long as the first two did together,
            a pre-training and its fine-tuning. The last one tells what an epoch costs.
    """

    kind: Kind
    name: str
    dataset: str
    parameters: Mapping[str, Any]
    needs: tuple["Job", ...] = ()
    recipe: str = ""
    fold: int = 0
    seed: int = 0
    fraction: float = 1.0
    epochs: int = 0
    measured: tuple["Job", ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the parameters, the stage's version and all that is needed."""
        parameters = dict(self.parameters)
        named = [FILES[key] for key in FILES if key in parameters]
        if named:  # the content of a file counts, not its place
            parameters["settings"] = {key: value for key, value in parameters["settings"].items() if key not in named}
        return digest(
            {
                "stage": [self.kind, STAGE_VERSIONS[self.kind]],
                "parameters": parameters,
                "needs": [job.fingerprint for job in self.needs],
            }
        )

    @property
    def place(self) -> str:
        """Name of the folder of all its fingerprints; recipes share those of pre-trainings."""
        return self.name.replace(f"__{self.recipe}__", "__", 1) if self.kind == "pretrain" else self.name

    @property
    def dataset_id(self) -> str:
        """Number of the data set, as nnU-Net's commands take it."""
        return self.dataset.removeprefix("Dataset").split("_")[0]

    def find(self, kind: Kind) -> "Job | None":
        """This job or one whose output it uses, directly or through another: the first of a stage."""
        if self.kind == kind:
            return self
        used = (job for job in self.needs if all(job is not one for one in self.measured))
        return next((found for job in used if (found := job.find(kind)) is not None), None)

    def need(self, kind: Kind) -> "Job":
        """The same where there is one in any case.

        Raises:
            ValueError: there is none.
        """
        found = self.find(kind)
        if found is None:
            raise ValueError(f"job {self.name} needs no job of the stage {kind}")
        return found


def job_command(file: Path, job: Job) -> list[str]:
    """The command that does one job, wherever it runs.

    Args:
        file: the benchmark's file; the command names its absolute path.
        job: the job.
    """
    return [sys.executable, "-P", "-m", "nnunet_topomae.cli", "benchmark", "job", "-b", str(file.absolute()), job.name]


def make_jobs(spec: BenchmarkSpec) -> list[Job]:
    """All jobs, each after those that it needs.

    Raises:
        FileNotFoundError: a data set, a file of weights, or the held-out cases that are asked for, are missing.
        ValueError: nnU-Net's folder of raw data is not known; a data set lacks a fold; or nothing measures an epoch of
            a recipe that takes as long as another one.
    """
    jobs: dict[str, Job] = {}
    hashes = ContentHashes(spec.out)
    for dataset in spec.datasets:
        folder = find_dataset(spec.raw_folder(), dataset)
        _check_folds(spec, folder)
        plans = {name: _plan(spec, folder, name, planner, hashes) for name, planner in planners(spec).items()}
        held_out = {part: held_out_fingerprint(folder / part, hashes) for part in HELD_OUT} if spec.held_out else {}
        for job in plans.values():
            jobs[job.name] = job
        for seed in spec.seeds:
            for fold in spec.folds:
                # Those that take as long as others come after them.
                for recipe in sorted(spec.recipes, key=lambda recipe: recipe.equal_to is not None):
                    plan = plans[base_plans(spec, recipe)]
                    for job in _of_recipe(spec, plan, recipe, fold, seed, held_out, jobs, hashes):
                        jobs[job.name] = job
    hashes.save()
    return list(jobs.values())


def _check_folds(spec: BenchmarkSpec, folder: Path) -> None:
    """A data set has the folds of its own file, or nnU-Net's; a preset may add the published one."""
    file = folder / SPLITS_FILE
    splits = read_json(file) if file.is_file() else FOLDS * [None]
    if not isinstance(splits, list):
        raise ValueError(f"{file} is not a list of folds")
    count, last = max(len(splits), FOLDS + 1 if spec.preset else 0), max(spec.folds)
    if last >= count:
        raise ValueError(
            f"folds names {last}, but {folder.name} has {count} folds, 0 to {count - 1}. Define others in {file}."
        )


def planners(spec: BenchmarkSpec) -> dict[str, str]:
    """The planner, or preset, of every base plans that a recipe needs."""
    return {
        base_plans(spec, recipe): f"{PRESET}{spec.preset}"
        if spec.preset and recipe.plans == PLANS
        else PLANNERS[recipe.plans]
        for recipe in spec.recipes
    }


def _plan(spec: BenchmarkSpec, folder: Path, plans: str, planner: str, hashes: ContentHashes) -> Job:
    return Job(
        "plan",
        f"{folder.name.split('_')[0]}__{plans}__plan",
        folder.name,
        {
            "dataset": folder.name,
            "configuration": spec.configuration,
            "plans": plans,
            "planner": planner,
            "gpu_memory_target": spec.gpu_memory_target,
            "data": data_fingerprint(folder, hashes),
            "versions": library_versions("nnunetv2"),
            "code": code_state("preset" if planner.startswith(PRESET) else "plan", spec.code),
        },
    )


def base_plans(spec: BenchmarkSpec, recipe: Recipe) -> str:
    """Name of the plans that a recipe starts from.

    Args:
        spec: the benchmark; its preset, if it has one, is part of the name of our own plans.
        recipe: its `plans` names our plans or nnU-Net's.
    """
    return f"{recipe.plans}_{spec.preset}" if spec.preset and recipe.plans == PLANS else recipe.plans


def _of_recipe(
    spec: BenchmarkSpec,
    plan: Job,
    recipe: Recipe,
    fold: int,
    seed: int,
    held_out: Mapping[str, str],
    known: Mapping[str, Job],
    hashes: ContentHashes,
) -> list[Job]:
    """Pre-training, and for every label fraction training, prediction and score."""
    settings = recipe_settings(spec, recipe)
    common = {"plans": base_plans(spec, recipe), "fold": fold, "device": spec.device}
    common["versions"] = library_versions("nnunetv2", "torch")
    where = _where(plan, recipe.name, fold, seed)
    # The same number in all folds would give them the same initial weights and draws, and so the same luck.
    number = SEED_STRIDE * seed + fold
    first = Job("pretrain", f"{where}__pretrain", plan.dataset, {}, (plan,), recipe.name, fold, seed)
    jobs: list[Job] = []
    needs: tuple[Job, ...] = (plan,)
    if recipe.pretrainer:
        unsupervised = pretraining_settings(recipe, settings)
        parameters = {"trainer": recipe.pretrainer, "settings": {**unsupervised, "pretraining.seed": number}, **common}
        parameters |= _named_files(unsupervised, hashes)
        parameters["code"] = code_state("pretrain", spec.code)
        own = replace(first, parameters=parameters, epochs=_epochs(settings, "pretraining"))
        shared = (job for job in known.values() if job.kind == "pretrain" and job.fingerprint == own.fingerprint)
        jobs.append(next(shared, own))
        needs = (plan, jobs[0])
    settings = training_settings(recipe, settings)
    supervised = {"trainer": recipe.trainer, **common, "code": code_state("train", spec.code)}
    supervised |= _named_files(settings, hashes)
    if recipe.same_macs_as:
        supervised["equal"] = "macs"
    for fraction in spec.label_fractions:
        suffix = "" if fraction == 1 else f"__labels{fraction:g}"
        seeded = {**settings, "finetuning.seed": number}
        if fraction < 1:
            seeded |= {"finetuning.label_fraction": fraction, "finetuning.label_seed": number}
        of_fraction = replace(first, fraction=fraction, needs=needs)
        measured: tuple[Job, ...] = ()
        if recipe.equal_to:
            tuned, pace = (
                known[f"{_where(plan, name, fold, seed)}{suffix}__train"]
                for name in (recipe.equal_to, pace_recipe(spec, recipe).name)
            )
            measured = (tuned.need("pretrain"), tuned, *(() if pace is tuned else (pace,)))
        jobs.append(
            replace(
                of_fraction,
                kind="train",
                name=f"{where}{suffix}__train",
                parameters={**supervised, "settings": seeded},
                needs=(*needs, *measured),
                epochs=0 if measured else _epochs(settings, "finetuning"),
                measured=measured,
            )
        )
        jobs += _scoring(spec, of_fraction, f"{where}{suffix}", jobs[-1], held_out)
    return jobs


def _where(plan: Job, recipe: str, fold: int, seed: int) -> str:
    """Beginning of the names of a recipe's jobs."""
    return f"{plan.dataset.split('_')[0]}__{recipe}__fold{fold}__seed{seed}"


def _named_files(settings: Mapping[str, Any], hashes: ContentHashes) -> dict[str, str]:
    """Hashes of the weights and of the table of patients that settings name, by their keys in :data:`FILES`."""
    found = {}
    if (weights := settings.get(PRETRAINED)) not in (None, "scratch"):
        found["pretrained"] = hash_named(PRETRAINED, str(weights), hashes)
    if str(rule := settings.get(PATIENTS)).endswith(".json"):
        found["patients"] = hash_named(PATIENTS, str(rule), hashes)
    return found


def _scoring(spec: BenchmarkSpec, like: Job, where: str, training: Job, held_out: Mapping[str, str]) -> list[Job]:
    """The score of a training, after the prediction of held-out cases where these are asked for."""
    scoring: dict[str, Any] = {"tolerance": spec.tolerance, "betti": spec.betti}
    scoring["code"] = code_state("score", spec.code)
    if spec.betti:
        scoring["betti_code"] = code_state("betti", spec.code)
    if not held_out:
        return [replace(like, kind="score", name=f"{where}__score", parameters=scoring, needs=(training,))]
    images = {"imagesTs": held_out["imagesTs"], "code": code_state("predict", spec.code)}
    predict = replace(like, kind="predict", name=f"{where}__predict", parameters=images, needs=(training,))
    scoring["labelsTs"] = held_out["labelsTs"]
    return [predict, replace(like, kind="score", name=f"{where}__score", parameters=scoring, needs=(predict,))]


def recipe_settings(spec: BenchmarkSpec, recipe: Recipe) -> dict[str, Any]:
    """The plan values of a recipe, where it is so with as many supervised epochs more as pre-training would take.

    Args:
        spec: its settings hold for all recipes.
        recipe: its settings go before them.
    """
    settings = {**spec.settings, **recipe.settings}
    if recipe.adds_pretraining:
        steps = _epochs(settings, "pretraining") * _value(settings, "pretraining", "iterations_per_epoch")
        more = round(steps / iterations(settings))
        settings["finetuning.epochs"] = _epochs(settings, "finetuning") + more
    return settings


def pace_recipe(spec: BenchmarkSpec, recipe: Recipe) -> Recipe:
    """The recipe that shows what an epoch of another one costs.

    Args:
        spec: the benchmark.
        recipe: one that takes as long as a third one, or as many multiply-adds.

    Returns:
        the third one, if it trains the same in fine-tuning; else another recipe of the benchmark that does.

    Raises:
        ValueError: there is none.
    """
    asked = _epoch_of(spec, recipe)
    for one in (spec.recipe(str(recipe.equal_to)), *spec.recipes):
        if one.equal_to is None and _epoch_of(spec, one) == asked:
            return one
    raise ValueError(
        f"recipe {recipe.name} takes as much as {recipe.equal_to}, but its epochs are others, and no recipe measures "
        "them. Add one with the same trainer, plans and settings, of any number of epochs: for stock nnU-Net, nnunet."
    )


def _epoch_of(spec: BenchmarkSpec, recipe: Recipe) -> list[Any]:
    """What decides the cost of an epoch of supervised training."""
    settings = {key: value for key, value in recipe_settings(spec, recipe).items() if not key.startswith(UNSUPERVISED)}
    for key in ("finetuning.epochs", "finetuning.schedule", PRETRAINED):
        settings.pop(key, None)
    return [recipe.trainer, base_plans(spec, recipe), _frozen(recipe_settings(spec, recipe)), settings]


def _frozen(settings: Mapping[str, Any]) -> bool:
    """Whether pre-trained weights are not trained at all; other schedules train all of them in every epoch."""
    return settings.get("finetuning.schedule") == "head_only" and settings.get(PRETRAINED) != "scratch"


def iterations(settings: Mapping[str, Any]) -> int:
    """Steps of an epoch of supervised training with these settings."""
    return _value(settings, "finetuning", "iterations_per_epoch")


def _epochs(settings: Mapping[str, Any], stage: Literal["pretraining", "finetuning"]) -> int:
    return _value(settings, stage, "epochs")


def _value(settings: Mapping[str, Any], stage: str, key: str) -> int:
    default: int = getattr(getattr(TopoMAEConfig(), stage), key)
    return int(settings.get(f"{stage}.{key}", default))


def find_dataset(raw: Path, dataset: int) -> Path:
    """A data set's folder in nnUNet_raw.

    Args:
        raw: nnU-Net's folder of raw data.
        dataset: id, as in `Dataset004_Hippocampus`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: several folders have that id, or its name cannot be part of a command.
    """
    found = sorted(raw.glob(f"Dataset{dataset:03d}_*"))
    if not found:
        raise FileNotFoundError(f"{raw} holds no Dataset{dataset:03d}_...; is nnUNet_raw the right folder?")
    if len(found) > 1:
        raise ValueError(f"{raw} has several data sets {dataset}: {', '.join(path.name for path in found)}")
    check_name(found[0].name, f"{raw}: folder")
    return found[0]


def names(jobs: Sequence[Job]) -> str:
    """Names for an error, at most five."""
    listed = ", ".join(job.name for job in jobs[:5])
    return listed + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "")
