"""What the figures of all reports share, and label maps over an image. Nothing touches matplotlib's global state."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy import ndarray

# As many as the structures of BTCV; further ones repeat the colours.
STRUCTURE_COLOURS = (
    *("#56b4e9", "#e69f00", "#00b894", "#e84393", "#f0e442", "#a29bfe", "#ff7675"),
    *("#0984e3", "#b8e994", "#d35400", "#81ecec", "#8e44ad", "#fdcb6e"),
)
PALETTE = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#65a30d", "#be185d")
WINDOW_HU = (-150.0, 350.0)


def draw(figure: Figure, file_format: str = "svg") -> bytes:
    """The figure as a file, `svg` or `png`.

    Args:
        figure: what to draw.
        file_format: `svg`, without a date in the file, or `png`.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format=file_format, metadata={"Date": None} if file_format == "svg" else None)
    return buffer.getvalue()


def data_uri(picture: Figure | bytes, file_format: str = "svg") -> str:
    """A figure, or the content of its file, as a data URI.

    Args:
        picture: a figure, which is drawn first, or the bytes of an image file.
        file_format: `svg` or `png`; for bytes, what they are.
    """
    content = draw(picture, file_format) if isinstance(picture, Figure) else picture
    kind = "svg+xml" if file_format == "svg" else file_format
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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
        predictions: label maps by title.
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
                axis.set_title(name, fontsize=10)
        row[0].set_ylabel(f"{plane}, slice {index}", fontsize=9)
    handles = [
        figure.axes[0].scatter([], [], color=c, label=n) for n, c in zip(labels, cycle(STRUCTURE_COLOURS), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for every name, such as that of a recipe."""
    return dict(zip(names, cycle(PALETTE), strict=False))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Args:
        width: in inches.
        height: in inches; the parts of the figure are arranged to fit.
    """
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


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
