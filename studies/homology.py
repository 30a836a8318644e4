"""Persistent homology: our engine against cripser and gudhi, on the same volumes in the same run.

    python studies/homology.py --out studies/homology.json
    python studies/homology.py --sizes 64 --images ct_0000.nii.gz mr_0000.nii.gz

For every volume: whether the diagrams are equal as multisets of points, and CPU seconds of one thread (the best of
several calls). Volumes: CT-like phantoms and six kinds of reconstruction of them, odd volumes with many ties, and the
images that are named, whole. The last table holds the whole loss: both diagrams, the matchings and the gradient.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from machine import describe
from numpy import ndarray
from topology_volumes import KINDS, phantom, reconstruct

from nnunet_topomae.files import write_json
from nnunet_topomae.topology import TopologicalLoss, persistence_diagrams

BACKENDS = ("native", "cripser", "gudhi")


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


def compare_loss(size: int, kind: str, repeats: int) -> dict[str, Any]:
    """The whole loss with the target's diagrams given, by backend, and its ratio to cripser's homology alone."""
    volume = phantom((size, size, size))
    made = np.ascontiguousarray(reconstruct(volume, kind), np.float32)
    target = [[persistence_diagrams(volume)]]
    seconds = {}
    for backend in ("native", "cripser"):
        loss = TopologicalLoss(backend=backend, threads=1)

        def step(loss: TopologicalLoss = loss) -> None:
            reconstruction = torch.from_numpy(made)[None, None].requires_grad_()
            loss.start(None, reconstruction, target_diagrams=target).result().backward()

        step()
        seconds[backend] = cpu_seconds(step, repeats)
    alone = cpu_seconds(lambda: persistence_diagrams(made, backend="cripser"), repeats)
    ratio = seconds["native"] / alone
    print(f"| {kind} | {seconds['native']:.2f} | {seconds['cripser']:.2f} | {alone:.2f} | {ratio:.2f} |", flush=True)
    return {"kind": kind, "size": size, "seconds": seconds, "cripser_homology": alone, "loss_by_cripser": ratio}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96, 128])
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="images in any format of SimpleITK")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gudhi", action="store_true", help="also time gudhi, which is slow")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.repeats = [12], 1
    torch.set_num_threads(1)
    backends = BACKENDS if args.gudhi or args.quick else BACKENDS[:2]
    print(f"| volume | shape | equal | native, CPU s | {' | '.join(f'{b} / native' for b in backends[1:])} |")
    print(f"|---|---|---|---|{'---|' * (len(backends) - 1)}")
    volumes = _volumes(args.sizes, args.images)
    rows = [compare(name, volume, args.repeats, backends) for name, volume in volumes]
    print("\n| whole loss | native, CPU s | with cripser | cripser alone | native / cripser alone |")
    print("|---|---|---|---|---|")
    losses = [compare_loss(size, kind, args.repeats) for size in args.sizes[:2] for kind in KINDS]
    if args.out:
        write_json(args.out, {"machine": describe(torch.device("cpu")), "volumes": rows, "losses": losses})


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
