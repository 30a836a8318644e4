"""The parts `trainers` and `benchmark` of studies/gpu_evidence.py: nnU-Net's and our commands on phantoms."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nnunet_topomae.datasets.phantom import write_phantom_dataset
from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
from nnunet_topomae.nnunet.process import find_program
from nnunet_topomae.plans.variants import make_variant

Record = dict[str, Any]
Environment = dict[str, str]
Save = Callable[[], None]

DATASET = 777
FAST_RATE, SLOW_RATE = 1e-3, 2e-4
SMALL = {
    "patch_size": [24, 32, 32],
    "batch_size": 2,
    "architecture.vit": "tiny",
    "architecture.dims": [16, 32, 64, 128],
    "architecture.depth": 1,
    "topology.region_size": 24,
    "topology.warmup_epochs": 0,
    "pretraining.warmup_steps": 0,
    "finetuning.warmup_steps": 0,
    "pretraining.validation_iterations": 1,
    "finetuning.validation_iterations": 1,
    "finetuning.mirror_axes": [],
    "finetuning.learning_rate": FAST_RATE,
    "finetuning.pretrained_learning_rate": SLOW_RATE,
}


class Training(NamedTuple):
    """One training of the part `trainers`.

    Attributes:
        plans: variant of the phantoms' plans.
        after: pre-trainer whose weights it takes.
        two_rates: whether some of its weights learn faster than others.
    """

    plans: str
    after: str | None = None
    two_rates: bool = False


# The paper's networks, and nnU-Net's own one in UNETR++'s place.
PAPER, OWN = "TopoMAEPlans_short", "TopoMAEPlans_own"
VARIANTS: dict[str, Record] = {
    PAPER: {
        "pretraining.learning_rate": SLOW_RATE,
        "pretraining.partner_learning_rate": FAST_RATE,
        "finetuning.network": "attention_unet",
    },
    OWN: {
        "architecture.partner": "plan",
        "finetuning.pretrainer": "VectorPOSEPretrainer",
        "finetuning.sgd_learning_rate": FAST_RATE,
        "finetuning.sgd_pretrained_learning_rate": SLOW_RATE,
    },
}
# All of the package, in the order in which they begin.
TRAININGS = {
    "TopoMAEPretrainer": Training(PAPER, two_rates=True),
    "UNETRPPTrainer": Training(PAPER),
    "SeededNNUNetTrainer": Training(PAPER),
    "VectorPOSEPretrainer": Training(OWN),
    "TopoMAEFusionTrainer": Training(PAPER, "TopoMAEPretrainer", two_rates=True),
    "UNETRTrainer": Training(PAPER, "TopoMAEPretrainer", two_rates=True),
    "PretrainedNNUNetTrainer": Training(OWN, "VectorPOSEPretrainer", two_rates=True),
    "MONAITrainer": Training(PAPER),
}
NEEDS_MONAI = "MONAITrainer"


def trainers(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """One short epoch of every trainer through nnU-Net's command, with mixed precision and compilation on a GPU."""
    environment = nnunet_folders(folder, device)
    cuda = device.type == "cuda"
    prepare(environment, iterations=10 if cuda else 1, processes=2 if cuda else 1)
    waiting = [name for name in TRAININGS if name != NEEDS_MONAI or importlib.util.find_spec("monai")]
    record["not_installed"] = [name for name in TRAININGS if name not in waiting]
    found: dict[str, Record] = {}
    record["trainers"] = found
    running: dict[str, subprocess.Popen[bytes]] = {}
    while running or waiting:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            found[name] = inspect_training(name, running.pop(name).returncode, environment, folder, device)
            save()
        ready = [name for name in waiting if TRAININGS[name].after in (None, *found)]
        for name in ready[: (5 if cuda else 2) - len(running)]:
            waiting.remove(name)
            running[name] = start_training(name, environment, folder, device)
        time.sleep(0.2)
    failed = [name for name, result in found.items() if not result["ok"]]
    if failed:
        raise RuntimeError(f"not as expected: {', '.join(failed)}")


def start_training(
    trainer: str, environment: Environment, folder: Path, device: torch.device
) -> subprocess.Popen[bytes]:
    """Start one training of fold 0."""
    plans = TRAININGS[trainer].plans
    argv = ["nnUNetv2_train", str(DATASET), "3d_fullres", "0", "-tr", trainer, "-p", plans, "-device", device.type]
    return start(environment, folder / f"{trainer}.txt", *argv)


def inspect_training(trainer: str, code: int, environment: Environment, folder: Path, device: torch.device) -> Record:
    """What came of a training."""
    if code:
        return {"ok": False, "exit_code": code, "end_of_log": (folder / f"{trainer}.txt").read_text()[-2000:]}
    model = Path(environment["nnUNet_results"]) / f"Dataset{DATASET}_TopoMAEPhantom"
    return check_training(model / f"{trainer}__{TRAININGS[trainer].plans}__3d_fullres" / "fold_0", trainer, device)


