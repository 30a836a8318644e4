"""Speed of the segmentation metrics on a volume of 256 x 256 x 128 with 8 structures: CPU seconds and ratios.

    OMP_NUM_THREADS=1 python studies/metrics.py [--json studies/metrics.json]     # a minute
    python studies/metrics.py --quick                                             # a volume of 32 x 64 x 64: seconds

Everything runs in one thread. `surface-distance` and `medpy` are compared where they are installed.
"""

import argparse
import importlib.util
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunet_topomae.evaluation.metrics import MetricOptions, score_case
from nnunet_topomae.files import write_json

SHAPE, SPACING, STRUCTURES = (128, 256, 256), (2.0, 1.0, 1.0), 8
QUICK_SHAPE = (32, 64, 64)


def make_label_maps(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth with eight bumpy ellipsoids, and a prediction with shifted ones."""
    scale = shape[0] / SHAPE[0]
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    bumps = gaussian_filter(generator.standard_normal(shape).astype(np.float32), 4 * scale)
    bumps *= 0.15 / bumps.std()
    maps = np.zeros((2, *shape), np.uint8)
    for value in range(1, STRUCTURES + 1):
        place = scale * np.array([64, 64 + 128 * (value % 2), 32 + 60 * ((value - 1) // 2)], np.float32)
        radii = scale * generator.uniform((15, 20, 15), (40, 50, 28))
        for index, shift in enumerate((0.0, 2.0 * scale)):
            distance = np.sqrt((((grid - (place + shift).reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)) ** 2).sum(0))
            maps[index][distance + bumps < 1] = value
    return maps[0], maps[1]


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Smallest CPU time of this process."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def with_library(name: str, truth: np.ndarray, prediction: np.ndarray) -> None:
    """HD95 of all structures by another library."""
    for value in range(1, STRUCTURES + 1):
        masks = truth == value, prediction == value
        if name == "medpy":
            from medpy.metric.binary import hd95

            hd95(*masks, voxelspacing=SPACING)
        else:
            from surface_distance import compute_robust_hausdorff, compute_surface_distances

            compute_robust_hausdorff(compute_surface_distances(*masks, SPACING), 95)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small volume, scored once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    shape, repeats = (QUICK_SHAPE, 1) if args.quick else (SHAPE, 3)
    truth, prediction = make_label_maps(shape)
    labels = {f"structure {value}": value for value in range(1, STRUCTURES + 1)}
    options = {
        "all but the paper protocol": MetricOptions(paper_protocol=False),
        "with the paper protocol": MetricOptions(),
        "and Betti numbers": MetricOptions(betti=True),
    }
    found: dict[str, float] = {}
    for name, option in options.items():
        found[name] = seconds(lambda option=option: score_case(truth, prediction, SPACING, labels, option), repeats)
    tracemalloc.start()
    score_case(truth, prediction, SPACING, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    libraries = {"medpy": "medpy", "surface-distance": "surface_distance"}
    for name, module in libraries.items():
        if importlib.util.find_spec(module):
            found[name] = seconds(lambda name=name: with_library(name, truth, prediction), 1)
    reference = found["all but the paper protocol"]
    where = f"{shape}, {STRUCTURES} structures, {platform.machine()}, one thread"
    sys.stdout.write(f"{where}; peak memory {peak / 2**20:.0f} MB\n")
    for name, value in found.items():
        sys.stdout.write(f"{name:<28}{value:8.2f} s{value / reference:8.1f} x\n")
    if args.json:
        content = {"shape": shape, "structures": STRUCTURES, "cpu_seconds": found, "peak_bytes": peak}
        write_json(args.json, content, indent=2)


if __name__ == "__main__":
    main()
