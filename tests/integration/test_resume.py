"""Every trainer: stopped in the middle of an epoch, killed and continued, it ends as an uninterrupted one.

And two processes train like one, and settings that a benchmark leaves out change nothing. With nnU-Net's own loop,
loaders and checkpoints, on five tiny volumes.
"""

import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from nnunet_topomae import trainers
from nnunet_topomae.benchmark.recipes import find_recipe
from nnunet_topomae.benchmark.settings import training_settings
from nnunet_topomae.training.record import read_epochs

pytestmark = pytest.mark.slow

DATASET = "Dataset902_Resumed"
CASES = [f"c{number}" for number in range(5)]
SHAPE, PATCH = (18, 30, 26), (16, 24, 24)
EPOCHS, STEPS = 2, 2
SCALE, GROWTH = 1024.0, 2
DROPOUT = {"dropout_op": "torch.nn.modules.dropout.Dropout3d", "dropout_op_kwargs": {"p": 0.2}}
BUDGET = {"epochs": EPOCHS, "iterations_per_epoch": STEPS, "validation_iterations": 1, "seed": 7}
SECTION: dict[str, Any] = {
    "architecture": {"vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1, "dropout": 0.5},
    "pretraining": {**BUDGET, "preview_every": 0, "flip_axes": [0, 1], "probe_every": 1, "gradients_every": 1},
    "topology": {"warmup_epochs": 0, "region_size": 8, "weight": "auto"},
    "finetuning": {**BUDGET, "mirror_axes": [0, 1]},
}
# Trainer, its changes of the section, and the trainer whose weights it starts from.
RUNS: list[tuple[str, dict[str, dict[str, Any]], str | None]] = [
    ("TopoMAEPretrainer", {}, None),
    ("TopoMAEFusionTrainer", {"finetuning": {"schedule": "staged", "stage_epochs": 1}}, "TopoMAEPretrainer"),
    ("UNETRTrainer", {"finetuning": {"schedule": "layer_decay"}}, "TopoMAEPretrainer"),
    ("VectorPOSEPretrainer", {"architecture": {"partner": "plan"}}, None),
    ("PretrainedNNUNetTrainer", {"architecture": {"partner": "plan"}}, "VectorPOSEPretrainer"),
    ("UNETRPPTrainer", {}, None),
    ("MONAITrainer", {"finetuning": {"network": "attention_unet"}}, None),
    ("SeededNNUNetTrainer", {}, None),
]


@pytest.fixture(scope="module")
def tiny_volumes(tmp_path_factory: pytest.TempPathFactory, tiny_plans: Any) -> Iterator[Path]:
    """nnU-Net's folders with five preprocessed cases. Pictures, statistics and the final validation are left out."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_topomae.architectures import baselines
    from nnunet_topomae.architectures.summary import Cost
    from nnunet_topomae.trainers import monitored, planned, pretrainer

    root = tmp_path_factory.mktemp("nnunet")
    initialize = planned.PlannedTrainer.initialize

    def with_scaler(self: Any) -> None:
        initialize(self)
        self.grad_scaler = torch.GradScaler("cpu", init_scale=SCALE, growth_interval=GROWTH)

    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setattr(multiprocessing, "get_context", lambda method=None: get_context("fork"))
        patch.setattr(planned.PlannedTrainer, "initialize", with_scaler)
        patch.setattr(planned, "measure_cost", lambda *_: Cost(1, 0))
        patch.setattr(baselines, "ATTENTION_CHANNELS", (4, 6, 8))
        patch.setattr(monitored, "plot_terms", lambda *_: None)
        patch.setattr(pretrainer, "report_spatial_task", lambda *_: None)
        patch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
        for kind in (nnUNetTrainer, pretrainer.TopoMAEPretrainer):
            patch.setattr(kind, "perform_actual_validation", lambda *_: None)
        plans = tiny_plans(DATASET, patch_size=PATCH)
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= DROPOUT
        _write_data_set(root / "preprocessed" / DATASET, plans)
        yield root


def _write_data_set(folder: Path, plans: dict[str, Any]) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    images = folder / "Plans_3d_fullres"
    images.mkdir(parents=True)
    for number, case in enumerate(CASES):
        rng = np.random.default_rng(number)
        labels = np.zeros((1, *SHAPE), np.int8)
        labels[:, 3:14, 5:20, 6 + number : 18 + number] = 1
        labels[:, 6:11, 8:15, 9 + number : 14 + number] = 2
        image = (labels + 0.3 * rng.normal(size=labels.shape)).astype(np.float32)
        places = {label: np.argwhere(labels == label)[:50] for label in (1, 2)}
        properties = {"class_locations": places, "spacing": [2.0, 1.0, 1.0]}
        sizes = {"chunks": labels.shape, "blocks": labels.shape}
        nnUNetDatasetBlosc2.save_case(image, labels, properties, str(images / case), **sizes)
    (folder / "splits_final.json").write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    (folder / "dataset_fingerprint.json").write_text("{}")
    (folder / "Plans.json").write_text(json.dumps(plans))
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _write_plans(root: Path, name: str, changes: dict[str, dict[str, Any]]) -> str:
    """The data set's plans under another name, with a section of ours."""
    folder = root / "preprocessed" / DATASET
    plans = {**json.loads((folder / "Plans.json").read_text()), "plans_name": name}
    section = {part: {**SECTION.get(part, {}), **changes.get(part, {})} for part in {**SECTION, **changes}}
    plans["configurations"]["3d_fullres"]["topomae"] = section
    (folder / f"{name}.json").write_text(json.dumps(plans))
    return name


def _train(trainer: str, plans: str, workers: int, **options: Any) -> None:
    from nnunetv2.run.run_training import run_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", str(workers))
        run_training("902", "3d_fullres", 0, trainer, plans, device=torch.device("cpu"), **options)


def _fold(root: Path, trainer: str, plans: str) -> Path:
    return root / "results" / DATASET / f"{trainer}__{plans}__3d_fullres" / "fold_0"


def _whole(root: Path, trainer: str, changes: dict[str, dict[str, Any]] | None = None) -> Path:
    """The final checkpoint of a training that nobody interrupts; it is made once."""
    file = _fold(root, trainer, f"{trainer}Whole") / "checkpoint_final.pth"
    if not file.is_file():
        own = next(given for name, given, _ in RUNS if name == trainer) if changes is None else changes
        _train(trainer, _write_plans(root, f"{trainer}Whole", own), workers=0)
    return file


class _Killed(Exception):
    pass


def _train_until(step: int, how: signal.Signals | type[Exception], *arguments: Any, **options: Any) -> None:
    """Train, and be asked to stop in a step of this process, or die at its end."""
    from nnunet_topomae.training.outputs import NotedSteps

    original, done = NotedSteps.step, 0

    def one_step(self: Any, batch: Any) -> Any:
        nonlocal done
        output = original(self, batch)
        done += 1
        if done == step:
            if not isinstance(how, signal.Signals):
                raise how
            os.kill(os.getpid(), how)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NotedSteps, "step", one_step)
        with pytest.raises((SystemExit, _Killed)):
            _train(*arguments, **options)
    assert done == step


