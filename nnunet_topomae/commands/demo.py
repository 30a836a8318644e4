"""`nnunet-topomae demo`: a benchmark of two recipes on phantoms, small enough for a CPU."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_topomae.benchmark.jobs import Job
    from nnunet_topomae.benchmark.results import Results
    from nnunet_topomae.benchmark.spec import BenchmarkSpec

DATASET_ID = 777
FILE = "demo.toml"
CASES, HELD_OUT_CASES, SEED = 10, 3, 0

# Learning rates are above the defaults, as suits a schedule of a few hundred steps.
BENCHMARK = """# The benchmark behind `nnunet-topomae demo`. To run, watch and report it without that command:
#   nnunet-topomae benchmark run -b {file}      (also status, report)
title = "Self pre-training on phantoms"
description = '''A ViT and UNETR++ learned to rebuild masked CT-like phantoms, were joined and fine-tuned, and are
compared with UNETR++ trained from scratch for the same number of supervised steps. A short schedule on synthetic data
shows that the pipeline works. It is no evidence for or against pre-training.'''
raw = "nnUNet_raw"
out = "."
datasets = [{dataset}]
recipes = ["full", "unetrpp"]
baseline = "unetrpp"
folds = [0]
seeds = [{seed}]
held_out = true              # score the phantoms in imagesTs, which no training reads
embed_images = true          # phantoms are nobody's images
device = "{device}"

[recipe.full]
base = "full"
title = "fusion"

[recipe.unetrpp]
base = "unetrpp"
title = "from scratch"

[settings]
patch_size = [24, 32, 32]
batch_size = 2

[settings.architecture]      # narrower than the defaults, to suit a CPU
vit = "tiny"
dims = [16, 32, 64, 128]
depth = 1
drop_path = 0.0

[settings.pretraining]
epochs = 4
iterations_per_epoch = 34
validation_iterations = 2
learning_rate = 1e-3
warmup_steps = 20

[settings.topology]
region = "crop"
region_size = 24
warmup_epochs = 1
threads = 1

[settings.finetuning]
epochs = 5
iterations_per_epoch = 48
validation_iterations = 2
learning_rate = 3e-3
pretrained_learning_rate = 3e-3
warmup_steps = 20
mirror_axes = []             # prediction without mirroring takes an eighth of the time

[environment]                # of nnU-Net's commands
nnUNet_def_n_proc = "{workers}"      # few workers: each costs 400 MB and seconds to start
nnUNet_n_proc_DA = "{workers}"
nnUNet_compile = "f"         # compiling takes longer than this training
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `nnunet-topomae demo`."""
    parser.add_argument("--out", type=Path, default=Path("topomae-demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--cases",
        type=int,
        default=CASES,
        metavar="N",
        help=f"training phantoms, at least 5, in addition to {HELD_OUT_CASES} held-out ones (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0, 1 if a job failed, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ValueError: the folder holds something else, or a demo of another number of cases; or too few cases.
        RuntimeError: another demo works in the folder.
    """
    from nnunet_topomae.benchmark.scheduler import exit_code
    from nnunet_topomae.benchmark.store import lock

    out: Path = args.out.absolute()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file. Choose a folder with --out.")
    if out.exists() and any(out.iterdir()) and not (out / FILE).is_file():
        raise ValueError(f"{out} is not empty and holds no demo. Choose another folder with --out.")
    if args.cases < 5:
        raise ValueError(f"nnU-Net's five folds need at least 5 training cases, got {args.cases}")
    device = pick_device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with lock(out / ".lock"):
            return run_demo(out, args.cases, device)
    except KeyboardInterrupt as stop:
        print("\nStopped. Run the same command again to continue.")
        return exit_code(stop)


