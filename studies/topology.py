"""Measures the topological loss: exactness, certificate, speed, memory, threads, and its peers.

    python studies/topology.py --out topology.json        # about ten minutes
    python studies/topology.py --quick                    # half a minute, small sizes

    python studies/topology.py --out topology.json --only threads     # measure a part again

Costs on one thread are CPU seconds of the process, which other work on the machine hardly changes; only the test of
two threads needs wall-clock time, waits for an idle machine and says how idle it was.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cripser
import numba
import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from topology_volumes import KINDS, ct_crops, h1_pair, pathologies, phantom, reconstruct, thin

from nnunet_topomae.files import write_json
from nnunet_topomae.topology import (
    TopologicalLoss,
    persistence_diagrams,
    wasserstein_matching,
)

VIOLATION = 1e-12  # intensities lie in [0, 1]
FIRST_CALL = """
import time
import torch
from nnunet_topomae.topology import TopologicalLoss
volume = torch.rand((2, 1, 1, 12, 12, 12), generator=torch.Generator().manual_seed(0))
start = time.process_time()
TopologicalLoss(threads=1)(volume[0].requires_grad_(), volume[1]).backward()
print(time.process_time() - start)
"""


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def cpu_seconds(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Least CPU time of some runs, and the result."""
    least, result = np.inf, None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        least = min(least, time.process_time() - start)
    return float(least), result


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most memory in numpy arrays at a time during a run."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@numba.njit(error_model="numpy")
def count_violations(first: ndarray, second: ndarray, u: ndarray, v: ndarray, tolerance: float) -> int:
    """Pairs that cost less than the sum of their potentials; looks at every pair."""
    violations = 0
    for i in range(first.shape[0]):
        for j in range(second.shape[0]):
            distance = max(abs(first[i, 0] - second[j, 0]), abs(first[i, 1] - second[j, 1]))
            violations += u[i] + v[j] > distance * distance + tolerance
    return violations


def dense_cost(first: ndarray, second: ndarray) -> float:
    """Squared distance from the full assignment problem."""
    n, m = len(first), len(second)
    costs = np.zeros((n + m, n + m))
    costs[:n, :m] = np.abs(first[:, None] - second[None]).max(axis=2) ** 2
    costs[:n, m:] = ((first[:, 0] - first[:, 1]) ** 2 / 4)[:, None]
    costs[n:, :m] = ((second[:, 0] - second[:, 1]) ** 2 / 4)[None]
    return float(costs[linear_sum_assignment(costs)].sum())


