"""Pictures of cases for a benchmark's report, only where asked for: images leave the hospital with the page.

All of them follow the radiological convention: the patient's right is at the left of axial and coronal slices, and
sagittal ones look to the left.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy import ndarray
from scipy import ndimage

from nnunet_topomae.reports.case_files import CaseFiles
from nnunet_topomae.reports.page import Picture
from nnunet_topomae.reports.plots import STRUCTURE_COLOURS, data_uri, new_figure
from nnunet_topomae.reports.volumes import choose_window, describe_orientation, read_volume

WIDTH = 10.0  # inches
LEGEND_FONT, LABEL_FONT, LETTER_FONT = 9.0, 7.0, 8.0
# Parts of a structure that get its number: the largest ones, from this many pixels on.
NUMBERED_PARTS, NUMBERED_PIXELS = 3, 6


class Plane(NamedTuple):
    """A plane of a volume in LPS.

    Attributes:
        name: as radiologists call it.
        normal: array axis that it cuts.
        down: array axis that runs down or up the picture.
        across: array axis that runs across.
        letters: sides of the patient at the left, right, upper and lower border of the picture.
    """

    name: str
    normal: int
    down: int
    across: int
    letters: tuple[str, str, str, str]

    @property
    def origin(self) -> Any:
        """Where the first row is drawn: the head is always up."""
        return "upper" if self.normal == 0 else "lower"


PLANES = (
    Plane("axial", 0, 1, 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    Plane("sagittal", 2, 0, 1, ("A", "P", "S", "I")),
)


def case_picture(files: CaseFiles, title: str) -> Picture:
    """Truth, baseline and recipe over the image, in three planes.

    Args:
        files: of the case.
        title: of the recipe.
    """
    truth, image = read_volume(files.truth), read_volume(files.image).values
    predictions = {name: read_volume(file).values for name, file in files.predictions.items()}
    window = choose_window(image, files.channel, files.labels, files.dataset, files.ct_window)
    figure = overlay_figure(window.apply(image), truth.values, predictions, truth.spacing, files.labels)
    return Picture(
        data_uri(figure, "png"),
        f"Slices of {files.case} in three planes with the structures of truth and predictions in colour and numbered",
        f"{files.case}: the {files.rank} case of {title}, mean Dice {files.dice:.3f}. {_sentence(window.name)} "
        f"{describe_orientation(truth.tilt)} White lines: the truth's border.",
    )


def overlay_figure(
    grey: ndarray,
    truth: ndarray,
    predictions: Mapping[str, ndarray],
    spacing: Sequence[float],
    labels: Mapping[str, int],
) -> Figure:
    """Truth and predictions in colour over the image, in three planes; white lines show the truth's borders.

    Each plane is the slice that cuts the most structures and, among those, the most labelled voxels. Structures carry
    the value of their label, borders the sides of the patient.

    Args:
        grey: the image from 0, black, to 1, white, in LPS: (D, H, W) run to the patient's head, back and left.
        truth: label map of the same shape and orientation.
        predictions: label maps by title.
        spacing: voxel size in mm along (D, H, W).
        labels: label values by structure, without the background.
    """
    columns = {"image": np.zeros_like(truth), "truth": truth, **predictions}
    extent = np.array(truth.shape) * np.array(spacing)
    # All planes have the same scale in mm.
    widest = max(extent[plane.across] for plane in PLANES)
    heights = [extent[plane.down] / widest for plane in PLANES]
    legend_columns = _legend_columns(labels)
    legend_height = 0.2 + 0.2 * -(-len(labels) // legend_columns)
    panel_width = (WIDTH - 0.4) / len(columns)
    figure = new_figure(WIDTH, 0.3 + legend_height + panel_width * sum(heights))
    panels = figure.subplots(3, len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, plane in zip(panels, PLANES, strict=True):
        index = best_slice(truth, plane.normal)
        border = truth.take(index, axis=plane.normal)
        for axis, (name, label_map) in zip(row, columns.items(), strict=True):
            drawn = label_map.take(index, axis=plane.normal)
            rgb = _colour(grey.take(index, axis=plane.normal), drawn, labels)
            aspect = spacing[plane.down] / spacing[plane.across]
            axis.imshow(rgb, aspect=aspect, origin=plane.origin, interpolation="nearest")
            if name != "image":
                _draw_borders(axis, border, labels)
                _draw_numbers(axis, drawn, labels)
            _draw_letters(axis, plane)
            axis.set(xticks=[], yticks=[])
            if plane.normal == 0:
                axis.set_title(name, fontsize=10)
        row[0].set_ylabel(f"{plane.name}, slice {index}", fontsize=9)
    handles = [Patch(color=colour, label=f"{value} {name}") for name, value, colour in label_colours(labels)]
    place: Any = "outside lower center"
    figure.legend(handles=handles, loc=place, ncols=legend_columns, fontsize=LEGEND_FONT, frameon=False)
    return figure


def label_colours(labels: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Name, value and colour of every structure.

    Args:
        labels: label values by structure, without the background.
    """
    for (name, value), colour in zip(labels.items(), cycle(STRUCTURE_COLOURS), strict=False):
        yield name, value, colour


