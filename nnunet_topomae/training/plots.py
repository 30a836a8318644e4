"""Plots of a training's record. None of them touches matplotlib's global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_topomae.files import write_whole

PLOT_FILE = "progress.png"

# Points (epoch, value) by name.
Series = dict[str, list[tuple[int, float]]]


def plot_terms(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every term over the epochs, training and monitoring, one panel per term, to a PNG.

    Further panels show what was measured every few epochs.

    Args:
        records: one per epoch: its number ``epoch``, the terms of ``train`` and ``validation`` by name, and in some
            epochs ``gradient_shares`` by encoder and term, and ``probe`` with the Dice of every encoder.
        path: the PNG file.
    """
    names = list(dict.fromkeys(name for r in records for part in ("train", "validation") for name in r[part]))
    extra = measured_series(records)
    columns = min(3, len(names))
    rows = -(-(len(names) + len(extra)) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        for part, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            points = [(r["epoch"], r[part][name]) for r in records if name in r[part]]
            if points:
                label = "monitoring" if part == "validation" else part
                (line,) = panel.plot(*zip(*points, strict=True), color=colour, label=label)
                line.set(linestyle="-" if part == "train" else "--", marker="." if len(points) < 30 else "")
        _label(panel, name)
    for (title, series), panel in zip(extra.items(), panels[len(names) :], strict=False):
        _plot_series(panel, title, series)
    for panel in panels[len(names) + len(extra) :]:
        panel.set_visible(False)
    figure.axes[0].legend()
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=90)


def measured_series(records: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """What was measured every few epochs, by title of its panel.

    Args:
        records: one per epoch, see :func:`plot_terms`.
    """
    found: dict[str, Series] = {}
    for record in records:
        for encoder, shares in record.get("gradient_shares", {}).items():
            panel = found.setdefault(f"share of the gradient, {encoder}", {})
            for term, share in shares.items():
                panel.setdefault(term, []).append((record["epoch"], share))
        for encoder, dice in record.get("probe", {}).items():
            if encoder != "seconds":
                found.setdefault("probe, mean Dice", {}).setdefault(encoder, []).append((record["epoch"], dice))
    return found


def _plot_series(panel: Axes, title: str, series: Series) -> None:
    """Lines with markers that tell them apart, and a legend; values are between 0 and 1."""
    for (name, points), marker in zip(series.items(), "osD^vPX*" * len(series), strict=False):
        panel.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=4)
    _label(panel, title)
    panel.set_ylim(0, 1)
    panel.legend(fontsize="x-small")


def _label(panel: Axes, title: str) -> None:
    """A title, whole epochs below, and a grid."""
    panel.set(title=title, xlabel="epoch")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.grid(alpha=0.3)
