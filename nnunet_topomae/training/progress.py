"""The record of a training, one JSON line an epoch, and its plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import distributed

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "progress.png"


def average_terms(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every term over the steps that have it; terms may be absent from some steps."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}


def average_terms_of_all_gpus(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the averages of all processes of a distributed training; each calls this with its own steps."""
    gathered: list[dict[str, float]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, average_terms(steps))
    return average_terms(gathered)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """All records of a fold's ``metrics.jsonl``, oldest first; a last line cut off by a crash is left out."""
    path = folder / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_epoch(folder: Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add the record of an epoch, replacing what a continued training repeats, and return all records."""
    kept = [old for old in read_epochs(folder) if old["epoch"] < record["epoch"]]
    records = [*kept, dict(record)]
    path = folder / METRICS_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(item) + "\n" for item in records))
    temporary.replace(path)
    return records


def plot_terms(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every term over the epochs, training and validation, one panel a term, to a PNG."""
    names = list(dict.fromkeys(name for r in records for part in ("train", "validation") for name in r[part]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for name, panel in zip(names, panels, strict=False):
        for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            points = [(r["epoch"], r[part][name]) for r in records if name in r[part]]
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, label=part, marker="." if len(points) < 30 else "")
        panel.set(title=name, xlabel="epoch")
        panel.grid(alpha=0.3)
    for panel in list(panels):
        panel.set_visible(False)
    figure.axes[0].legend()
    figure.savefig(path, dpi=90)


def log_gpu_memory(trainer: Any) -> None:
    """Write torch's largest allocation to a trainer's log; nothing on the CPU."""
    if trainer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(trainer.device)
        trainer.print_to_log_file(f"peak GPU memory {peak / 1e9:.2f} GB")