def best_slice(truth: ndarray, normal: int) -> int:
    """The slice that shows most structures and, among those, most labelled voxels.

    Args:
        truth: label map (D, H, W).
        normal: array axis to cut across.
    """
    slices = [truth.take(index, axis=normal) for index in range(truth.shape[normal])]
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _legend_columns(labels: Mapping[str, int]) -> int:
    """How many entries of a legend fit next to each other; a letter is taken to be half as wide as high."""
    longest = max((len(name) for name in labels), default=0) + 4
    return max(1, min(len(labels), int(72 * WIDTH / (LEGEND_FONT * (0.55 * longest + 4)))))


def _colour(grey: ndarray, label_map: ndarray, labels: Mapping[str, int]) -> ndarray:
    """Blend the colours of a label map over a grey slice: (height, width) -> (height, width, 3)."""
    rgb: ndarray = np.repeat(grey[..., None], 3, axis=-1)
    for _, value, colour in label_colours(labels):
        inside = label_map == value
        rgb[inside] = 0.45 * rgb[inside] + 0.55 * np.array(to_rgb(colour))
    return rgb


def _draw_borders(axis: Axes, truth: ndarray, labels: Mapping[str, int]) -> None:
    for value in labels.values():
        if min(truth.shape) > 1 and (truth == value).any():
            axis.contour(truth == value, levels=[0.5], colors="white", linewidths=0.6)


def _draw_numbers(axis: Axes, label_map: ndarray, labels: Mapping[str, int]) -> None:
    """The value of every structure on its largest parts, where they are thickest."""
    for value in labels.values():
        parts, count = ndimage.label(label_map == value)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        for part in np.argsort(-sizes, kind="stable")[:NUMBERED_PARTS]:
            if sizes[part] < NUMBERED_PIXELS:
                break
            depth = ndimage.distance_transform_edt(np.pad(parts == part + 1, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            _write(axis, float(x), float(y), str(value), LABEL_FONT, axis.transData)


def _draw_letters(axis: Axes, plane: Plane) -> None:
    """The sides of the patient at the four borders."""
    for letter, (x, y) in zip(plane.letters, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05)), strict=True):
        _write(axis, x, y, letter, LETTER_FONT, axis.transAxes)


def _write(axis: Axes, x: float, y: float, text: str, size: float, transform: Any) -> None:
    outline = [withStroke(linewidth=1.5, foreground="black")]
    axis.text(
        *(x, y, text),
        transform=transform,
        fontsize=size,
        color="white",
        ha="center",
        va="center",
        path_effects=outline,
        clip_on=True,
    )