def run_demo(out: Path, cases: int, device: str) -> int:
    """Make what is missing, run what is not done, and report; returns the exit code.

    A `demo.toml` that exists is run as it is.

    Args:
        out: folder of the demo; it must exist.
        cases: number of phantoms to train on, at least 5.
        device: `cpu` or `cuda`.
    """
    from nnunet_topomae.benchmark.gpus import choose_gpus
    from nnunet_topomae.benchmark.jobs import make_jobs
    from nnunet_topomae.benchmark.scheduler import LocalScheduler
    from nnunet_topomae.benchmark.spec import read_spec
    from nnunet_topomae.datasets.phantom import write_phantom_dataset

    file = write_benchmark(out, device)
    write_phantom_dataset(out / "nnUNet_raw", DATASET_ID, cases, HELD_OUT_CASES, SEED)
    spec = read_spec(file)
    jobs = make_jobs(spec)
    outcome = LocalScheduler(spec, file, choose_gpus(None, slots(device), device, os.environ)).run(jobs)
    if outcome.failed or outcome.interrupted:
        unfinished = [*outcome.failed, *outcome.interrupted]
        print_failure(next(job for job in jobs if job.name in unfinished), spec)
        return 1
    from nnunet_topomae.reports.benchmark import write_benchmark_report

    results, written = write_benchmark_report(spec, jobs, spec.out / "report", images=spec.embed_images)
    print_summary(results)
    print(f"\n{results.seconds / 60:.1f} minutes of work in total. Report: {written[0]}")
    return 0


def slots(device: str) -> int:
    """Number of jobs at a time: the scratch model can train while the other one is pre-trained, on a core of its own.

    Args:
        device: `cpu` or `cuda`.
    """
    return 2 if device == "cpu" and (os.cpu_count() or 1) > 1 else 1


def write_benchmark(out: Path, device: str) -> Path:
    """Write `demo.toml` where there is none.

    Args:
        out: the demo's folder.
        device: `cpu` or `cuda`.

    Raises:
        ValueError: there is one, for another device.
    """
    from nnunet_topomae.benchmark.spec import read_spec
    from nnunet_topomae.files import write_text

    file = out / FILE
    if not file.is_file():
        workers = max(1, min(4, (os.cpu_count() or 1) // 4))
        text = BENCHMARK.format(file=FILE, dataset=DATASET_ID, seed=SEED, device=device, workers=workers)
        write_text(file, text)
    elif (found := read_spec(file).device) != device:
        raise ValueError(
            f"{file} was made for the device {found}, this run would take {device}. Choose another folder with --out, "
            f"or --device {found}."
        )
    return file


def pick_device(choice: str) -> str:
    """Resolve `auto`.

    Raises:
        RuntimeError: `cuda` was asked for and is absent.
    """
    if choice == "cpu":
        return choice
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if choice == "cuda":
        raise RuntimeError("torch sees no CUDA device. Take --device cpu, or run `nnunet-topomae doctor`.")
    return "cpu"


def print_failure(job: "Job", spec: "BenchmarkSpec") -> None:
    """Print the end of a job's log, why it failed and how to go on.

    Args:
        job: one that failed or was interrupted.
        spec: the benchmark that the demo runs.
    """
    from nnunet_topomae.benchmark.store import JobFolder
    from nnunet_topomae.nnunet.process import last_lines

    folder = JobFolder.of(job, spec)
    print("\n".join(last_lines(folder.log)))
    error = folder.error() or f"job {job.name} was interrupted; see {folder.log}"
    print(f"\nError: {error}. Run the same command again to continue from there.")


def print_summary(results: "Results") -> None:
    """Print Dice and HD95 of every structure and recipe."""
    from nnunet_topomae.reports.page import format_number

    (table,) = results.tables
    print(f"\n{'held-out phantoms':<20}" + "".join(f"{results.titles[name]:>22}" for name in table.rows))
    print(f"{'':<20}" + f"{'Dice':>11}{'HD95 mm':>11}" * len(table.rows))
    of_rows = [{**row.structures, "mean": row.mean} for row in table.rows.values()]
    for name in of_rows[0]:
        cells = [f"{format_number(row[name][m], n):>11}" for row in of_rows for m, n in (("dice", 3), ("hd95", 1))]
        print(f"{name:<20}{''.join(cells)}")
    print(f"{'missed structures':<20}" + "".join(f"{row.mean['missed']:>22.0f}" for row in table.rows.values()))