def _differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two checkpoints are not the same, bit for bit, times apart."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in {**first, **second} if not str(key).endswith("_timestamps")]
        return [line for key in keys for line in _differences(first.get(key), second.get(key), f"{where}.{key}")]
    if isinstance(first, torch.Tensor):
        same = torch.equal(first, second)
    else:
        same = first == second or (first != first and second != second)
    return [] if same else [where]


def _records(fold: Path) -> list[Any]:
    """The epochs' records without times."""
    lines = (fold / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, object_hook=lambda table: {**table, "seconds": 0}) for line in lines]


def test_no_trainer_is_left_out() -> None:
    """Those that are not trained themselves say so."""
    modules = [
        importlib.import_module(f"{trainers.__name__}.{module.name}")
        for module in pkgutil.iter_modules(trainers.__path__)
    ]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    named = {kind.__name__ for kind in kinds if (kind.__doc__ or "").startswith("`nnUNetv2_train ")}
    assert named == {trainer for trainer, _, _ in RUNS}


@pytest.mark.parametrize(("trainer", "changes", "start"), RUNS, ids=[trainer for trainer, _, _ in RUNS])
def test_a_training_that_was_stopped_and_killed_ends_as_one_that_nobody_interrupted(
    tiny_volumes: Path, trainer: str, changes: dict[str, dict[str, Any]], start: str | None
) -> None:
    """Batches come from two workers, from this process and from one worker; without interruption from this process."""
    if start is not None:
        finetuning = {**changes.get("finetuning", {}), "pretrained": str(_whole(tiny_volumes, start))}
        changes = {**changes, "finetuning": finetuning}
    whole = _whole(tiny_volumes, trainer, changes).parent
    stopped = _write_plans(tiny_volumes, f"{trainer}Stopped", changes)
    _train_until(1, signal.SIGTERM, trainer, stopped, workers=2)
    latest = torch.load(_fold(tiny_volumes, trainer, stopped) / "checkpoint_latest.pth", weights_only=True)
    _train_until(2, _Killed, trainer, stopped, workers=0, continue_training=True)
    _train(trainer, stopped, workers=1, continue_training=True)
    folds = [_fold(tiny_volumes, trainer, stopped), whole]
    written = [sorted(file.name for file in fold.glob("*.pth")) for fold in folds]
    assert written[0] == written[1] and "checkpoint_final.pth" in written[0]
    for name in written[0]:
        ends = [torch.load(fold / name, weights_only=True) for fold in folds]
        for end in ends:
            assert end["optimizer_state"]["state"] and end["grad_scaler_state"]["growth_interval"] == GROWTH
            del end["init_args"], end["topomae"]["manifest"]
        assert not _differences(*ends)
    assert ends[0]["grad_scaler_state"]["scale"] > SCALE
    first, second = map(_records, folds)
    assert first == second and len(first) == EPOCHS
    # The time of the first epoch is that of its steps before and after the signal.
    assert read_epochs(folds[0])[0]["seconds"] > latest["topomae"]["seconds"] > 0


