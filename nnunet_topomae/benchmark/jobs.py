"""The jobs of a benchmark, each with a fingerprint of all that decides its result. Quick to import.

For every data set one job plans and preprocesses; for every recipe, fold and seed one pre-trains; for every label
fraction one trains and validates; where held-out cases are asked for, one predicts them; one scores. A job's
fingerprint contains those of the jobs it needs, so that after any change exactly what depends on it has another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from nnunet_topomae.benchmark.recipes import PLANNERS, Recipe
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.files import hash_json
from nnunet_topomae.nnunet.names import PLANS, check_name

Kind = Literal["plan", "pretrain", "train", "predict", "score"]
# Raised when the code of a stage changes what it makes.
STAGE_VERSIONS: dict[Kind, int] = {"plan": 2, "pretrain": 2, "train": 2, "predict": 1, "score": 2}
PACKAGES = ("nnunet-topomae", "nnunetv2")
# Settings that pre-training does not see.
SUPERVISED = "finetuning."
# What stands for a planner where a preset plans.
PRESET = "preset "
# nnU-Net's folders of held-out cases.
HELD_OUT = ("imagesTs", "labelsTs")


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        kind: stage.
        name: unique, also a folder's name.
        dataset: name of the data set.
        parameters: JSON values that decide the result.
        needs: jobs that must be done before.
        recipe: name of the recipe; empty for a plan, which all recipes share.
        fold: fold.
        seed: seed.
        fraction: share of the labels.
        epochs: of the training, 0 for other stages.
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

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the parameters, the stage's version and all that is needed."""
        return digest(
            {
                "stage": [self.kind, STAGE_VERSIONS[self.kind]],
                "parameters": dict(self.parameters),
                "needs": [job.fingerprint for job in self.needs],
            }
        )

    @property
    def dataset_id(self) -> str:
        """Number of the data set, as nnU-Net's commands take it."""
        return self.dataset.removeprefix("Dataset").split("_")[0]

    def find(self, kind: Kind) -> "Job | None":
        """This job or one that it needs, directly or through another: the first of a stage."""
        if self.kind == kind:
            return self
        return next((found for job in self.needs if (found := job.find(kind)) is not None), None)

    def need(self, kind: Kind) -> "Job":
        """The same where there is one in any case.

        Raises:
            ValueError: there is none.
        """
        found = self.find(kind)
        if found is None:
            raise ValueError(f"job {self.name} needs no job of the stage {kind}")
        return found


def make_jobs(spec: BenchmarkSpec) -> list[Job]:
    """All jobs, each after those that it needs.

    Raises:
        FileNotFoundError: a data set, or the held-out cases that are asked for, are missing.
        ValueError: nnU-Net's folder of raw data is not known.
    """
    jobs: list[Job] = []
    for dataset in spec.datasets:
        folder = find_dataset(spec.raw_folder(), dataset)
        plan = _plan(spec, folder)
        held_out = {part: _held_out(folder / part) for part in HELD_OUT} if spec.held_out else {}
        jobs.append(plan)
        for seed in spec.seeds:
            for fold in spec.folds:
                for recipe in spec.recipes:
                    jobs += _of_recipe(spec, plan, recipe, fold, seed, held_out)
    return jobs


def _plan(spec: BenchmarkSpec, folder: Path) -> Job:
    planners = {base_plans(spec, recipe): _planner(spec, recipe) for recipe in spec.recipes}
    return Job(
        "plan",
        f"{folder.name.split('_')[0]}__plan",
        folder.name,
        {
            "dataset": folder.name,
            "configuration": spec.configuration,
            "planners": dict(sorted(planners.items())),
            "gpu_memory_target": spec.gpu_memory_target,
            "data": data_fingerprint(folder),
            "versions": {name: version(name) for name in PACKAGES},
        },
    )


def base_plans(spec: BenchmarkSpec, recipe: Recipe) -> str:
    """Name of the plans that a recipe starts from.

    Args:
        spec: the benchmark; its preset, if it has one, is part of the name of our own plans.
        recipe: its `plans` names our plans or nnU-Net's.
    """
    return f"{recipe.plans}_{spec.preset}" if spec.preset and recipe.plans == PLANS else recipe.plans


