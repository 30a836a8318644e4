"""What a training tells while it runs: lines per epoch, and a bar in a terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from nnunet_topomae.training.record import duration

# The pace of this many epochs tells how long the others take.
PACE_EPOCHS = 10


def describe_progress(records: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """How far a training is, how long its last epoch took, and how long the others will.

    Args:
        records: one per finished epoch, oldest first, with its ``seconds``.
        epochs: of the whole training.
    """
    done, last = records[-1]["epoch"] + 1, records[-1]["seconds"]
    pace = [record["seconds"] for record in records[-PACE_EPOCHS:]]
    left = (epochs - done) * sum(pace) / len(pace)
    text = f"{done} of {epochs} epochs done, this one in {last:.1f} s"
    return text if done >= epochs else f"{text}, about {duration(left)} left"


def describe_terms(terms: Mapping[str, Mapping[str, float]]) -> str:
    """All loss terms of an epoch in a line, the total first, those of monitoring in brackets.

    Args:
        terms: averages of the steps of ``train`` and ``validation`` by name.
    """
    train, monitoring = terms.get("train", {}), terms.get("validation", {})
    parts = []
    for name in sorted(dict.fromkeys([*train, *monitoring]), key=lambda name: name != "total"):
        value = f"{train[name]:.4f}" if name in train else "-"
        parts.append(f"{name} {value}" + (f" ({monitoring[name]:.4f})" if name in monitoring else ""))
    return f"loss terms (on the fixed crops of monitoring): {', '.join(parts)}"


def epoch_bar(steps: int, epoch: int, first_process: bool) -> Any:
    """A bar over the steps of an epoch; None unless standard error is a terminal.

    Args:
        steps: of the epoch.
        epoch: its number, counted from 0.
        first_process: of a training on several GPUs, only one draws.
    """
    if not first_process or not sys.stderr.isatty():
        return None
    return tqdm(total=steps, desc=f"epoch {epoch + 1}", unit="step", leave=False)


def advance(bar: Any) -> None:
    """Move a bar on by one step; the last step closes it.

    Args:
        bar: of :func:`epoch_bar`.
    """
    if bar is not None:
        bar.update()
        if bar.n == bar.total:
            bar.close()