# Other values of settings that most trainings from scratch do not read.
OTHERS: dict[str, Any] = {
    **{"architecture.vit": "small", "architecture.drop_path": 0.5, "architecture.depth": 2},
    **{"pretraining.lambda2": 0.3, "topology.weight": 3.0, "vectorpose.rotate": False},
    **{"finetuning.learning_rate": 0.1, "finetuning.pretrained_learning_rate": 0.2, "finetuning.weight_decay": 0.9},
    **{"finetuning.sgd_learning_rate": 0.3, "finetuning.sgd_pretrained_learning_rate": 0.4, "finetuning.clip": 1e-3},
    **{"finetuning.schedule": "staged", "finetuning.stage_epochs": 1, "finetuning.layer_decay": 0.5},
    **{"finetuning.transfer": "resample", "finetuning.transfer_decoder": "no"},
    **{"finetuning.pretrainer": "VectorPOSEPretrainer", "finetuning.allow_other_dataset": True},
    "finetuning.warmup_steps": 0,
}
CONTROLLED = ("full", "nnunet-pretrained", "unetr-mae")
FROM_SCRATCH = ("nnunet", "unetrpp", "attention-unet", *(f"{one}-scratch" for one in CONTROLLED))


@pytest.mark.parametrize("recipe", FROM_SCRATCH)
def test_settings_that_a_benchmark_leaves_out_change_no_weight(tiny_volumes: Path, recipe: str) -> None:
    """Of a training from scratch: what it reads, according to the benchmark, stays as it is."""
    chosen = find_recipe(recipe)
    own, weights = dict(chosen.settings), []
    unread = {key: value for key, value in OTHERS.items() if key not in training_settings(chosen, {**OTHERS, **own})}
    assert len(unread) > len(OTHERS) / 2
    for name, settings in (("Own", own), ("Others", {**own, **unread})):
        changes: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            part, _, last = key.partition(".")
            changes.setdefault(part, {})[last] = value
        plans = _write_plans(tiny_volumes, f"{recipe}{name}", changes)
        _train(chosen.trainer, plans, workers=0)
        file = _fold(tiny_volumes, chosen.trainer, plans) / "checkpoint_final.pth"
        weights.append(torch.load(file, weights_only=True)["network_weights"])
    assert weights[0] and not _differences(*weights)


@pytest.mark.parametrize("schedule", ["warmup", "head_only"])
def test_vectorpose_trains_unetrpp_too_and_other_schedules_continue(tiny_volumes: Path, schedule: str) -> None:
    """On the default partner without a ViT; fine-tuned with the schedules that no trainer has above."""
    pretrainer, trainer = "VectorPOSEPretrainer", "TopoMAEFusionTrainer"
    alone: dict[str, dict[str, Any]] = {"architecture": {"vit": "none"}}
    file = _fold(tiny_volumes, pretrainer, "OnUNETRPP") / "checkpoint_final.pth"
    if not file.is_file():
        _train(pretrainer, _write_plans(tiny_volumes, "OnUNETRPP", alone), workers=0)
    given = {"pretrainer": pretrainer, "pretrained": str(file), "schedule": schedule, "stage_epochs": 1}
    weights = []
    for name in ("Whole", "Stopped"):
        plans = _write_plans(tiny_volumes, f"{schedule}{name}", {**alone, "finetuning": given})
        if name == "Stopped":
            _train_until(1, signal.SIGTERM, trainer, plans, workers=0)
        _train(trainer, plans, workers=0, continue_training=name == "Stopped")
        final = _fold(tiny_volumes, trainer, plans) / "checkpoint_final.pth"
        weights.append(torch.load(final, weights_only=True)["network_weights"])
    before = torch.load(file, weights_only=True)["network_weights"]
    shared = [key for key in before if key.startswith("encoder.") and key in weights[0]]
    assert shared and all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    kept = all(torch.equal(before[key], weights[0][key]) for key in shared)
    assert kept == (schedule == "head_only")