def check_training(fold: Path, trainer: str, device: torch.device) -> Record:
    """What a finished training's checkpoint and log say, and whether it is as expected."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    log = "\n".join(path.read_text() for path in fold.glob("training_log_*.txt"))
    groups = learning_rates(checkpoint["optimizer_state"])
    losses = checkpoint["logging"]["train_losses"]
    times = [checkpoint["logging"][f"epoch_{moment}_timestamps"] for moment in ("start", "end")]
    found: Record = {
        "groups": groups,
        "logged_groups": [line.split(": ", 1)[-1] for line in log.splitlines() if "peak learning rate" in line],
        "train_loss": float(losses[-1]),
        "mixed_precision": checkpoint["grad_scaler_state"] is not None,
        "compiled": "Using torch.compile" in log,
        "epoch_seconds": [end - start for start, end in zip(*times, strict=True)],
    }
    cuda = device.type == "cuda"
    checks = {
        "finite loss": math.isfinite(found["train_loss"]),
        "mixed precision": found["mixed_precision"] == cuda,
        "compiled": found["compiled"] == cuda,
        "weights at every rate": all(group["weights"] > 0 and group["rate"] > 0 for group in groups),
    }
    rates = sorted({group["rate"] for group in groups})
    if TRAININGS[trainer].two_rates:  # both shrink by the same schedule
        ratio = rates[-1] / rates[0]
        checks["both rates"] = len(rates) == 2 and math.isclose(ratio, FAST_RATE / SLOW_RATE, rel_tol=1e-6)
    else:
        checks["one rate"] = len(rates) == 1
    return found | {"checks": checks, "ok": all(checks.values())}


def learning_rates(optimizer_state: Record) -> list[Record]:
    """Rate, decay and number of trained weights of every parameter group."""
    averages = optimizer_state["state"]

    def weights(number: int) -> int:
        state = averages.get(number, {})
        return next((state[key].numel() for key in ("exp_avg", "momentum_buffer") if key in state), 0)

    return [
        {
            "rate": float(group["lr"]),
            "decay": float(group["weight_decay"]),
            "weights": sum(weights(number) for number in group["params"]),
        }
        for group in optimizer_state["param_groups"]
    ]


def benchmark(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """The benchmark command on phantoms: five folds of two recipes on a GPU, one fold of one recipe on a CPU."""
    cuda = device.type == "cuda"
    environment = {**nnunet_folders(folder, device), "nnUNet_compile": "f"}
    write_phantom_dataset(Path(environment["nnUNet_raw"]), DATASET, 10 if cuda else 5, 0, seed=0)
    settings = SMALL | {
        "pretraining.epochs": 3 if cuda else 1,
        "finetuning.epochs": 5 if cuda else 1,
        "pretraining.iterations_per_epoch": 20 if cuda else 1,
        "finetuning.iterations_per_epoch": 20 if cuda else 1,
    }
    spec: Record = {"datasets": [DATASET], "recipes": ["unetrpp"], "folds": [0]}
    if cuda:
        spec |= {"recipes": ["unetrpp", "full"], "folds": [0, 1, 2, 3, 4]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**spec, "device": device.type}.items()]
    lines += ["[settings]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    file = folder / "micro.toml"
    file.write_text("\n".join(lines) + "\n")
    record["settings"] = {**spec, **settings}
    for action in (["run", "--slots", "5" if cuda else "2"], ["status"], ["report"]):
        argv = [sys.executable, "-P", "-m", "nnunet_topomae.cli", "benchmark", *action, "-b", str(file)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        record[action[0]] = {"exit_code": done.returncode, "end": (done.stdout + done.stderr)[-1500:]}
        save()
        if done.returncode:
            logs = "\n".join(path.read_text()[-1500:] for path in (folder / "micro").rglob("log.txt"))
            raise RuntimeError(f"benchmark {action[0]} failed: {record[action[0]]['end']}\n{logs[-6000:]}")
    results = json.loads((folder / "micro" / "report" / "results.json").read_text())
    (table,) = results["tables"]
    record["cases"] = len(table["cases"])
    record["mean"] = {name: row["mean"] for name, row in table["rows"].items()}
    if set(table["rows"]) != set(spec["recipes"]) or record["cases"] != (10 if cuda else 1):
        raise RuntimeError(f"the report has {record['cases']} cases of {sorted(table['rows'])}")


def nnunet_folders(folder: Path, device: torch.device) -> Environment:
    """Environment of commands, with nnU-Net's folders below ``folder``."""
    cuda = device.type == "cuda"
    environment = {
        **os.environ,
        "nnUNet_def_n_proc": "4" if cuda else "1",
        "nnUNet_n_proc_DA": "2" if cuda else "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(exist_ok=True)
        environment[f"nnUNet_{name}"] = str(folder / name)
    return environment


def prepare(environment: Environment, iterations: int, processes: int) -> None:
    """Phantoms, planned and preprocessed, and plans of short schedules."""
    raw, preprocessed = (Path(environment[f"nnUNet_{name}"]) for name in ("raw", "preprocessed"))
    dataset = write_phantom_dataset(raw, DATASET, 5, 0, seed=0)
    argv = ["nnUNetv2_plan_and_preprocess", "-d", str(DATASET), "-pl", "TopoMAEPlanner", "-c", "3d_fullres"]
    process = start(environment, raw.parent / "plan.txt", *argv, "-npfp", str(processes), "-np", str(processes))
    if process.wait():
        raise RuntimeError((raw.parent / "plan.txt").read_text()[-3000:])
    folder = preprocessed / dataset.name
    settings = SMALL | {f"{stage}.epochs": 1 for stage in ("pretraining", "finetuning")}
    settings |= {f"{stage}.iterations_per_epoch": iterations for stage in ("pretraining", "finetuning")}
    plans = read_plans(folder / "TopoMAEPlans.json")
    for name, own in VARIANTS.items():
        write_plans(make_variant(plans, name, ["3d_fullres"], settings | own), folder)


def start(environment: Environment, log: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command; its output goes to ``log``."""
    with log.open("w") as file:
        argv = [find_program(program), *arguments]
        return subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
