"""Persistent homology: our engine against cripser and gudhi, on the same volumes in the same run.

    python studies/homology.py --out studies/homology.json
    python studies/homology.py --sizes 64 --images ct_0000.nii.gz mr_0000.nii.gz

For every volume: whether the diagrams are equal as multisets of points, and CPU seconds of one thread (the best of
several calls). Volumes: CT-like phantoms and six kinds of reconstruction of them, odd volumes with many ties, and the
images that are named, whole. The last table holds the whole loss with the target's diagrams given (the reconstruction's
diagrams, the matchings and the gradient) against cripser's homology of the reconstruction alone: of phantoms, and of
crops of the images as nnU-Net leaves them when it does not resample (whole HU, clipped to a window).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from machine import describe
from numpy import ndarray
from topology_volumes import CT_WINDOW, KINDS, phantom, reconstruct

from nnunet_topomae.files import write_json
from nnunet_topomae.topology import TopologicalLoss, persistence_diagrams

BACKENDS = ("native", "cripser", "gudhi")
PARTS = ("homology", "matching", "loss")


def odd_volumes(size: int) -> Iterator[tuple[str, ndarray]]:
    """Volumes that are hard in one way or another."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((size, size, size)).astype(np.float32)
    yield "binary noise", (noise > 0).astype(np.float32)
    yield "eight levels", np.round(2 * noise).clip(-4, 3)
    yield "integers", np.round(300 * noise)
    yield "clipped", noise.clip(-0.3, 0.4)
    yield "float64 noise", rng.standard_normal((size, size, size))
    yield "one slice", rng.standard_normal((1, 4 * size, 4 * size)).astype(np.float32)
    yield "constant", np.zeros((size, size, size), np.float32)


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds of several calls."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def points(volume: ndarray, backend: str) -> list[ndarray]:
    """Sorted points of every dimension."""
    return [
        np.sort(diagram.points[:, 0] + 1j * diagram.points[:, 1])
        for diagram in persistence_diagrams(volume, backend=backend)
    ]


def compare(name: str, volume: ndarray, repeats: int, backends: Sequence[str]) -> dict[str, Any]:
    """One row: seconds of every backend, and whether the points are equal."""
    found = {backend: points(volume, backend) for backend in backends}
    equal = all(
        np.array_equal(one, other) for of in found.values() for one, other in zip(found["native"], of, strict=True)
    )
    seconds = {
        backend: cpu_seconds(lambda backend=backend: persistence_diagrams(volume, backend=backend), repeats)
        for backend in backends
    }
    row = {"volume": name, "shape": list(volume.shape), "points": [len(p) for p in found["native"]], "equal": equal}
    row |= {"seconds": seconds, "ratio": {other: seconds[other] / seconds["native"] for other in backends[1:]}}
    print(
        f"| {name} | {'x'.join(map(str, volume.shape))} | {'yes' if equal else 'NO'} | {seconds['native']:.3f} | "
        + " | ".join(f"{ratio:.1f}" for ratio in row["ratio"].values())
        + " |",
        flush=True,
    )
    return row


def compare_loss(name: str, volume: ndarray, kind: str, repeats: int) -> dict[str, Any]:
    """The whole loss with the target's diagrams given, its parts, and its ratio to cripser's homology alone."""
    made = np.ascontiguousarray(reconstruct(volume, kind), np.float32)
    target = persistence_diagrams(volume)
    loss = TopologicalLoss(threads=1)
    gaps = []

    def step() -> None:
        pending = loss.start(torch.from_numpy(made)[None, None].requires_grad_(), [[target]])
        pending.result().backward()
        gaps.append(pending.gap)

    whole = cpu_seconds(step, repeats)
    native = cpu_seconds(lambda: persistence_diagrams(made), repeats)
    alone = cpu_seconds(lambda: persistence_diagrams(made, backend="cripser"), repeats)
    per_voxel = {"homology": native / made.size, "matching": (whole - native) / made.size, "loss": whole / made.size}
    print(
        f"| {name} | {kind} | {whole:.2f} | {native:.2f} | {alone:.2f} | {whole / alone:.2f} | {max(gaps):.0e} |",
        flush=True,
    )
    seconds = {"loss": whole, "homology": native, "cripser": alone}
    row = {"volume": name, "kind": kind, "shape": list(made.shape), "seconds": seconds, "gap": max(gaps)}
    return row | {"ratio": whole / alone, "per_voxel": per_voxel}


