"""The memory of a long training and of its loader workers, and what it leaves behind when it is stopped.

    python studies/long_run.py --out long_run.json --picture long_run.svg     # 15 to 40 minutes
    python studies/long_run.py --steps 40                                     # a minute
    python studies/long_run.py --minutes 1                                    # as many steps as a minute allows

Pre-trains through `nnUNetv2_train` on phantoms, with crops of 16 voxels, tiny networks and two loader workers, and
reads the resident memory of each process from /proc (Linux only). Then asks the training to stop, looks for processes
and for files in /dev/shm that are left, continues it, and does the same after Ctrl-C and after SIGKILL.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from gpu_trainings import DATASET, PAPER, Environment, nnunet_folders, prepare, start
from machine import describe, title

from nnunet_topomae.files import write_json
from nnunet_topomae.nnunet.plans_file import read_plans, write_plans
from nnunet_topomae.plans.variants import make_variant

STEPS, STEPS_PER_EPOCH = 2000, 20
SMALLEST = {"patch_size": [16, 16, 16], "topology.region_size": 8, "architecture.dims": [8, 8, 16, 16]}
POLL_SECONDS = 0.5
SETTLE_SECONDS = 2.0
MIB = 2**20


def memory(pid: int) -> float | None:
    """Resident memory of a process in MiB; None where it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    return None


def children(pid: int) -> list[int]:
    """Processes whose parent this is, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(stat.parent.name))
    return sorted(found)


def shared_memory() -> set[str]:
    """Names of the files in /dev/shm."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def watch(training: Any, metrics: Path, steps: int, minutes: float = 60.0) -> list[dict[str, Any]]:
    """Samples of the memory, one per epoch, until so many steps are done, the time is over or the training ends."""
    samples: list[dict[str, Any]] = []
    last = time.monotonic() + 60 * minutes
    while training.poll() is None and time.monotonic() < last and (not samples or samples[-1]["step"] < steps):
        time.sleep(POLL_SECONDS)
        done = STEPS_PER_EPOCH * len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        trainer, workers = memory(training.pid), [memory(worker) for worker in children(training.pid)]
        if done and (not samples or done > samples[-1]["step"]) and trainer is not None:
            samples.append({"step": done, "trainer": trainer, "workers": [size for size in workers if size]})
    return samples


def slope(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Growth in MiB per 1,000 steps over the second half of the samples: of the trainer, and of all workers."""
    half = samples[len(samples) // 2 :]
    steps = torch.tensor([sample["step"] for sample in half], dtype=torch.float64)
    centred = steps - steps.mean()
    sizes = {"trainer": [s["trainer"] for s in half], "workers": [sum(s["workers"]) for s in half]}
    spread = float(centred.square().sum())
    return {
        name: 1000 * float((centred * torch.tensor(values, dtype=torch.float64)).sum()) / spread if spread else 0.0
        for name, values in sizes.items()
    }


def end(training: Any, number: signal.Signals, before: set[str]) -> dict[str, Any]:
    """Stop a training with a signal; how long it took, and what is left of it."""
    workers, begun = children(training.pid), time.monotonic()
    training.send_signal(number)
    code = training.wait(120)
    seconds = time.monotonic() - begun
    time.sleep(SETTLE_SECONDS)
    left = [worker for worker in workers if memory(worker)]
    return {
        "signal": number.name,
        "exit_code": code,
        "seconds": round(seconds, 1),
        "workers": len(workers),
        "processes_left": len(left),
        "shared_memory_left": sorted(shared_memory() - before),
    }


def measure(folder: Path, steps: int, minutes: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train, watch, and stop in three ways; saves what it has found after each."""
    environment = {**nnunet_folders(folder, torch.device("cpu")), "nnUNet_n_proc_DA": "2"}
    plans = _plan(environment, steps)
    metrics = _fold(environment, plans) / "metrics.jsonl"
    before = shared_memory()
    training = _train(environment, plans, folder)
    samples = watch(training, metrics, steps, minutes)
    if len(samples) < 2:
        raise RuntimeError((folder / "train.txt").read_text()[-3000:])
    ends: list[dict[str, Any]] = []
    found = {"samples": samples, "growth": slope(samples), "ends": ends}
    save(found)
    ends.append(end(training, signal.SIGTERM, before))
    for number in (signal.SIGINT, signal.SIGKILL):
        done = STEPS_PER_EPOCH * len(metrics.read_text().splitlines())
        training = _train(environment, plans, folder, "--c")
        watch(training, metrics, done + 1)
        save(found)
        ends.append(end(training, number, before))
    save(found)
    return found


def _plan(environment: Environment, steps: int) -> str:
    prepare(environment, iterations=STEPS_PER_EPOCH, processes=1)
    folder = next(Path(environment["nnUNet_preprocessed"]).glob(f"Dataset{DATASET}_*"))
    settings: dict[str, Any] = {**SMALLEST, "pretraining.epochs": steps // STEPS_PER_EPOCH + 50}
    settings["pretraining.iterations_per_epoch"] = STEPS_PER_EPOCH
    plans = read_plans(folder / f"{PAPER}.json")
    write_plans(make_variant(plans, "TopoMAEPlans_long", ["3d_fullres"], settings), folder)
    return "TopoMAEPlans_long"


def _fold(environment: Environment, plans: str) -> Path:
    results = Path(environment["nnUNet_results"]) / f"Dataset{DATASET}_TopoMAEPhantom"
    return results / f"TopoMAEPretrainer__{plans}__3d_fullres" / "fold_0"


def _train(environment: Environment, plans: str, folder: Path, *options: str) -> "Popen[bytes]":
    argv = [
        "nnUNetv2_train",
        str(DATASET),
        "3d_fullres",
        "0",
        "-tr",
        "TopoMAEPretrainer",
        "-p",
        plans,
        "-device",
        "cpu",
    ]
    return start(environment, folder / "train.txt", *argv, *options)


def draw(found: dict[str, Any], file: Path) -> None:
    """The memory over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    steps = [sample["step"] for sample in found["samples"]]
    axes.plot(steps, [sample["trainer"] for sample in found["samples"]], label="trainer")
    axes.plot(steps, [sum(sample["workers"]) for sample in found["samples"]], label="all processes that it started")
    axes.set(xlabel="training steps", ylabel="resident memory (MiB)", ylim=(0, None))
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop earlier, after so many minutes (default: 60)")
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--picture", type=Path, help="where to draw the memory")
    args = parser.parse_args()
    if args.steps < 2 * STEPS_PER_EPOCH:
        raise SystemExit(
            f"--steps {args.steps} is too few: a sample is taken every {STEPS_PER_EPOCH} steps, use 40 or more"
        )
    if sys.platform != "linux":
        raise SystemExit("this study reads /proc, which only Linux has")
    # A shell starts what runs in the background without Ctrl-C, and the trainings would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    machine = describe(torch.device("cpu"))

    def save(found: dict[str, Any]) -> None:
        if args.out is not None:
            write_json(args.out, {"machine": machine, **found})

    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.steps, args.minutes, save)
    first, last = found["samples"][0], found["samples"][-1]
    print(title(machine))
    print(f"step {first['step']}: trainer {first['trainer']:.0f} MiB, others {sum(first['workers']):.0f} MiB")
    print(f"step {last['step']}: trainer {last['trainer']:.0f} MiB, others {sum(last['workers']):.0f} MiB")
    print(f"growth in MiB per 1,000 steps, second half: {json.dumps(found['growth'])}")
    for stopped in found["ends"]:
        print(json.dumps(stopped))
    if args.picture is not None:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
