"""Figures of the report. None of them touches matplotlib's global state."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

COLOURS = {"fusion": "#2563eb", "scratch": "#d97706", "vit": "#7c3aed", "unetrpp": "#059669", "input": "#334155"}
# As many as the structures of BTCV; further ones begin anew.
STRUCTURE_COLOURS = (
    *("#56b4e9", "#e69f00", "#00b894", "#e84393", "#f0e442", "#a29bfe", "#ff7675"),
    *("#0984e3", "#b8e994", "#d35400", "#81ecec", "#8e44ad", "#fdcb6e"),
)
NAMES = {"fusion": "fusion", "scratch": "from scratch", "vit": "ViT", "unetrpp": "UNETR++", "input": "input"}
WINDOW_HU = (-150.0, 350.0)
TERM_TITLES = {
    "total": "total",
    "mse_vit": "MSE, ViT",
    "mse_unetrpp": "MSE, UNETR++",
    "topo_vit": "topology, ViT",
    "topo_unetrpp": "topology, UNETR++",
    "spa_vit": "key points, ViT",
    "spa_unetrpp": "key points, UNETR++",
    "spa_consis": "key-point consistency",
    "rec_consis": "reconstruction consistency",
}

Records = Sequence[Mapping[str, Any]]


def data_uri(figure: Figure, file_format: str = "svg") -> str:
    """The figure as a data URI, `svg` or `png`."""
    buffer = BytesIO()
    figure.savefig(buffer, format=file_format, metadata={"Date": None} if file_format == "svg" else None)
    kind = "svg+xml" if file_format == "svg" else file_format
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def loss_curves(records: Records) -> Figure:
    """One panel for every term of the pre-training loss over the epochs."""
    found = dict.fromkeys(name for record in records for name in (*record["train"], *record["validation"]))
    terms = [name for name in TERM_TITLES if name in found]
    terms += [name for name in found if name not in TERM_TITLES]
    columns = 3
    rows = -(-len(terms) // columns)
    figure = new_figure(10.0, 2.15 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, term in zip(panels, terms, strict=False):
        for part, style in (("train", "-"), ("validation", "--")):
            _plot_epochs(axis, records, part, term, COLOURS["input"], style, part)
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
    """Loss and pseudo Dice of the supervised trainings, one colour a model."""
    figure = new_figure(10.0, 2.9)
    loss, dice = figure.subplots(1, 2)
    for model, records in models.items():
        _plot_epochs(loss, records, "train", "loss", COLOURS[model], "-", f"{NAMES[model]}, train")
        _plot_epochs(loss, records, "validation", "loss", COLOURS[model], "--", f"{NAMES[model]}, validation")
        _plot_epochs(dice, records, "validation", "pseudo_dice", COLOURS[model], "-", NAMES[model])
    loss.set_title("loss", fontsize=9, loc="left")
    dice.set_title("Dice on validation patches", fontsize=9, loc="left")
    dice.set_ylim(0, 1)
    for axis in (loss, dice):
        axis.set_xlabel("epoch", fontsize=8)
        axis.legend(fontsize=8, frameon=False)
    return figure


def score_dots(models: Mapping[str, Mapping[str, Any]], structures: Sequence[str]) -> Figure:
    """Dice and HD95 of every held-out case as dots, the mean as a bar."""
    figure = new_figure(10.0, 2.9)
    panels = figure.subplots(1, 2)
    for axis, (key, title) in zip(panels, (("dice", "Dice"), ("hd95", "HD95 in mm")), strict=True):
        for shift, model in zip((-0.17, 0.17), models, strict=True):
            for place, name in enumerate(structures):
                values = [case[name][key] for case in models[model]["cases"].values() if case[name][key] is not None]
                spread = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else np.zeros(len(values))
                label = NAMES[model] if place == 0 else None
                axis.scatter(place + shift + spread, values, s=16, alpha=0.6, lw=0, color=COLOURS[model], label=label)
                if values:
                    axis.hlines(np.mean(values), place + shift - 0.13, place + shift + 0.13, color=COLOURS[model], lw=2)
        axis.set_xticks(range(len(structures)), structures)
        axis.set_title(title, fontsize=9, loc="left")
        style_axis(axis)
        axis.grid(axis="x", visible=False)
    panels[0].set_ylim(-0.02, 1.02)
    panels[1].set_ylim(bottom=0.0)
    panels[0].legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def persistence_figure(diagrams: Mapping[str, Sequence[ndarray]]) -> Figure:
    """Persistence diagrams of one input and its reconstructions.

    Args:
        diagrams: for `input`, `vit` and `unetrpp` the points (birth, death) of dimensions 0, 1, 2, each (n, 2).
    """
    titles = ("components (dimension 0)", "loops (dimension 1)", "voids (dimension 2)")
    figure = new_figure(10.0, 3.5)
    panels = figure.subplots(1, len(titles))
    markers = {"input": ("o", 14), "vit": ("^", 9), "unetrpp": ("s", 7)}
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


def overlay_figure(
    image: ndarray,
    truth: ndarray,
    predictions: Mapping[str, ndarray],
    spacing: Sequence[float],
    labels: Mapping[str, int],
) -> Figure:
    """Truth and predictions in colour over the image, in three planes; white lines show the truth's borders.

    Each plane is the slice that cuts the most structures and, among those, the most labelled voxels.

    Args:
        image: intensities in HU (D, H, W).
        truth: label map.
        predictions: label maps by model.
        spacing: voxel size in mm along (D, H, W).
        labels: label values by structure, without the background.
    """
    columns = {"image": np.zeros_like(truth), "truth": truth, **predictions}
    extent = np.array(truth.shape) * np.array(spacing)
    planes = (("axial", 0, (1, 2)), ("coronal", 1, (0, 2)), ("sagittal", 2, (0, 1)))
    heights = [extent[rows] / extent[across] for _, _, (rows, across) in planes]
    figure = new_figure(10.0, 0.55 + 2.45 * sum(heights))
    panels = figure.subplots(3, len(columns), gridspec_kw={"height_ratios": heights})
    for row, (plane, normal, (down, across)) in zip(panels, planes, strict=True):
        index = _best_slice(truth, normal)
        grey = image.take(index, axis=normal)
        border = truth.take(index, axis=normal)
        for axis, (name, label_map) in zip(row, columns.items(), strict=True):
            rgb = _colour(grey, label_map.take(index, axis=normal), labels)
            origin = "upper" if normal == 0 else "lower"
            axis.imshow(rgb, aspect=spacing[down] / spacing[across], origin=origin, interpolation="nearest")
            if name != "image":
                for value in labels.values():
                    if (border == value).any():
                        axis.contour(border == value, levels=[0.5], colors="white", linewidths=0.6)
            axis.set(xticks=[], yticks=[])
            if normal == 0:
                axis.set_title(NAMES.get(name, name), fontsize=10)
        row[0].set_ylabel(f"{plane}, slice {index}", fontsize=9)
    handles = [
        figure.axes[0].scatter([], [], color=c, label=n) for n, c in zip(labels, cycle(STRUCTURE_COLOURS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plot_epochs(axis: Axes, records: Records, part: str, term: str, colour: str, style: str, label: str) -> None:
    points = [(r["epoch"] + 1, r[part][term]) for r in records if r[part].get(term) is not None]
    if points:
        marker = "o" if len(points) == 1 else ""
        axis.plot(*zip(*points, strict=True), style, color=colour, lw=1.4, marker=marker, label=label)
    style_axis(axis)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def style_axis(axis: Axes) -> None:
    """The grid, frame and ticks that all figures share."""
    axis.grid(color="#e2e8f0", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _best_slice(truth: ndarray, normal: int) -> int:
    """The slice across axis ``normal`` that shows most of the truth."""
    slices = [truth.take(index, axis=normal) for index in range(truth.shape[normal])]
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def _colour(grey: ndarray, label_map: ndarray, labels: Mapping[str, int]) -> ndarray:
    """Blend the colours of a label map over a grey slice: (height, width) -> (height, width, 3)."""
    low, high = WINDOW_HU
    rgb: ndarray = np.repeat(np.clip((grey - low) / (high - low), 0, 1)[..., None], 3, axis=-1)
    for value, colour in zip(labels.values(), cycle(STRUCTURE_COLOURS), strict=False):
        inside = label_map == value
        rgb[inside] = 0.45 * rgb[inside] + 0.55 * np.array(to_rgb(colour))
    return rgb