def measure_exactness(problems: int) -> dict[str, Any]:
    """Largest relative error over random problems with ties, copies, empty sides and unequal sizes."""
    worst = 0.0
    for seed in range(problems):
        generator = np.random.default_rng(seed)
        sides = []
        for _ in range(2):
            size = int(generator.integers(0, 150))
            births, lengths = generator.random(size), generator.exponential((0.02, 0.2, 1.0)[seed % 3], size)
            if seed % 4 == 1:
                births, lengths = np.round(births, 1), np.round(lengths, 1)
            if seed % 4 == 2 and size:
                chosen = generator.integers(0, max(1, size // 5), size)
                births, lengths = births[chosen], lengths[chosen]
            sides.append(np.stack([births, births - lengths], axis=1))
        exact = dense_cost(*sides)
        worst = max(worst, abs(wasserstein_matching(*sides).cost - exact) / max(exact, 1e-300) if exact else 0.0)
    return {"problems": problems, "largest_relative_error": worst}


def measure_pair(target: ndarray, made: ndarray, repeats: int, check: bool) -> dict[str, Any]:
    """Cost of persistent homology and matching of one pair of volumes, and the certificate."""
    homology_target, first = cpu_seconds(lambda: persistence_diagrams(target), repeats)
    homology, second = cpu_seconds(lambda: persistence_diagrams(made), repeats)
    bare, _ = cpu_seconds(lambda: cripser.computePH(-made.astype(np.float64), maxdim=2), repeats)
    seconds, gap, violations, squared = [], 0.0, 0, 0.0
    runs = [lambda k=k: wasserstein_matching(first[k].points, second[k].points) for k in range(3)]
    for k in range(3):
        taken, matching = cpu_seconds(runs[k], repeats)
        seconds.append(taken)
        squared += matching.cost
        gap = max(gap, matching.gap)
        if check:
            violations += count_violations(first[k].points, second[k].points, *matching.potentials, VIOLATION)
    return {
        "shape": list(target.shape),
        "points": [[len(first[k]), len(second[k])] for k in range(3)],
        "homology_target": homology_target,
        "homology": homology,
        "cripser": bare,
        "matching": seconds,
        "ratio": sum(seconds) / bare,
        "loss": float(np.sqrt(squared)),
        "gap": gap,
        "violations": violations if check else None,
        "bytes": max(peak_bytes(run) for run in runs),
    }


def measure_volumes(sizes: list[int], largest_checked: int) -> list[dict[str, Any]]:
    """All kinds of reconstruction at all sizes."""
    rows = []
    for size in sizes:
        target = phantom((size, size, size))
        for kind in KINDS if size <= 96 else ("late",):
            repeats = 3 if size <= 64 else 1
            row = {"kind": kind, **measure_pair(target, reconstruct(target, kind), repeats, size <= largest_checked)}
            rows.append(row)
            say(
                f"  {size:3d}^3 {kind:5s} cripser {row['cripser']:6.3f} s, matching {sum(row['matching']):6.3f} s, "
                f"ratio {row['ratio']:5.2f}, gap {row['gap']:.0e}, violations {row['violations']}"
            )
    return rows


def measure_real(edge: int) -> list[dict[str, Any]]:
    """Crops of real CT."""
    rows = []
    for name, crop in ct_crops(edge):
        for kind in ("late", "noisy"):
            rows.append({"case": name, "kind": kind, **measure_pair(crop, reconstruct(crop, kind), 1, True)})
            say(f"  {name} {kind} {crop.shape}: ratio {rows[-1]['ratio']:.2f}, gap {rows[-1]['gap']:.0e}")
    return rows


def pot_dense(first: ndarray, second: ndarray) -> float:
    """POT's network simplex on the full cost matrix with one diagonal node on either side, run to the optimum."""
    import ot

    n, m = len(first), len(second)
    costs = np.zeros((n + 1, m + 1))
    costs[:n, :m] = np.abs(first[:, None] - second[None]).max(axis=2) ** 2
    costs[:n, m], costs[n, :m] = (first[:, 0] - first[:, 1]) ** 2 / 4, (second[:, 0] - second[:, 1]) ** 2 / 4
    return float(ot.emd2(np.append(np.ones(n), m), np.append(np.ones(m), n), costs, numItermax=10**9))


def measure_peers(size: int, quick: bool) -> list[dict[str, Any]]:
    """gudhi.hera (delta 0.01) and POT dense against ours on the same diagrams."""
    import gudhi.hera

    rows = []
    full = h1_pair(size)
    for n in (300,) if quick else (5000, min(map(len, full))):
        pair = [thin(points, n) for points in full]
        ours, matching = cpu_seconds(lambda pair=pair: wasserstein_matching(*pair), 3)
        hera, found = cpu_seconds(
            lambda pair=pair: gudhi.hera.wasserstein_distance(
                -pair[0], -pair[1], order=2, internal_p=np.inf, delta=0.01
            )
        )
        row = {"n": n, "ours": ours, "hera": hera, "hera_error": found / np.sqrt(matching.cost) - 1}
        if n <= 5000:
            row["pot"], cost = cpu_seconds(lambda pair=pair: pot_dense(*pair))
            row["pot_error"] = cost / matching.cost - 1
        rows.append(row)
        say(f"  n = {n}: ours {ours:.4f} s, hera {hera:.2f} s, POT dense {row.get('pot', float('nan')):.1f} s")
    return rows


def measure_scaling_peers(sizes: list[int]) -> list[dict[str, Any]]:
    """Persistent homology and matching of all dimensions by other libraries."""
    import gudhi.hera

    from nnunet_topomae.topology import matching as module

    rows = []
    for size in sizes:
        target = phantom((size, size, size))
        made = reconstruct(target, "late")
        gudhi_homology, second = cpu_seconds(lambda made=made: persistence_diagrams(made, backend="gudhi"))
        first = persistence_diagrams(target)
        pairs = [(first[k].points, second[k].points) for k in range(3)]
        row: dict[str, Any] = {"size": size, "gudhi_homology": gudhi_homology}
        row["hera"] = sum(
            cpu_seconds(lambda a=a, b=b: gudhi.hera.wasserstein_distance(-a, -b, order=2, internal_p=np.inf))[0]
            for a, b in pairs
        )
        if size <= 64:
            module.COMPILED = False
            row["sparse"] = sum(cpu_seconds(lambda a=a, b=b: wasserstein_matching(a, b))[0] for a, b in pairs)
            row["sparse_bytes"] = max(peak_bytes(lambda a=a, b=b: wasserstein_matching(a, b)) for a, b in pairs)
            module.COMPILED = True
        rows.append(row)
        say(f"  {size}^3: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items() if key != "size"))
    return rows


def measure_pathologies(n: int) -> list[dict[str, Any]]:
    """Cost and certificate of each."""
    rows = []
    for name, (first, second) in pathologies(n).items():
        seconds, matching = cpu_seconds(lambda a=first, b=second: wasserstein_matching(a, b))
        valid = matching.lower_bound <= matching.cost * (1 + 1e-12)
        rows.append({"name": name, "seconds": seconds, "gap": matching.gap, "valid": bool(valid)})
        say(f"  {name}: {len(first)} x {len(second)} {seconds:.3f} s, gap {matching.gap:.0e}")
    return rows


def idle_share(seconds: float = 2.0) -> float:
    """Share of all cores' time in which nothing ran, on Linux; elsewhere NaN."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return float("nan")
    before, after = [], []
    for counts in (before, after):
        counts += [int(count) for count in statistics.read_text().splitlines()[0].split()[1:9]]
        time.sleep(seconds if counts is before else 0.0)
    spent = [end - start for start, end in zip(before, after, strict=True)]
    return spent[3] / sum(spent)


def measure_threads(size: int, patience: float) -> dict[str, Any]:
    """Wall-clock speed-up of the whole loss on a batch of four with two threads; the best of five."""
    target = np.stack([phantom((size, size, size), seed) for seed in range(4)])[:, None]
    made = np.stack([reconstruct(volume[0], "late") for volume in target])[:, None]
    batch = torch.from_numpy(made), torch.from_numpy(target)
    until = time.monotonic() + patience
    idle = idle_share()
    while idle < 0.93 and time.monotonic() < until:
        idle = idle_share()
    least = {}
    for threads in (1, 2):
        loss = TopologicalLoss(threads=threads)
        loss(*batch)
        walls = []
        for _ in range(5):
            start = time.perf_counter()
            loss(*batch)
            walls.append(time.perf_counter() - start)
        least[threads] = min(walls)
    return {"size": size, "one": least[1], "two": least[2], "speedup": least[1] / least[2], "idle_before": idle}


def measure_gradient() -> dict[str, Any]:
    """Largest difference between the gradient of the whole loss and central differences."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand((2, 1, 1, 9, 12, 10), dtype=torch.float64, generator=generator)
    loss, step, worst = TopologicalLoss(), 1e-6, 0.0
    second.requires_grad_()
    loss(second, first).backward()
    assert second.grad is not None
    for index in torch.randperm(second.numel(), generator=generator)[:200].tolist():
        moved = [second.detach().clone() for _ in range(2)]
        moved[0].view(-1)[index] += step
        moved[1].view(-1)[index] -= step
        slope = (loss(moved[0], first) - loss(moved[1], first)).item() / (2 * step)
        worst = max(worst, abs(slope - second.grad.view(-1)[index].item()))
    return {"voxels": 200, "largest_error": worst, "largest_gradient": second.grad.abs().max().item()}


def measure_first_call(repeats: int = 3) -> dict[str, float]:
    """CPU seconds of the first loss in a new process: without compiled code on disk, and with it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}

        def seconds() -> float:
            command = [sys.executable, "-c", FIRST_CALL]
            run = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
            return float(run.stdout)

        compiling = seconds()
        cached = min(seconds() for _ in range(repeats))
    return {"compiling": compiling, "cached": cached}


def verdicts(results: dict[str, Any]) -> list[tuple[str, float, float, float, bool]]:
    """Rows (quantity, measured, must, aim, higher is better)."""
    volumes = results["volumes"]
    largest = [row for row in volumes if row["shape"][0] == min(96, max(r["shape"][0] for r in volumes))]
    late = {row["shape"][0]: row for row in volumes if row["kind"] == "late"}
    per_voxel = {s: (r["homology"] + r["homology_target"] + sum(r["matching"])) / s**3 for s, r in late.items()}
    sizes = sorted(size for size in late if size >= 48)
    checked = [row["violations"] for row in volumes + results["real"] if row["violations"] is not None]
    rows = [
        ("relative error, random problems", results["exactness"]["largest_relative_error"], 1e-10, 1e-10, False),
        ("relative gap, volumes", max(r["gap"] for r in volumes + results["real"]), 1e-12, 1e-12, False),
        ("dual violations, volumes", float(sum(checked)), 0, 0, False),
        ("matching / cripser, converged", next(r["ratio"] for r in largest if r["kind"] == "late"), 3, 1.5, False),
        ("matching / cripser, worst kind", max(r["ratio"] for r in largest), 15, 6, False),
        ("slowest pathology, s", max(r["seconds"] for r in results["pathologies"]), 30, 2, False),
        ("pathologies without valid bounds", float(sum(not r["valid"] for r in results["pathologies"])), 0, 0, False),
        ("extra memory, converged, MB", next(r["bytes"] for r in largest if r["kind"] == "late") / 1e6, 100, 32, False),
        ("extra memory, worst kind, MB", max(r["bytes"] for r in largest) / 1e6, 100, 32, False),
        ("speed-up by two threads", results["threads"]["speedup"], 1.7, 1.9, True),
        (f"cost per voxel, {sizes[-1]}^3 / 48^3", per_voxel[sizes[-1]] / per_voxel[sizes[0]], 2.5, 1.5, False),
        ("finite differences", results["gradient"]["largest_error"], 1e-8, 1e-8, False),
        ("first call, s", results["first_call"]["compiling"], 10, 2, False),
        ("first call, cached, s", results["first_call"]["cached"], 0.3, 0.1, False),
    ]
    for row in results["peers"]:
        rows.append((f"gudhi.hera / ours, n = {row['n']}", row["hera"] / row["ours"], 25, 60, True))
        if "pot" in row:
            rows.append((f"POT dense / ours, n = {row['n']}", row["pot"] / row["ours"], 500, 2500, True))
    return rows


def report(results: dict[str, Any]) -> str:
    """The table of measured values against what must and what should be reached."""
    lines = ["| quantity | measured | must | aim | |", "|---|---|---|---|---|"]
    for name, value, must, aim, higher in verdicts(results):
        reached = [value >= limit if higher else value <= limit for limit in (must, aim)]
        verdict = "aim" if reached[1] else "must" if reached[0] else "MISSED"
        lines.append(f"| {name} | {value:.3g} | {must:g} | {aim:g} | {verdict} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", help="measure these parts again and take the others from --out")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    wasserstein_matching([[1.0, 0.0]], [[1.0, 0.5]])
    results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if arguments.only:
        results = json.loads(arguments.out.read_text())
    steps: dict[str, Callable[[], Any]] = {
        "exactness": lambda: measure_exactness(50 if quick else 2000),
        "volumes": lambda: measure_volumes([48] if quick else [32, 48, 64, 96, 128], 48 if quick else 96),
        "real": lambda: measure_real(32 if quick else 96),
        "pathologies": lambda: measure_pathologies(300 if quick else 3000),
        "gradient": measure_gradient,
        "first_call": lambda: measure_first_call(1 if quick else 3),
        "threads": lambda: measure_threads(24 if quick else 64, 0.0 if quick else 900.0),
        "peers": lambda: measure_peers(32 if quick else 96, quick),
        "scaling_peers": lambda: measure_scaling_peers([24] if quick else [32, 48, 64]),
    }
    for name in arguments.only or steps:
        say(f"{name} (load {os.getloadavg()[0]:.1f})")
        results[name] = steps[name]()
    if arguments.out:
        write_json(arguments.out, results)
    say(report(results))


if __name__ == "__main__":
    main()
