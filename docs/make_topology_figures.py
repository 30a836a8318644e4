"""Make the pictures of docs/topology.md.

Usage: python docs/make_topology_figures.py studies/topology.json

The JSON file is what ``python studies/topology.py --out studies/topology.json`` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import gaussian_filter

from nnunet_topomae.topology import TopologicalLoss, persistence_diagrams, wasserstein_matching
from nnunet_topomae.topology.homology.cells import CUBES, DIRECTIONS, SQUARES
from nnunet_topomae.topology.homology.lower_stars import CRITICAL, VERTEX, lower_stars

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREEN, GREY = "#3b7dd8", "#e08a1e", "#2a9d6f", "#888888"
NAMES = ("H0 components", "H1 loops", "H2 voids")


def example() -> tuple[np.ndarray, np.ndarray]:
    """A ring, a hollow ball and a ball in a noisy volume, and a blurred reconstruction without the ball."""
    z, y, x = np.meshgrid(*(np.arange(size) for size in (20, 44, 64)), indexing="ij")
    ring = np.abs(np.hypot(y - 22, x - 16) - 10) < 3
    shell = np.abs(np.sqrt((2.0 * (z - 10)) ** 2 + (y - 15) ** 2 + (x - 48) ** 2) - 9) < 3
    ball = (2.0 * (z - 10)) ** 2 + (y - 36) ** 2 + (x - 46) ** 2 < 25
    clean = 0.1 + 0.7 * ((ring & (np.abs(z - 10) < 3)) | shell) + 0.5 * ball
    generator = np.random.default_rng(0)
    volume = gaussian_filter(clean, 0.8) + 0.008 * generator.standard_normal(clean.shape)
    made = gaussian_filter(np.where(ball, 0.15, clean), 1.8) + 0.006 * generator.standard_normal(clean.shape)
    return volume, made


def slice_panel(axes: Axes, pixels: np.ndarray, title: str, **options: Any) -> None:
    """One slice of a volume."""
    axes.imshow(pixels, interpolation="nearest", **options)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def diagram_panel(axes: Axes, first: np.ndarray, second: np.ndarray, pairs: np.ndarray, title: str) -> None:
    """Two diagrams and their matching; points that go to the diagonal have a dotted line."""
    for i, j in pairs:
        axes.plot(*zip(first[i], second[j], strict=True), color=GREY, lw=0.8, zorder=1)
    for points, matched, colour in ((first, pairs[:, 0], BLUE), (second, pairs[:, 1], ORANGE)):
        for k in np.setdiff1d(np.arange(len(points)), matched):
            if points[k, 0] - points[k, 1] > 0.15:
                axes.plot([points[k, 0], points[k].mean()], [points[k, 1], points[k].mean()], ":", color=colour, lw=1)
    axes.scatter(*first.T, s=9, color=BLUE, label="input", zorder=2)
    axes.scatter(*second.T, s=9, color=ORANGE, label="reconstruction", zorder=3)
    axes.plot([-0.1, 1.0], [-0.1, 1.0], color="black", lw=0.8)
    axes.set(title=title, xlabel="birth", xlim=(-0.1, 1.0), ylim=(-0.1, 1.0), aspect="equal")


def overview() -> Figure:
    """A volume, its diagrams, the matching and the gradient."""
    volume, made = example()
    first, second = persistence_diagrams(volume), persistence_diagrams(made)
    loss = TopologicalLoss()
    reconstruction = torch.from_numpy(made).requires_grad_()
    value = loss(reconstruction, torch.from_numpy(volume))
    value.backward()
    assert reconstruction.grad is not None
    gradient = reconstruction.grad.numpy()
    figure = Figure(figsize=(11, 6.4), dpi=90)
    figure.subplots_adjust(left=0.05, right=0.99, top=0.95, bottom=0.08, wspace=0.12, hspace=0.16)
    panels = figure.subplots(2, 3)
    slice_panel(panels[0, 0], volume[10], "input: a ring, a hollow ball, a ball", cmap="gray", vmin=0, vmax=0.9)
    slice_panel(panels[0, 1], made[10], "reconstruction: blurred, the ball lost", cmap="gray", vmin=0, vmax=0.9)
    shown = np.take_along_axis(gradient, np.abs(gradient).argmax(axis=0)[None], axis=0)[0]
    title = f"gradient of L = {value.item():.2f}, largest along z"
    slice_panel(panels[0, 2], shown, title, cmap="PuOr", vmin=-0.05, vmax=0.05)
    for k in range(3):
        matching = wasserstein_matching(first[k].points, second[k].points)
        title = f"{NAMES[k]}: W2 = {matching.cost**0.5:.3f}"
        diagram_panel(panels[1, k], first[k].points, second[k].points, matching.pairs, title)
    panels[1, 0].set_ylabel("death")
    panels[1, 2].legend(frameon=False, loc="upper left")
    return figure


def lower_star_panel(axes: Any, edges: int, squares: int, cubes: int, title: str) -> None:
    """A lower star as a part of an octahedron, with arrows for the discrete gradient and red for critical cells."""
    corners = np.array(DIRECTIONS, float)[:, ::-1]
    table = lower_stars()
    star = int(table.first[edges | squares << 6]) + int(table.place[table.cubes_of_squares[squares], cubes])
    partner = table.edges[6 * star : 6 * star + 6] >> 3
    critical_squares = int(table.critical_squares[star])
    listed = [int(entry) for entry in table.next_cube[star] if entry != 255]
    for square, ends in enumerate(SQUARES):
        axes.plot(*corners[list(ends)].T, color="#dddddd", lw=0.8, zorder=0)
        if squares >> square & 1:
            colour = "#c0392b" if critical_squares >> square & 1 else BLUE
            axes.plot(*corners[list(ends)].T, color=colour, lw=2.5, zorder=1)
    for entry in listed:
        triangle = corners[list(CUBES[entry & 7])]
        colour = "#c0392b" if entry >= 64 else BLUE
        axes.add_collection3d(Poly3DCollection([triangle], facecolor=colour, alpha=0.18, edgecolor="none"))
        if entry < 64:
            (left,) = (d for d in CUBES[entry & 7] if d ^ 1 == entry >> 3)
            side = corners[[d for d in CUBES[entry & 7] if d != left]].mean(axis=0)
            arrow(axes, side, triangle.mean(axis=0))
    for edge in range(6):
        if edges >> edge & 1:
            colour = {VERTEX: GREEN, CRITICAL: "#c0392b"}.get(int(partner[edge]), BLUE)
            axes.scatter(*corners[edge], s=60, color=colour, depthshade=False, zorder=3)
            if partner[edge] < 12:
                arrow(axes, corners[edge], corners[list(SQUARES[partner[edge]])].mean(axis=0))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    axes.view_init(elev=22, azim=-52)
    axes.set_box_aspect((1, 1, 1), zoom=1.35)


def arrow(axes: Any, start: np.ndarray, end: np.ndarray) -> None:
    """From a cell to the larger one that it is paired with."""
    axes.quiver(*start, *(end - start), color="black", lw=1.4, arrow_length_ratio=0.35, zorder=4)


def lower_stars_figure() -> Figure:
    """Four lower stars."""
    figure = Figure(figsize=(11, 3.1), dpi=90)
    figure.subplots_adjust(left=0, right=1, top=0.86, bottom=0.02, wspace=0)
    table = lower_stars()

    def closed(edges: int) -> tuple[int, int, int]:
        squares = int(table.squares_of_edges[edges])
        return edges, squares, int(table.cubes_of_squares[squares])

    two = 1 << 1 | 1 << 4
    panels = (
        ((two | 1 << 3, 1 << SQUARES.index((1, 3)), 0), "three edges, one square:\ntwo components meet"),
        ((2 | 8 | 1 | 4, int(table.squares_of_edges[15]), 0), "four edges, four squares:\na loop is filled"),
        (closed(2 | 4 | 32), "a corner of a cube:\nnothing happens"),
        (closed(63), "all around:\na void is filled"),
    )
    for k, (cells, title) in enumerate(panels):
        lower_star_panel(figure.add_subplot(1, 4, k + 1, projection="3d"), *cells, title)
    return figure


def scaling(results: dict[str, Any]) -> Figure:
    """Time and memory over the size of the volume, ours and the peers'."""
    late = [row for row in results["volumes"] if row["kind"] == "late"]
    peers = results["scaling_peers"]
    sizes, peer_sizes = [row["shape"][0] for row in late], [row["size"] for row in peers]
    homology = np.array([row["homology"] for row in late])
    matching = np.array([sum(row["matching"]) for row in late])
    figure = Figure(figsize=(10, 4.2), dpi=90, layout="constrained")
    cost, memory = figure.subplots(1, 2)
    cost.loglog(sizes, homology + matching, "o-", color=BLUE, lw=2, label="ours: homology + exact matching")
    cost.loglog(sizes, homology, "o--", color=BLUE, lw=1, label="persistent homology")
    cost.loglog(sizes, matching, "o:", color=BLUE, lw=1, label="exact matching")
    cripser = [row["cripser"] for row in late]
    cost.loglog(sizes, cripser, "^--", color=GREEN, lw=1, label="homology (cripser)")
    cost.loglog(peer_sizes, [r["gudhi_homology"] for r in peers], "s--", color=GREEN, label="homology (gudhi)")
    cost.loglog(peer_sizes, [r["hera"] for r in peers], "s:", color=ORANGE, label="matching (gudhi.hera, delta 0.01)")
    sparse = [row for row in peers if "sparse" in row]
    sparse_sizes = [row["size"] for row in sparse]
    cost.loglog(sparse_sizes, [r["sparse"] for r in sparse], "s:", color=GREY, label="matching (POT sparse, fallback)")
    cost.set(xlabel="edge of the volume in voxels", ylabel="CPU seconds of one thread", xticks=sizes)
    cost.set_ylim(bottom=2e-4)  # room for the legend
    memory.loglog(sizes, [row["bytes"] / 1e6 for row in late], "o:", color=BLUE, label="exact matching")
    sparse_memory = [row["sparse_bytes"] / 1e6 for row in sparse]
    memory.loglog(sparse_sizes, sparse_memory, "s:", color=GREY, label="POT sparse, fallback")
    memory.set(xlabel="edge of the volume in voxels", ylabel="extra memory in MB", xticks=sizes)
    for axes in (cost, memory):
        axes.minorticks_off()
        axes.set_xticks(sizes, [f"{size}$^3$" for size in sizes])
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Write the pictures."""
    for name, figure in (
        ("topology_lower_stars.png", lower_stars_figure()),
        ("topology_overview.png", overview()),
        ("topology_scaling.png", scaling(json.loads(Path(sys.argv[1]).read_text()))),
    ):
        FigureCanvasAgg(figure)
        figure.savefig(IMAGES / name)


if __name__ == "__main__":
    main()