# What differs from RUNS where two processes train: nothing is random in the network, angles of vectors count the same,
# and UNETR comes for Attention U-Net, because torch has no batch norm over several processes on a CPU.
PARALLEL: dict[str, dict[str, Any]] = {
    "architecture": {"dropout": 0.0, "drop_path": 0.0},
    "pretraining": {"epochs": 1, "probe_every": 0, "gradients_every": 0, "angle_weights": "equal"},
    "topology": {"weight": 1.0},
    "finetuning": {"epochs": 1, "pretrained": "scratch", "schedule": "full"},
}
SMALL_UNETR = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "feature_size": 4}


class _Epoch(NamedTuple):
    """Gradients of the first step before clipping, by the names of weights, and what is logged."""

    gradients: dict[str, torch.Tensor]
    terms: dict[str, Any]


def _one_epoch(trainer: str, plans: str) -> _Epoch:
    """Two steps and a validation, in this process or as one of several."""
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_topomae.training.devices import unwrap

    made = get_trainer_from_args("902", "3d_fullres", 0, trainer, plans, device=torch.device("cpu"))
    clip, gradients = torch.nn.utils.clip_grad_norm_, {}

    def note(parameters: Any, norm: float) -> torch.Tensor:
        if not gradients:
            weights = unwrap(made.network).named_parameters()
            gradients.update({name: weight.grad.clone() for name, weight in weights if weight.grad is not None})
        return clip(parameters, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(torch.nn.utils, "clip_grad_norm_", note)
        made.run_training()
    logged = getattr(made, "epoch_terms", {})
    if not logged:
        names = ("train_losses", "val_losses", "mean_fg_dice")
        logged = {"all": {name: float(made.logger.get_value(name, step=0)) for name in names}}
    return _Epoch(
        gradients, {f"{part} {name}": value for part, terms in logged.items() for name, value in terms.items()}
    )


def _one_of_two(rank: int, meeting: str, runs: list[tuple[str, str]], file: str) -> None:
    """As one of the processes of `-num_gpus 2`, without GPUs; the first one writes what it found."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = [tuple(_one_epoch(*run)) for run in runs]
    if rank == 0:
        torch.save(found, file)
    distributed.barrier()
    distributed.destroy_process_group()


def _parallel_plans(root: Path, name: str) -> list[tuple[str, str]]:
    """Every trainer with plans of its own; every other one has Dice over the batch."""
    runs = []
    for number, (trainer, changes, _) in enumerate(RUNS):
        parts = {part: {**changes.get(part, {}), **values} for part, values in PARALLEL.items()}
        if trainer == "MONAITrainer":
            parts["finetuning"]["network"] = "unetr"
        plans = _write_plans(root, f"{trainer}{name}", parts)
        file = root / "preprocessed" / DATASET / f"{plans}.json"
        values = json.loads(file.read_text())
        configuration = values["configurations"]["3d_fullres"]
        configuration["batch_dice"] = number % 2 == 1
        configuration["architecture"]["arch_kwargs"] |= dict.fromkeys(DROPOUT)
        file.write_text(json.dumps(values))
        runs.append((trainer, plans))
    return runs


def test_two_processes_train_like_one(tiny_volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trainer with a crop per process: gradients, and all logged terms of an epoch of two steps."""
    from monai.networks.nets import unetr

    from nnunet_topomae.architectures import vector_head

    monkeypatch.setattr(unetr, "UNETR", partial(unetr.UNETR, **SMALL_UNETR))
    monkeypatch.setattr(vector_head, "DROPOUT", 0.0)
    found = tmp_path / "found.pt"
    arguments = str(tmp_path / "meeting"), _parallel_plans(tiny_volumes, "Two"), str(found)
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")
    pairs = zip(_parallel_plans(tiny_volumes, "One"), torch.load(found), strict=True)
    for (trainer, plans), two in pairs:
        together, alone = _Epoch(*two), _one_epoch(trainer, plans)
        assert together.terms == pytest.approx(alone.terms, rel=1e-3), trainer
        size = torch.stack([gradient.norm() for gradient in alone.gradients.values()]).norm()
        assert size > 0.1, trainer
        for name, gradient in together.gradients.items():
            # nnU-Net gives the coarsest output of its own network the weight 0 in one process, and 1e-6 in several.
            expected = alone.gradients.get(name, torch.zeros_like(gradient))
            assert (gradient - expected).norm() <= 1e-4 * expected.norm() + 1e-5 * size, (trainer, name)
        assert set(alone.gradients) <= set(together.gradients), trainer
