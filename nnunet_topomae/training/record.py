"""The record of a training: one JSON line per epoch, and its facts. Standard library only: `status` must be quick."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_json, write_json, write_text

METRICS_FILE = "metrics.jsonl"
FACTS_FILE = "training.json"


def average_terms(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every term over the steps that have it; terms may be absent from some steps, or not finite."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: _mean([step[name] for step in steps if name in step]) for name in names}


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
    """Add the record of an epoch, replacing what a continued training repeats, and return all records.

    Args:
        folder: the fold's; the record goes to its ``metrics.jsonl``.
        record: JSON values with the number ``epoch``; older records of this epoch and of later ones are dropped.
    """
    kept = [old for old in read_epochs(folder) if old["epoch"] < record["epoch"]]
    records = [*kept, dict(record)]
    write_text(folder / METRICS_FILE, "".join(json.dumps(item) + "\n" for item in records))
    return records


def read_facts(folder: Path) -> dict[str, Any]:
    """What a training says about itself in a fold's ``training.json``; empty where there is none.

    Keys, each absent where it is not known: ``parameters`` of the network, ``macs`` (multiply-accumulate operations of
    a forward pass of one crop), ``steps`` and ``crops_per_step`` of the whole training, ``peak_gpu_bytes`` (the largest
    allocation of torch), ``ended_early`` with the ``epochs`` that were done and the ``reason``.
    """
    file = folder / FACTS_FILE
    return dict(read_json(file)) if file.is_file() else {}


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to a fold's ``training.json``, replacing older values of the same keys.

    Args:
        folder: the fold's.
        facts: JSON values; :func:`read_facts` lists the keys.
    """
    write_json(folder / FACTS_FILE, {**read_facts(folder), **facts})


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _mean(values: Sequence[float]) -> float:
    """Mean of the finite values, as steps with others are skipped; NaN if there is none."""
    finite = [value for value in values if isfinite(value)]
    return float(sum(finite)) / len(finite) if finite else nan