def loss_volumes(sizes: Sequence[int], images: Sequence[Path]) -> Iterator[tuple[str, ndarray, Sequence[str]]]:
    """Phantoms, and crops of the images in whole units of their window, with the kinds of reconstruction to compare."""
    for size in sizes:
        yield f"phantom {size}^3", phantom((size, size, size)), KINDS if size <= 96 else ("late",)
    low, high = CT_WINDOW
    for file in images:
        whole = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).astype(np.float32)
        starts = [max(0, (size - 96) // 2) for size in whole.shape]
        crop = whole[tuple(slice(start, start + 96) for start in starts)]
        clipped = (np.clip(np.round(crop), low, high) - low) / (high - low)
        yield f"{file.name.split('.')[0]}, integers", clipped.astype(np.float32), ("late", "mid", "noisy")


def measure_growth(small: int, large: int, rounds: int) -> list[dict[str, float]]:
    """Cost per voxel of a large converged phantom, relative to a small one and to its own corners of that size.

    Larger phantoms have more points per voxel; the corners hold what the large phantom does. In every round, each of
    the three is computed for about the same number of voxels, in turns, so that other work disturbs all alike.
    """
    whole = phantom((large, large, large))
    ends = [slice(None, small), slice(-small, None)]
    times = max(1, round((large / small) ** 3 / 8))
    groups = {
        "small": [phantom((small, small, small))] * 8 * times,
        "corners": [np.ascontiguousarray(whole[corner]) for corner in product(ends, repeat=3)] * times,
        "large": [whole],
    }
    made = {name: [reconstruct(volume, "late") for volume in volumes] for name, volumes in groups.items()}
    targets = {name: [persistence_diagrams(volume) for volume in volumes] for name, volumes in groups.items()}
    loss, rows = TopologicalLoss(threads=1), []

    def step(volume: ndarray, target: Any) -> None:
        loss.start(torch.from_numpy(volume)[None, None].requires_grad_(), [[target]]).result().backward()

    step(made["small"][0], targets["small"][0])  # compiles
    for _ in range(rounds):
        cost = {}
        for name, volumes in made.items():
            homology = sum(cpu_seconds(lambda v=v: persistence_diagrams(v), 1) for v in volumes)
            pairs = zip(volumes, targets[name], strict=True)
            whole_loss = sum(cpu_seconds(lambda v=v, t=t: step(v, t), 1) for v, t in pairs)
            voxels = sum(volume.size for volume in volumes)
            cost[name] = np.array([homology, whole_loss - homology, whole_loss]) / voxels
        for name in ("small", "corners"):
            rows.append({"from": name, **dict(zip(PARTS, (cost["large"] / cost[name]).tolist(), strict=True))})
    print(f"\n| growth per voxel to {large}^3, median of {rounds} rounds | {' | '.join(PARTS)} |")
    print(f"|---|{'---|' * len(PARTS)}")
    for name, title in (("small", f"from {small}^3"), ("corners", f"from its corners of {small}^3")):
        found = [[row[part] for row in rows if row["from"] == name] for part in PARTS]
        print(f"| {title} | " + " | ".join(f"{np.median(f):.2f} ({min(f):.2f}-{max(f):.2f})" for f in found) + " |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96, 128])
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="images in any format of SimpleITK")
    parser.add_argument("--ct", type=Path, nargs="*", default=[], help="CT images in HU for the whole loss")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gudhi", action="store_true", help="also time gudhi, which is slow")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--only", choices=("volumes", "losses", "growth"), help="measure this again, take the rest from --out"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.repeats = [12], 1
    torch.set_num_threads(1)
    backends = BACKENDS if args.gudhi or args.quick else BACKENDS[:2]
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.only else {}
    if args.only in (None, "volumes"):
        print(f"| volume | shape | equal | native, CPU s | {' | '.join(f'{b} / native' for b in backends[1:])} |")
        print(f"|---|---|---|---|{'---|' * (len(backends) - 1)}")
        volumes = _volumes(args.sizes, args.images)
        rows = [compare(name, volume, args.repeats, backends) for name, volume in volumes]
        results |= {"machine": describe(torch.device("cpu")), "volumes": rows}
    if args.only in (None, "losses"):
        columns = (
            "volume",
            "reconstruction",
            "whole loss, CPU s",
            "its homology",
            "cripser's",
            "loss / cripser",
            "gap",
        )
        print(f"\n| {' | '.join(columns)} |")
        print("|---|---|---|---|---|---|---|")
        cases = [(name, volume, kind) for name, volume, kinds in loss_volumes(args.sizes, args.ct) for kind in kinds]
        losses = [compare_loss(*case, args.repeats) for case in cases]
        results |= {"losses_machine": describe(torch.device("cpu")), "losses": losses}
    if args.only in (None, "growth"):
        rounds = 1 if args.quick else 3
        growth = measure_growth(args.sizes[0], 2 * args.sizes[0] if args.quick else max(args.sizes), rounds)
        results |= {"growth_machine": describe(torch.device("cpu")), "growth": growth}
    if args.out:
        write_json(args.out, results)


def _volumes(sizes: Sequence[int], images: Sequence[Path]) -> Iterator[tuple[str, ndarray]]:
    for size in sizes:
        target = phantom((size, size, size))
        yield "phantom", target
        yield from ((kind, np.ascontiguousarray(reconstruct(target, kind), np.float32)) for kind in KINDS)
    yield from odd_volumes(sizes[0])
    for file in images:
        yield file.name.split(".")[0], SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)).astype(np.float32)


if __name__ == "__main__":
    main()
