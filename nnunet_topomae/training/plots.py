"""Plots of a training's record. None of them touches matplotlib's global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PLOT_FILE = "progress.png"


def plot_terms(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every term over the epochs, training and monitoring, one panel per term, to a PNG.

    Args:
        records: one per epoch: its number ``epoch``, and the terms of ``train`` and ``validation`` by name.
        path: the PNG file.
    """
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
                label = "monitoring" if part == "validation" else part
                (line,) = panel.plot(*zip(*points, strict=True), color=colour, label=label)
                line.set(linestyle="-" if part == "train" else "--", marker="." if len(points) < 30 else "")
        panel.set(title=name, xlabel="epoch")
        panel.grid(alpha=0.3)
    for panel in list(panels):
        panel.set_visible(False)
    figure.axes[0].legend()
    figure.savefig(path, dpi=90)
