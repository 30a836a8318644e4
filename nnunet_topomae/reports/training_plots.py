"""Figures of how networks were trained. None of them touches matplotlib's global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from nnunet_topomae.reports.plots import looks, new_figure, style_axis
from nnunet_topomae.training.plots import measured_series

COLOURS = {"vit": "#a80000", "partner": "#009d8a", "input": "#31367b"}
NAMES = {"vit": "ViT", "partner": "partner", "input": "input"}
TERM_TITLES = {
    "total": "total",
    "mse_vit": "MSE, ViT",
    "mse_partner": "MSE, partner",
    "topo_vit": "topology, ViT",
    "topo_partner": "topology, partner",
    "spa_vit": "key points, ViT",
    "spa_partner": "key points, partner",
    "spa_consis": "key-point consistency",
    "vec_vit": "vectors, ViT",
    "vec_partner": "vectors, partner",
    "vec_consis": "vector consistency",
    "clean_vit": "clean crop, ViT",
    "clean_partner": "clean crop, partner",
    "edge_vit": "boundaries, ViT",
    "edge_partner": "boundaries, partner",
    "rec_consis": "reconstruction consistency",
}

Records = Sequence[Mapping[str, Any]]


def loss_curves(records: Records) -> Figure:
    """One panel for every term of the pre-training loss over the epochs.

    Args:
        records: one per epoch with `epoch` and the terms of `train` and `validation`, as in ``metrics.jsonl``.
    """
    found = dict.fromkeys(name for record in records for name in (*record["train"], *record["validation"]))
    terms = [name for name in TERM_TITLES if name in found]
    terms += [name for name in found if name not in TERM_TITLES]
    columns = 3
    rows = -(-len(terms) // columns)
    figure = new_figure(10.0, 2.15 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, term in zip(panels, terms, strict=False):
        for part, style, label in (("train", "-", "training"), ("validation", "--", "monitoring")):
            _plot_epochs(axis, records, part, term, COLOURS["input"], style, label)
        axis.set_title(TERM_TITLES.get(term, term), fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
    for axis in panels[len(terms) :]:
        axis.set_visible(False)
    for axis in panels[max(0, len(terms) - columns) : len(terms)]:
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelbottom=True)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def training_curves(models: Mapping[str, Records]) -> Figure:
    """Loss and pseudo Dice of supervised trainings, one colour and marker per model.

    Args:
        models: records of the epochs by title.
    """
    figure = new_figure(10.0, 2.9)
    loss, dice = figure.subplots(1, 2)
    for model, (colour, marker, _) in looks(models).items():
        records = models[model]
        _plot_epochs(loss, records, "train", "loss", colour, "-", f"{model}, train", marker)
        _plot_epochs(loss, records, "validation", "loss", colour, "--", f"{model}, validation", marker)
        _plot_epochs(dice, records, "validation", "pseudo_dice", colour, "-", model, marker)
    loss.set_title("loss", fontsize=9, loc="left")
    dice.set_title("Dice on validation patches", fontsize=9, loc="left")
    dice.set_ylim(0, 1)
    for axis in (loss, dice):
        axis.set_xlabel("epoch", fontsize=8)
        axis.legend(fontsize=8, frameon=False)
    return figure


def measured_curves(records: Records) -> Figure | None:
    """What pre-training measures every few epochs: shares of the gradient, and the probe; None without any.

    Args:
        records: one per epoch, as in ``metrics.jsonl``.
    """
    panels = measured_series(records)
    if not panels:
        return None
    figure = new_figure(10.0, 2.9)
    for axis, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (colour, marker, line) in looks(series).items():
            epochs, values = zip(*series[name], strict=True)
            drawn = [epoch + 1 for epoch in epochs]
            label = TERM_TITLES.get(name, NAMES.get(name, name))
            axis.plot(drawn, values, line, color=colour, marker=marker, markersize=4, lw=1.4, label=label)
        axis.set_title(title.replace("vit", NAMES["vit"]), fontsize=9, loc="left")
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylim(0, 1)
        style_axis(axis)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.legend(fontsize=7.5, frameon=False)
    return figure


def persistence_figure(diagrams: Mapping[str, Sequence[ndarray]]) -> Figure:
    """Persistence diagrams of one input and its reconstructions.

    Args:
        diagrams: for `input`, `vit` and `partner` the points (birth, death) of dimensions 0, 1, 2, each (n, 2).
    """
    titles = ("components (dimension 0)", "loops (dimension 1)", "voids (dimension 2)")
    figure = new_figure(10.0, 3.5)
    panels = figure.subplots(1, len(titles))
    markers = {"input": ("o", 14), "vit": ("^", 9), "partner": ("s", 7)}
    for dimension, (axis, title) in enumerate(zip(panels, titles, strict=True)):
        points = [by_dimension[dimension] for by_dimension in diagrams.values()]
        everything = np.concatenate([p.ravel() for p in points])
        low, high = (everything.min(), everything.max()) if everything.size else (0.0, 1.0)
        axis.plot([low, high], [low, high], color="#94a3b8", lw=0.8, zorder=0)
        for name, births_deaths in zip(diagrams, points, strict=True):
            marker, size = markers[name]
            label = f"{NAMES[name]} ({len(births_deaths)})"
            births, deaths = births_deaths[:, 0], births_deaths[:, 1]
            axis.scatter(
                births,
                deaths,
                s=size,
                marker=marker,
                alpha=0.45,
                lw=0,
                color=COLOURS[name],
                label=label,
                rasterized=True,
            )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("birth", fontsize=8)
        style_axis(axis)
        axis.set_aspect("equal", adjustable="datalim")
        axis.legend(fontsize=7.5, frameon=False, loc="upper left")
    panels[0].set_ylabel("death", fontsize=8)
    return figure


def _plot_epochs(
    axis: Axes, records: Records, part: str, term: str, colour: str, style: str, label: str, marker: str = ""
) -> None:
    """Draw a term; a marker at ten epochs at most tells models apart, a single epoch always has one."""
    points = [(r["epoch"] + 1, r[part][term]) for r in records if r[part].get(term) is not None]
    if points:
        marker = (marker or "o") if len(points) == 1 else marker
        (line,) = axis.plot(*zip(*points, strict=True), style, color=colour, lw=1.4, label=label)
        line.set(marker=marker, markersize=4, markevery=-(-len(points) // 10))
    style_axis(axis)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
