"""Pictures of a benchmark's report. None of them touches matplotlib's global state."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_topomae.benchmark.results import Row
from nnunet_topomae.evaluation.statistics import Comparison
from nnunet_topomae.reports.plots import looks, new_figure, style_axis

INK, GREY = "#334155", "#94a3b8"
# Columns of dots, one for every structure and recipe, that two panels next to each other have room for.
SIDE_BY_SIDE = 16
# Metrics of which every case is drawn.
PANELS = {"dice": "Dice", "hd95": "HD95 in mm", "betti_error": "Betti error"}
# Letters of 9 points that have room beside the differences, and below them.
TITLE, LABEL = 32, 80


def difference_figure(comparisons: Mapping[str, Comparison], metric: str, baseline: str) -> Figure:
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
        colour = INK if found.shown else GREY
        if np.isnan(found.low):  # not known: one training each
            axis.plot([found.difference], [place], "o", mfc="none", color=GREY, ms=6)
            continue
        axis.plot([found.low, found.high], [place, place], color=colour, lw=2.5, solid_capstyle="round")
        axis.plot([found.difference], [place], "o", color=colour, mfc=colour if found.shown else "white", ms=6)
    axis.set_yticks(range(len(comparisons)), [fill(title, TITLE) for title in titles], fontsize=9)
    axis.set_ylim(-0.6, len(comparisons) - 0.4)
    figure.supxlabel(fill(f"difference of {metric} to {baseline}, 95 % interval", LABEL), fontsize=9)
    style_axis(axis)
    axis.grid(axis="y", visible=False)
    return figure


def structure_figure(rows: Mapping[str, Row], titles: Mapping[str, str]) -> Figure:
    """Dice, HD95 and, where it was computed, Betti error of every case and structure as dots, the mean as a bar.

    Args:
        rows: of the recipes.
        titles: titles of recipes.
    """
    structures = list(next(iter(rows.values())).structures)
    drawn = len(structures) * len(rows)
    wide = drawn > SIDE_BY_SIDE
    computed = next(iter(rows.values())).mean
    metrics = {metric: label for metric, label in PANELS.items() if not np.isnan(computed.get(metric, np.nan))}
    count = len(metrics)
    if wide:
        figure = new_figure(max(10.0, min(18.0, 2.0 + 0.22 * drawn)), 3.2 * count)
    else:
        figure = new_figure(4.0 + 3.0 * count, 3.2)
    panels = figure.subplots(*((count, 1) if wide else (1, count)), squeeze=False).flat
    width = 0.8 / len(rows)
    for axis, (metric, label) in zip(panels, metrics.items(), strict=True):
        for index, (name, (colour, marker, _)) in enumerate(looks(rows).items()):
            for place, structure in enumerate(structures):
                found = [case[structure][metric] for case in rows[name].by_case.values()]
                values = [value for value in found if not np.isnan(value)]
                middle = place - 0.4 + (index + 0.5) * width
                spread = np.linspace(-0.25, 0.25, len(values)) * width if len(values) > 1 else np.zeros(len(values))
                axis.scatter(middle + spread, values, s=14, alpha=0.6, lw=0, color=colour, marker=marker)
                mean = rows[name].structures[structure][metric]
                axis.hlines(mean, middle - 0.4 * width, middle + 0.4 * width, color=colour, lw=2)
        axis.set_xticks(range(len(structures)), structures, rotation=0 if len(structures) < 7 else 30)
        axis.set_title(label, fontsize=9, loc="left")
        style_axis(axis)
        axis.set_ylim(bottom=0.0)
        axis.grid(axis="x", visible=False)
    # Next to the panels: the titles may need more room than there are structures.
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=5, label=titles[name])
        for name, (colour, marker, _) in looks(rows).items()
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right upper")
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
    for place, (name, (colour, marker, _)) in enumerate(looks(values).items()):
        table = np.asarray(values[name])
        dots = np.full(len(table), place), table.mean(axis=1)
        axis.scatter(*dots, s=16, color=colour, marker=marker, alpha=0.7, lw=0, zorder=3)
        axis.hlines(table.mean(), place - 0.22, place + 0.22, color=colour, lw=3, zorder=4)
    axis.set_xticks(range(len(values)), [titles[name].replace(", ", ",\n") for name in values], fontsize=8)
    axis.set_ylabel(label, fontsize=9)
    style_axis(axis)
    axis.grid(axis="x", visible=False)
    return figure


def fraction_figure(
    curves: Mapping[str, Mapping[float, tuple[float, float | None]]], titles: Mapping[str, str], label: str
) -> Figure:
    """A mean score against the share of labels.

    Args:
        curves: mean and standard deviation over seeds by share, for every recipe; where the latter is None, as with
            one seed, there is no band.
        titles: titles of recipes.
        label: of the axis.
    """
    figure = new_figure(6.5, 3.8)
    axis = figure.subplots()
    for name, (colour, marker, line) in looks(curves).items():
        shares = sorted(curves[name])
        # None becomes NaN, which is not drawn.
        means, spreads = (np.array([curves[name][share][part] for share in shares], dtype=float) for part in (0, 1))
        percent = [100 * share for share in shares]
        axis.plot(percent, means, marker=marker, ls=line, color=colour, lw=1.6, ms=4, label=titles[name])
        axis.fill_between(percent, means - spreads, means + spreads, color=colour, alpha=0.15, lw=0)
    axis.set_xlabel("labelled training cases in %", fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    style_axis(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure
