"""The record of a training: one JSON line per epoch, and its facts. Standard library only: `status` must be quick."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_table, write_json, write_text

METRICS_FILE = "metrics.jsonl"
FACTS_FILE = "training.json"


def average_terms(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every term over the steps that have it; terms may be absent from some steps, or not finite."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: _mean([step[name] for step in steps if name in step]) for name in names}


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """All records of a fold's ``metrics.jsonl``, oldest first; a last line cut off by a crash is left out.

    Raises:
        ValueError: another line is damaged; says which one.
    """
    path = folder / METRICS_FILE
    lines = _lines(path)
    records = [_record(line) for line in lines]
    if records and records[-1] is None:
        records.pop()
    if None in records:
        raise ValueError(
            f"{path}: line {records.index(None) + 1} of {len(lines)} is no record of an epoch. Restore or delete it."
        )
    return [record for record in records if record is not None]


def write_epoch(folder: Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add the record of an epoch, replacing what a continued training repeats, and return all records.

    Args:
        folder: the fold's; the record goes to its ``metrics.jsonl``.
        record: JSON values with the number ``epoch``; older records of this epoch and of later ones are dropped, and
            so are damaged lines: a training does not end because of one.
    """
    found = [old for line in _lines(folder / METRICS_FILE) if (old := _record(line)) is not None]
    kept = [old for old in found if old["epoch"] < record["epoch"]]
    records = [*kept, dict(record)]
    write_text(folder / METRICS_FILE, "".join(json.dumps(item) + "\n" for item in records))
    return records


def read_facts(folder: Path) -> dict[str, Any]:
    """What a training says about itself in a fold's ``training.json``; empty where there is none.

    Keys, each absent where it is not known: ``parameters`` of the network, ``macs`` (multiply-accumulate operations of
    a forward pass of one crop), ``steps`` and ``crops_per_step`` of the whole training, ``peak_gpu_bytes`` (the largest
    allocation of torch), ``ended_early`` with the ``epochs`` that were done and the ``reason``.
    """
    return read_table(folder / FACTS_FILE)


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


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _record(line: str) -> dict[str, Any] | None:
    """The record of an epoch in a line; None where it is damaged."""
    try:
        read = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = isinstance(read, dict) and isinstance(read.get("epoch"), int)
    return read if whole and all(isinstance(read.get(part, {}), dict) for part in ("train", "validation")) else None


def _mean(values: Sequence[float]) -> float:
    """Mean of the finite values, as steps with others are skipped; NaN if there is none."""
    finite = [value for value in values if isfinite(value)]
    return float(sum(finite)) / len(finite) if finite else nan
