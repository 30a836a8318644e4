"""Pictures of a benchmark's report. None of them touches matplotlib's global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_topomae.reports.plots import new_figure, style_axis

PALETTE = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#be185d")
INK, GREY = "#334155", "#94a3b8"


def colours(recipes: Sequence[str]) -> dict[str, str]:
    """A colour for every recipe."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(recipes)}


def difference_figure(comparisons: Mapping[str, Mapping[str, Any]], metric: str, baseline: str) -> Figure:
    """Differences to the baseline with their 95 % intervals.

    Args:
        comparisons: comparison of every recipe with the baseline.
        metric: its name, for the axis.
        baseline: title of the baseline.
    """
    figure = new_figure(6.0, max(2.2, 1.2 + 0.45 * len(comparisons)))
    axis = figure.subplots()
    axis.axvline(0.0, color=GREY, lw=1)
    titles = list(comparisons)[::-1]
    for place, found in enumerate(comparisons[title] for title in titles):
        colour = INK if found["shown"] else GREY
        axis.plot([found["low"], found["high"]], [place, place], color=colour, lw=2.5, solid_capstyle="round")
        axis.plot([found["difference"]], [place], "o", color=colour, ms=6)
    axis.set_yticks(range(len(comparisons)), titles, fontsize=9)
    axis.set_ylim(-0.6, len(comparisons) - 0.4)
    axis.set_xlabel(f"difference of {metric} to {baseline}, 95 % interval", fontsize=9)
    style_axis(axis)
    axis.grid(axis="y", visible=False)
    return figure


def structure_figure(
    rows: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], metric: str, label: str
) -> Figure:
    """Mean of a metric for every structure and recipe.

    Args:
        rows: summaries by recipe.
        titles: titles of recipes.
        metric: name in the summaries.
        label: of the axis.
    """
    structures = list(next(iter(rows.values()))["structures"])
    figure = new_figure(4.5 + 0.9 * len(structures), max(3.0, 0.4 + 0.25 * len(rows)))
    axis = figure.subplots()
    width = 0.8 / len(rows)
    palette = colours(list(rows))
    for index, (name, row) in enumerate(rows.items()):
        values = [row["structures"][structure][metric] for structure in structures]
        heights = [np.nan if value is None else value for value in values]
        places = np.arange(len(structures)) - 0.4 + (index + 0.5) * width
        axis.bar(places, heights, width * 0.92, color=palette[name], label=titles[name])
    axis.set_xticks(range(len(structures)), structures, rotation=0 if len(structures) < 7 else 30)
    axis.set_ylabel(label, fontsize=9)
    style_axis(axis)
    axis.grid(axis="x", visible=False)
    # Beside the bars: titles may be longer than the structures are many.
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    return figure


def case_figure(values: Mapping[str, Sequence[Sequence[float]]], titles: Mapping[str, str], label: str) -> Figure:
    """Every case's mean over seeds, for every recipe, joined from recipe to recipe.

    Args:
        values: table (cases, seeds) of every recipe.
        titles: titles of recipes.
        label: of the axis.
    """
    figure = new_figure(max(5.0, 1.6 * len(values)), 3.6)
    axis = figure.subplots()
    means = np.array([np.mean(table, axis=1) for table in values.values()])
    axis.plot(means, color=GREY, lw=0.6, alpha=0.5)
    for place, (name, colour) in enumerate(colours(list(values)).items()):
        table = np.asarray(values[name])
        axis.scatter(np.full(len(table), place), table.mean(axis=1), s=16, color=colour, alpha=0.7, lw=0, zorder=3)
        axis.hlines(table.mean(), place - 0.22, place + 0.22, color=colour, lw=3, zorder=4)
    axis.set_xticks(range(len(values)), [titles[name].replace(", ", ",\n") for name in values], fontsize=8)
    axis.set_ylabel(label, fontsize=9)
    style_axis(axis)
    axis.grid(axis="x", visible=False)
    return figure


def fraction_figure(curves: Mapping[str, Mapping[float, tuple[float, float]]], titles: Mapping[str, str]) -> Figure:
    """Mean Dice against the share of labels.

    Args:
        curves: mean and standard deviation over seeds by share, for every recipe.
        titles: titles of recipes.
    """
    figure = new_figure(6.5, 3.8)
    axis = figure.subplots()
    for name, colour in colours(list(curves)).items():
        shares = sorted(curves[name])
        means, spreads = (np.array([curves[name][share][part] for share in shares]) for part in (0, 1))
        percent = [100 * share for share in shares]
        axis.plot(percent, means, "o-", color=colour, lw=1.6, ms=4, label=titles[name])
        axis.fill_between(percent, means - spreads, means + spreads, color=colour, alpha=0.15, lw=0)
    axis.set_xlabel("labelled training cases in %", fontsize=9)
    axis.set_ylabel("mean Dice", fontsize=9)
    style_axis(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure
