"""What the figures of all reports share. Nothing touches matplotlib's global state."""

import base64
from collections.abc import Iterable
from io import BytesIO
from itertools import cycle
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Chosen so that neighbours in these lists, and the first six structures among each other, also differ to colour-blind
# readers; a test measures it. No picture tells things apart by colour alone: structures have numbers, recipes markers.
# There are as many as structures of BTCV; further ones repeat the colours.
STRUCTURE_COLOURS = (
    *("#6da976", "#cbf900", "#146306", "#54ffe6", "#b796ee", "#a21166", "#9ebd15"),
    *("#c32b4a", "#6e69f6", "#a27400", "#0f5eb0", "#a3e0ab", "#b5608e"),
)
PALETTE = ("#a80000", "#009d8a", "#31367b", "#e9611e", "#751b30", "#7c7ff5", "#af6257", "#1d21f6")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", "-.", ":")


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


class Look(NamedTuple):
    """How a recipe is drawn: a colour, and a marker and line for readers who cannot tell colours apart."""

    colour: str
    marker: str
    line: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for every name, such as that of a recipe."""
    drawn = map(Look, cycle(PALETTE), cycle(MARKERS), cycle(LINES))
    return dict(zip(names, drawn, strict=False))


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
