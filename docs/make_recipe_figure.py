"""Dice over the time of training: UNETR++ as the package builds it, and stock nnU-Net.

Usage: python docs/make_recipe_figure.py studies/recipe.json

The JSON file is what ``python studies/recipe.py run`` writes. The picture goes to ``docs/images/recipe_time.svg``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DATA = "Dataset904_HippocampusMini"
OURS = "dropout=0,ends=unit,heads=unit,lr=3e-3"
LINES = {OURS: ("UNETR++ from scratch", "#0072b2", "o"), "nnunet": ("stock nnU-Net", "#d55e00", "s")}
TARGET = Path(__file__).parent / "images" / "recipe_time.svg"


def draw(results: list[dict[str, Any]]) -> None:
    """One line per network, one point per length of training, over the CPU seconds that the training took."""
    figure, axis = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
    for variant, (title, colour, marker) in LINES.items():
        points = sorted(
            (result["steps"] * result["cpu_seconds_a_step"], result["dice"], result["steps"])
            for result in results
            if (result["variant"], result["data"], result["seed"]) == (variant, DATA, 0)
        )
        seconds, dice, _ = zip(*points, strict=True)
        axis.plot(seconds, dice, color=colour, marker=marker, label=title)
        for x, y, count in points:
            axis.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(4, -11), fontsize=8, color=colour)
    axis.set(xlabel="CPU seconds of training, one thread (numbers: steps)", ylabel="mean Dice, 8 cases")
    axis.margins(0.1)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    plt.rcParams["svg.hashsalt"] = "recipe"
    figure.savefig(TARGET, metadata={"Date": None})


if __name__ == "__main__":
    draw([result for file in sys.argv[1:] for result in json.loads(Path(file).read_text())])
