"""How long VectorPOSE's boundary target takes, compared with the literal filters of scipy and scikit-image.

    python studies/boundary.py --out boundary.json
    python studies/boundary.py --quick --out quick.json    # a small crop: shows that it works

The median over 5x5x5 voxels takes nearly all of the time. Seconds are those of one core (process time), the median of
several runs, on smooth volumes with noise.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from numpy import ndarray
from scipy.ndimage import gaussian_filter, median_filter
from skimage.filters import scharr

from nnunet_topomae.data.boundary import GAIN, THRESHOLD, boundary_map
from nnunet_topomae.files import write_json


def literal(volume: ndarray) -> ndarray:
    """The definition, filter by filter."""
    return np.asarray(np.clip((scharr(median_filter(volume, 5)) - THRESHOLD) * GAIN, 0.0, 1.0))


def seconds(function: Callable[[ndarray], Any], volume: ndarray, repeats: int) -> float:
    """Median of the processor time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function(volume)
        times.append(time.process_time() - start)
    return float(np.median(times))


def measure(edge: int, noise: float, repeats: int) -> dict[str, Any]:
    """One crop with a noise of so many times its contrast."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(edge,) * 3), 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    volume = np.clip(smooth + noise * rng.normal(size=smooth.shape), 0, 1).astype(np.float32)
    boundary_map(volume[:8, :8, :8])  # compiles
    return {
        "edge": edge,
        "noise": noise,
        "literal_s": round(seconds(literal, volume, max(1, repeats // 3)), 4),
        "ours_s": round(seconds(boundary_map, volume, repeats), 4),
        "largest_difference": float(np.abs(literal(volume) - boundary_map(volume)).max()),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| crop | noise | literal, s | ours, s | largest difference |", "|---|---|---|---|---|"]
    for row in rows:
        numbers = f"{row['literal_s']:.2f} | {row['ours_s']:.3f} | {row['largest_difference']:.4f}"
        lines.append(f"| {row['edge']}^3 | {row['noise']:g} | {numbers} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a small crop, to see that it works")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    args = parser.parse_args(argv)
    edges = (16,) if args.quick else (48, 96)
    rows = [measure(edge, noise, 1 if args.quick else args.repeats) for edge in edges for noise in (0.0, 0.05, 0.3)]
    write_json(args.out, {"machine": describe(torch.device("cpu")), "rows": rows}, indent=1)
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
