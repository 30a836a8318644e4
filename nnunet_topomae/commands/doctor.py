"""The command ``nnunet-topomae doctor``."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_topomae import __version__
from nnunet_topomae.doctor.checks import PREPROCESSED, Check, all_checks

PROBE_SECONDS = 300
MARKS = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="describe a checkpoint (instead of the installation) and compare its list of images with those on disk",
    )


def run(args: argparse.Namespace) -> int:
    """Print the checks; 1 if one of them is an error."""
    if args.checkpoint is None:
        report: dict[str, Any] = {"version": __version__}
        checks = all_checks(run_probe(), os.environ)
    else:
        from nnunet_topomae.doctor.checkpoint import check_checkpoint, read_description

        described, plans = read_description(args.checkpoint)
        report = {"checkpoint": described}
        preprocessed = os.environ.get(PREPROCESSED)
        checks = check_checkpoint(described, plans, Path(preprocessed) if preprocessed else None)
    if args.json:
        print(json.dumps({**report, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        if "checkpoint" in report:
            print(format_description(report["checkpoint"]))
        print(format_checks(checks))
    return int(any(check.status == "error" for check in checks))


def run_probe() -> dict[str, Any]:
    """Ask a fresh Python process that, like nnU-Net's commands, does not import from the current folder.

    Raises:
        RuntimeError: the process crashed or hung, with the end of what it said.
    """
    command = [sys.executable, "-P", "-m", "nnunet_topomae.doctor.probe"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"importing torch and nnunetv2 takes longer than {PROBE_SECONDS} seconds") from error
    if process.returncode != 0:
        raise RuntimeError(f"importing torch and nnunetv2 crashes ({process.returncode}): {process.stderr[-500:]}")
    return json.loads(process.stdout)  # type: ignore[no-any-return]


def format_checks(checks: list[Check]) -> str:
    """A table: status, name, value, and below it what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{MARKS[check.status]}  {check.name:<{width}}  {check.value}")
        if check.advice:
            lines.append(f"{'':<{width + 11}}-> {check.advice}")
    counts = {status: sum(check.status == status for check in checks) for status in ("error", "warning")}
    lines.append(f"{counts['error']} errors, {counts['warning']} warnings")
    return "\n".join(lines)


def format_description(described: dict[str, Any]) -> str:
    """A checkpoint's own description, in a few lines."""
    manifest = described["manifest"]
    versions = ", ".join(f"{name} {found}" for name, found in described["versions"].items())
    return "\n".join(
        [
            f"{described['role']} with nnunet-topomae {described['version']} ({versions})",
            f"data set {manifest['dataset']}, plans {manifest['plans_name']}, configuration "
            f"{manifest['configuration']}, fold {manifest['fold']}, {len(manifest['cases'])} cases recorded",
            json.dumps(described["config"]),
        ]
    )
