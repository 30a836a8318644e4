"""Everything that only a GPU can show, in one command of at most nine minutes.

    studies/gpu_evidence.sh                        # on the first GPU; without one on the CPU, at the smallest sizes
    studies/gpu_evidence.sh --out folder           # default: $OUT, else the current folder
    studies/gpu_evidence.sh --parts memory idle    # some parts only

Parts: step time against the published UNETR++; step time by policy of L_topo; share of a step in which the GPU is idle;
the planner's memory estimate against measured peaks; step time with both networks compiled; one epoch of every trainer
with mixed precision and compilation; a five-fold benchmark on phantoms.

`gpu_evidence.json` is written again after every part. A part that fails or runs out of time is recorded with its error
and what it has found so far, and the next one starts. nnU-Net's data lie in a temporary folder. Timed parts run alone,
the last two together.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, run_part
from machine import REPOSITORY, describe, title

from nnunet_topomae.files import write_json

# The rest of the nine minutes is for starting and for ending what runs.
TOTAL_SECONDS = 520.0
# A busy CPU may take its time; nobody pays for it.
CPU_PATIENCE = 5.0
# Parts of one row run at a time. Limits in seconds, together more than there are: what matters most comes first.
ROWS: tuple[dict[str, float], ...] = (
    {"trainers": 260.0, "benchmark": 260.0},
    {"step_time": 100.0},
    {"topology_step": 80.0},
    {"idle": 60.0},
    {"memory": 80.0},
    {"compiled_step_time": 100.0},
)
GRACE_SECONDS = 5.0


class Child:
    """A part in a process of its own."""

    def __init__(self, name: str, device: str, folder: Path) -> None:
        self.name, self.started = name, time.monotonic()
        self.folder = folder / name
        self.folder.mkdir()
        self.result, self.log = self.folder / "part.json", self.folder / "part.txt"
        argv = [sys.executable, __file__, "--run", name, "--device", device, "--out", str(self.folder)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> dict[str, Any]:
        """End the process, and return the record of the part."""
        seconds = time.monotonic() - self.started
        code, error = self.process.poll(), None
        self.end()
        if code is None:
            error = f"out of time after {seconds:.0f} s\n{self.log.read_text()[-2000:]}"
        elif code:
            error = self.log.read_text()[-4000:]
        found = json.loads(self.result.read_text()) if self.result.is_file() else {}
        return {"ok": error is None, "seconds": seconds, "error": error, "result": found}

    def end(self) -> None:
        """End the process and what it has started."""
        for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 1.0)):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)


def without_paths(value: Any, temporary: Path) -> Any:
    """The value with the folders of this machine replaced by words."""
    places = {
        str(temporary): "TEMPORARY",
        str(REPOSITORY): "REPOSITORY",
        sys.prefix: "PYTHON",
        str(Path.home()): "HOME",
    }
    if isinstance(value, dict):
        return {key: without_paths(item, temporary) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, temporary) for item in value]
    if isinstance(value, str):
        for place, word in places.items():
            value = value.replace(place, word) if len(place) > 1 else value
    return value


def run_all(device: str, parts: Sequence[str], out: Path) -> dict[str, Any]:
    """Run the parts and write the evidence after each."""
    begun, patience = time.monotonic(), 1.0 if device == "cuda" else CPU_PATIENCE
    evidence: dict[str, Any] = {"machine": describe(torch.device(device)), "seconds": 0.0, "parts": {}}
    end = begun + patience * TOTAL_SECONDS
    with tempfile.TemporaryDirectory(prefix="gpu_evidence.", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for row in ROWS:
            chosen = {part: patience * limit for part, limit in row.items() if part in parts}
            for part, found in run_row(chosen, device, folder, end):
                evidence["parts"][part] = without_paths(found, folder)
                evidence["seconds"] = time.monotonic() - begun
                write_json(out / "gpu_evidence.json", evidence)
                say(part, evidence["parts"][part])
    return evidence


def run_row(limits: dict[str, float], device: str, folder: Path, end: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run parts at a time; yields each when it is done or out of time."""
    if time.monotonic() > end:
        yield from ((part, {"ok": False, "seconds": 0.0, "error": "no time was left", "result": {}}) for part in limits)
        return
    children = [Child(part, device, folder) for part in limits]
    while children:
        for child in list(children):
            late = time.monotonic() > min(child.started + limits[child.name], end)
            if late or child.process.poll() is not None:
                children.remove(child)
                yield child.name, child.finish()
        time.sleep(0.1)


def say(name: str, part: dict[str, Any]) -> None:
    """One line about a part, and the end of its error."""
    state = "ok" if part["ok"] else "FAILED"
    sys.stdout.write(f"{name:<20}{state:<8}{part['seconds']:6.0f} s\n")
    if part["error"]:
        sys.stdout.write("\n".join(part["error"].splitlines()[-5:]) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    if args.run:
        run_part(args.run, torch.device(device), args.out, args.out / "part.json")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    evidence = run_all(device, args.parts, args.out)
    sys.stdout.write(f"{title(evidence['machine'])}: {evidence['seconds']:.0f} s\n")
    return 0 if all(part["ok"] for part in evidence["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
