"""`nnunet-topomae demo`: the whole pipeline on phantoms, through nnU-Net's own commands."""

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.layout import MODELS, REPORT_FILE, RESULTS_FILE, DemoFolders, DemoSettings
from nnunet_topomae.benchmark.steps import Chain, StepError, last_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `nnunet-topomae demo`."""
    parser.add_argument("--out", type=Path, default=Path("topomae-demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--cases",
        type=int,
        default=DemoSettings.cases_train,
        metavar="N",
        help=f"training phantoms, at least 5, besides {DemoSettings.cases_test} held-out ones (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code: 1 if one of nnU-Net's commands failed, 130 if the user stopped it."""
    settings = DemoSettings(cases_train=args.cases)
    # So that the running command is ended too. Given back at the end: forked children inherit the handler.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        results = run_demo(args.out, settings, pick_device(args.device))
    except StepError as error:
        print("\n".join(last_lines(error.log)))
        print(f"\nError: {error}. Run the same command again to continue from there.")
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    print_summary(results, args.out)
    return 0


def run_demo(out: Path, settings: DemoSettings, device: str) -> dict[str, Any]:
    """Run all steps that are not done yet, write `results.json` and `report.html`, and return the results.

    Args:
        out: output folder; new, empty, or of an earlier demo.
        settings: what decides the result. Other settings than the earlier demo's redo what depends on them.
        device: `cpu` or `cuda`.

    Raises:
        StepError: one of nnU-Net's commands failed.
        ValueError: ``out`` holds something else, or the settings do not fit together.
        RuntimeError: another demo works in ``out``.
    """
    from importlib.metadata import version

    from nnunet_topomae.benchmark.pipeline import build_steps
    from nnunet_topomae.benchmark.results import collect_results
    from nnunet_topomae.files import write_json
    from nnunet_topomae.reports.demo import write_report

    out = out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / "steps").is_dir():
        raise ValueError(f"{out} is not empty and holds no demo. Choose another folder with --out.")
    if settings.cases_train < 5:
        raise ValueError(f"nnU-Net's five folds need at least 5 training cases, got {settings.cases_train}")
    folders = DemoFolders(out)
    chain = Chain(out, folders.environment(), {name: version(name) for name in ("nnunet-topomae", "nnunetv2")})
    records = chain.run(build_steps(folders, settings, device))
    results = collect_results(folders, settings, device, records)
    write_json(out / RESULTS_FILE, results)
    write_report(out)
    return results


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


def print_summary(results: Mapping[str, Any], out: Path) -> None:
    """Print the table of Dice and HD95 and where the report is."""
    names = list(results["models"]["fusion"]["mean"])
    print(f"\n{'held-out phantoms':<20}{'fusion':>22}{'from scratch':>22}")
    print(f"{'':<20}" + f"{'Dice':>11}{'HD95 mm':>11}" * 2)
    rows = [(name, [results["models"][model]["mean"][name] for model in MODELS]) for name in names]
    rows.append(("mean", [results["models"][model]["foreground_mean"] for model in MODELS]))
    for name, values in rows:
        cells = "".join(f"{_number(v['dice'], 3):>11}{_number(v['hd95'], 1):>11}" for v in values)
        print(f"{name:<20}{cells}")
    missed = [results["models"][model]["foreground_mean"]["missed"] for model in MODELS]
    print(f"{'missed structures':<20}{missed[0]:>22}{missed[1]:>22}")
    seconds = sum(step["seconds"] for step in results["steps"])
    print(f"\n{seconds / 60:.1f} minutes of work in total. Report: {out / REPORT_FILE}   Numbers: {out / RESULTS_FILE}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
