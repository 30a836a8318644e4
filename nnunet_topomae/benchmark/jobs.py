"""The jobs of a benchmark, each with a fingerprint of all that decides its result. Quick to import.

For every data set one job plans and preprocesses; for every recipe, fold and seed one pre-trains; for every label
fraction one trains and validates; one scores. A job's fingerprint contains those of the jobs it needs, so that after
any change exactly what depends on it has another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from nnunet_topomae.benchmark.recipes import PLANNERS, Recipe
from nnunet_topomae.benchmark.spec import BenchmarkSpec
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.files import hash_json
from nnunet_topomae.nnunet.names import PLANS

Kind = Literal["plan", "pretrain", "train", "score"]
# Raised when the code of a stage changes what it makes.
STAGE_VERSIONS: dict[Kind, int] = {"plan": 2, "pretrain": 2, "train": 2, "score": 2}
PACKAGES = ("nnunet-topomae", "nnunetv2")
# Settings that pre-training does not see.
SUPERVISED = "finetuning."
# What stands for a planner where a preset plans.
PRESET = "preset "


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        kind: stage.
        name: unique, also a folder's name.
        parameters: JSON values that decide the result.
        needs: jobs that must be done before.
        epochs: of the training, 0 for other stages.
    """

    kind: Kind
    name: str
    parameters: Mapping[str, Any]
    needs: tuple["Job", ...] = ()
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

    def need(self, kind: Kind) -> "Job | None":
        """The job of a stage that this one needs, directly or through another."""
        for job in self.needs:
            found = job if job.kind == kind else job.need(kind)
            if found is not None:
                return found
        return None


def make_jobs(spec: BenchmarkSpec, raw: Path) -> list[Job]:
    """All jobs, each after those that it needs.

    Args:
        spec: the benchmark.
        raw: nnU-Net's folder of raw data.

    Raises:
        FileNotFoundError: a data set is missing.
    """
    jobs: list[Job] = []
    for dataset in spec.datasets:
        plan = _plan(spec, find_dataset(raw, dataset))
        jobs.append(plan)
        for seed in spec.seeds:
            for fold in spec.folds:
                for recipe in spec.recipes:
                    jobs += _of_recipe(spec, plan, recipe, fold, seed)
    return jobs


def _plan(spec: BenchmarkSpec, folder: Path) -> Job:
    planners = {base_plans(spec, recipe): _planner(spec, recipe) for recipe in spec.recipes}
    return Job(
        "plan",
        f"{folder.name[:10]}__plan",
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
    """Name of the plans that a recipe starts from."""
    return f"{recipe.plans}_{spec.preset}" if spec.preset and recipe.plans == PLANS else recipe.plans


def _planner(spec: BenchmarkSpec, recipe: Recipe) -> str:
    return f"{PRESET}{spec.preset}" if spec.preset and recipe.plans == PLANS else PLANNERS[recipe.plans]


def _of_recipe(spec: BenchmarkSpec, plan: Job, recipe: Recipe, fold: int, seed: int) -> list[Job]:
    where = f"{plan.name.removesuffix('__plan')}__{recipe.name}__fold{fold}__seed{seed}"
    settings = {**spec.settings, **recipe.settings}
    unsupervised = {key: value for key, value in settings.items() if not key.startswith(SUPERVISED)}
    common = {"plans": base_plans(spec, recipe), "fold": fold, "device": spec.device}
    jobs: list[Job] = []
    needs: tuple[Job, ...] = (plan,)
    if recipe.pretrainer:
        parameters = {"trainer": recipe.pretrainer, "settings": {**unsupervised, "pretraining.seed": seed}, **common}
        pretraining = Job("pretrain", f"{where}__pretrain", parameters, (plan,), _epochs(settings, "pretraining"))
        jobs.append(pretraining)
        needs = (plan, pretraining)
    for fraction in spec.label_fractions:
        suffix = "" if fraction == 1 else f"__labels{fraction:g}"
        seeded = {**settings, "finetuning.seed": seed}
        if fraction < 1:
            seeded |= {"finetuning.label_fraction": fraction, "finetuning.label_seed": seed}
        parameters = {"trainer": recipe.trainer, "settings": seeded, **common}
        training = Job("train", f"{where}{suffix}__train", parameters, needs, _epochs(settings, "finetuning"))
        # What the report needs to know about the scores, besides what decides them.
        scoring = {"tolerance": spec.tolerance, "betti": spec.betti}
        jobs += [training, Job("score", f"{where}{suffix}__score", scoring, (training,))]
    return jobs


def _epochs(settings: Mapping[str, Any], stage: Literal["pretraining", "finetuning"]) -> int:
    default: int = getattr(TopoMAEConfig(), stage).epochs
    return int(settings.get(f"{stage}.epochs", default))


def find_dataset(raw: Path, dataset: int) -> Path:
    """A data set's folder in nnUNet_raw.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: several folders have that id.
    """
    found = sorted(raw.glob(f"Dataset{dataset:03d}_*"))
    if not found:
        raise FileNotFoundError(f"{raw} holds no Dataset{dataset:03d}_...; is nnUNet_raw the right folder?")
    if len(found) > 1:
        raise ValueError(f"{raw} has several data sets {dataset}: {', '.join(path.name for path in found)}")
    return found[0]


def data_fingerprint(folder: Path) -> str:
    """Hash of dataset.json, the splits, and names, sizes and times of all training images and label maps."""
    listing = [
        [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
        for part in ("imagesTr", "labelsTr")
        for path in sorted((folder / part).glob("*"))
    ]
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