def _planner(spec: BenchmarkSpec, recipe: Recipe) -> str:
    return f"{PRESET}{spec.preset}" if spec.preset and recipe.plans == PLANS else PLANNERS[recipe.plans]


def _of_recipe(
    spec: BenchmarkSpec, plan: Job, recipe: Recipe, fold: int, seed: int, held_out: Mapping[str, str]
) -> list[Job]:
    """Pre-training, and for every label fraction training, prediction and score."""
    settings = recipe_settings(spec, recipe)
    common = {"plans": base_plans(spec, recipe), "fold": fold, "device": spec.device}
    where = f"{plan.name.removesuffix('__plan')}__{recipe.name}__fold{fold}__seed{seed}"
    first = Job("pretrain", f"{where}__pretrain", plan.dataset, {}, (plan,), recipe.name, fold, seed)
    jobs: list[Job] = []
    needs: tuple[Job, ...] = (plan,)
    if recipe.pretrainer:
        unsupervised = {key: value for key, value in settings.items() if not key.startswith(SUPERVISED)}
        parameters = {"trainer": recipe.pretrainer, "settings": {**unsupervised, "pretraining.seed": seed}, **common}
        jobs.append(replace(first, parameters=parameters, epochs=_epochs(settings, "pretraining")))
        needs = (plan, jobs[0])
    for fraction in spec.label_fractions:
        suffix = "" if fraction == 1 else f"__labels{fraction:g}"
        seeded = {**settings, "finetuning.seed": seed}
        if fraction < 1:
            seeded |= {"finetuning.label_fraction": fraction, "finetuning.label_seed": seed}
        parameters = {"trainer": recipe.trainer, "settings": seeded, **common}
        epochs = _epochs(settings, "finetuning")
        of_fraction = replace(first, fraction=fraction, needs=needs)
        last = replace(of_fraction, kind="train", name=f"{where}{suffix}__train", parameters=parameters, epochs=epochs)
        jobs.append(last)
        scoring: dict[str, Any] = {"tolerance": spec.tolerance, "betti": spec.betti}
        if held_out:
            images = {"imagesTs": held_out["imagesTs"]}
            last = replace(
                of_fraction, kind="predict", name=f"{where}{suffix}__predict", parameters=images, needs=(last,)
            )
            jobs.append(last)
            scoring["labelsTs"] = held_out["labelsTs"]
        jobs.append(
            replace(of_fraction, kind="score", name=f"{where}{suffix}__score", parameters=scoring, needs=(last,))
        )
    return jobs


def recipe_settings(spec: BenchmarkSpec, recipe: Recipe) -> dict[str, Any]:
    """The plan values of a recipe, where it is so with as many supervised epochs more as pre-training would take.

    Args:
        spec: its settings hold for all recipes.
        recipe: its settings go before them.
    """
    settings = {**spec.settings, **recipe.settings}
    if recipe.adds_pretraining:
        steps = _epochs(settings, "pretraining") * _value(settings, "pretraining", "iterations_per_epoch")
        more = round(steps / _value(settings, "finetuning", "iterations_per_epoch"))
        settings["finetuning.epochs"] = _epochs(settings, "finetuning") + more
    return settings


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


def _held_out(folder: Path) -> str:
    """Fingerprint of held-out images or labels.

    Raises:
        FileNotFoundError: there are none.
    """
    listing = list_files(folder)
    if not listing:
        raise FileNotFoundError(f"{folder} holds no files, but held_out = true asks for {' and '.join(HELD_OUT)}")
    return digest(listing)


def list_files(folder: Path) -> list[list[Any]]:
    """Name with its folder, size and time of every file, in the order of names."""
    return [
        [f"{folder.name}/{path.name}", path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.glob("*"))
    ]


def data_fingerprint(folder: Path) -> str:
    """Hash of dataset.json, the splits, and names, sizes and times of all training images and label maps."""
    listing = [entry for part in ("imagesTr", "labelsTr") for entry in list_files(folder / part)]
    small = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("dataset.json", "splits_final.json")
        if (folder / name).is_file()
    }
    return digest([listing, small])


def digest(value: Any) -> str:
    """Short hash of a JSON value, for the name of a folder."""
    return hash_json(value)[:16]


def names(jobs: Sequence[Job]) -> str:
    """Names for an error, at most five."""
    listed = ", ".join(job.name for job in jobs[:5])
    return listed + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "")
