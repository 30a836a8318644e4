"""The demo's chain of steps: which of nnU-Net's commands run, with which plan."""

import json
from pathlib import Path

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.benchmark.layout import (
    DATASET_ID,
    DEMO_PLANS,
    FOLD,
    FUSION,
    MODELS,
    SCORES_FILE,
    SCRATCH,
    DemoFolders,
    DemoSettings,
)
from nnunet_topomae.benchmark.results import write_scores
from nnunet_topomae.benchmark.steps import Command, Step
from nnunet_topomae.config import SECTION, TopoMAEConfig
from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.nnunet.names import CONFIGURATION, PLANS, PRETRAINER


def build_steps(folders: DemoFolders, settings: DemoSettings, device: str) -> list[Step]:
    """The chain from nothing to scores."""
    phantoms = (DATASET_ID, settings.cases_train, settings.cases_test, settings.seed, settings.shape)
    plan_argv = ("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-pl", "TopoMAEPlanner", "-c", CONFIGURATION)
    demo_plans = folders.preprocessed / f"{DEMO_PLANS}.json"
    schedule = {"patch_size": settings.patch_size, "batch_size": settings.batch_size, SECTION: settings.section()}
    return [
        Step(
            "phantoms",
            f"Make {settings.cases_train} + {settings.cases_test} phantoms",
            lambda: write_phantom_dataset(folders.raw, *phantoms),
            (folders.raw / folders.dataset,),
            {"phantoms": phantoms},
        ),
        Step(
            "preprocess",
            "Plan and preprocess",
            Command(plan_argv, ("-npfp", "1", "-np", "1")),
            (folders.preprocessed,),
        ),
        Step(
            "plans",
            "Write the demo's plans",
            lambda: write_demo_plans(demo_plans, settings),
            (demo_plans,),
            schedule,
        ),
        _training(folders, PRETRAINER, "pretrain", "Pre-train ViT and UNETR++", device, settings.pretraining_epochs),
        _training(folders, FUSION, "finetune", "Fine-tune the fusion network", device, settings.finetuning_epochs),
        _training(folders, SCRATCH, "scratch", "Train UNETR++ from scratch", device, settings.finetuning_epochs),
        *(_prediction(folders, model, device) for model in MODELS),
        Step("score", "Score the held-out phantoms", lambda: write_scores(folders), (folders.out / SCORES_FILE,)),
    ]


def _training(folders: DemoFolders, trainer: str, name: str, title: str, device: str, epochs: int) -> Step:
    argv = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, FOLD, "-tr", trainer, "-p", DEMO_PLANS)
    record = folders.fold(trainer) / "metrics.jsonl"
    command = Command(argv, ("-device", device), ("--c",), record, epochs)
    return Step(name, title, command, (folders.model(trainer),))


def _prediction(folders: DemoFolders, model: str, device: str) -> Step:
    cases, target = folders.raw / folders.dataset / "imagesTs", folders.prediction(model)
    what = ("-d", str(DATASET_ID), "-c", CONFIGURATION, "-tr", MODELS[model], "-p", DEMO_PLANS, "-f", FOLD)
    argv = ("nnUNetv2_predict", "-i", str(cases), "-o", str(target), *what, "--disable_tta")
    command = Command(argv, ("-npp", "1", "-nps", "1", "-device", device), ("--continue_prediction",))
    return Step(f"predict_{model}", f"Predict with the {model} model", command, (target,))


def write_demo_plans(path: Path, settings: DemoSettings) -> None:
    """Write the short schedule as a variant of `TopoMAEPlans` that shares the preprocessed data.

    Raises:
        ValueError: the `topomae` section or the patch size is not valid.
    """
    plans = json.loads((path.parent / f"{PLANS}.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    configuration.update(patch_size=list(settings.patch_size), batch_size=settings.batch_size)
    configuration[SECTION] = settings.section()
    config = TopoMAEConfig.from_configuration(configuration)
    derive_network_shape(
        settings.patch_size, configuration["architecture"]["arch_kwargs"]["strides"], config.architecture
    )
    plans["plans_name"] = DEMO_PLANS
    path.write_text(json.dumps(plans, indent=2) + "\n")
