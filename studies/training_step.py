"""What L_topo adds to a pre-training step: step time with each region policy over the step time without it.

    python studies/training_step.py --quick                                      # tiny networks, 16x16x16: seconds
    python studies/training_step.py --device cpu --out training_step_cpu.json    # some minutes
    python studies/training_step.py --device cuda --out training_step_cuda.json

Both networks really compute; what L_topo sees is a converged reconstruction (the input, blurred, with a little noise),
as in most of a training. The target diagrams are made beforehand, as the loader's workers do. The policies take turns,
so that other work on the machine disturbs all alike; medians are compared. On a CPU that has other work too, compare
the CPU seconds: all threads of the process together.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, title
from topology_volumes import phantom, reconstruct
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.files import write_json
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, build_topological_loss
from nnunet_topomae.masking import CropMask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.schedules import build_adamw
from nnunet_topomae.training.steps import autocast, optimise

POLICIES = {
    "without": TopologyConfig(enabled=False),
    "crop 48": TopologyConfig(region="crop", region_size=48),
    "pool 48": TopologyConfig(region="pool", region_size=48),
    "full": TopologyConfig(region="full"),
}
BATCH_SIZE = 2
QUICK = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1, feature_size=4)


class Converged(nn.Module):
    """The network, with reconstructions replaced by converged ones that still carry its gradient."""

    def __init__(self, network: nn.Module, reconstruction: Tensor) -> None:
        super().__init__()
        self.network = network
        self.reconstruction = reconstruction

    def forward(
        self, data: Tensor, mask: CropMask, on_vit: Callable[[BranchOutput], None] | None = None
    ) -> CoPretrainingOutput:
        """As CoPretrainingNetwork."""
        hook = None if on_vit is None else lambda branch: on_vit(self.replaced(branch))
        output = self.network(data, mask, hook)
        return CoPretrainingOutput(self.replaced(output.vit), self.replaced(output.partner))

    def replaced(self, branch: BranchOutput) -> BranchOutput:
        """The branch with a converged reconstruction (B, C, D, H, W)."""
        return branch._replace(reconstruction=self.reconstruction + 0.0 * branch.reconstruction)


def build_step(policy: TopologyConfig, network: Converged, plan: Plan, device: torch.device) -> Callable[[Any], None]:
    """A function that does one optimiser step on a batch."""
    plan = replace(plan, config=replace(plan.config, topology=policy))
    term = build_topological_loss(policy)
    step = CoPretrainingStep(network, CoPretrainingLoss(plan.config.pretraining, policy), term, plan, device)
    optimizer = build_adamw(network, 1e-5, 0.05)
    scaler = torch.GradScaler("cuda") if device.type == "cuda" else None
    masks = torch.Generator().manual_seed(0)

    def run(batch: dict[str, Any]) -> None:
        with autocast(device):
            total = step(batch, masks, 1.0)["total"]
        optimise(total, network, optimizer, scaler, 1.0, batch["keys"])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def build_steps(
    device: torch.device, patch: Sequence[int], architecture: ArchitectureConfig, policies: Sequence[str] = (*POLICIES,)
) -> dict[str, Callable[[], None]]:
    """An optimiser step of every policy on one batch, after a first one, which compiles and allocates."""
    halvings = min(5, min(patch).bit_length() - 2)
    shape = derive_network_shape(patch, [[1, 1, 1], *[[2, 2, 2]] * halvings], architecture)
    plan = Plan(TopoMAEConfig(architecture=architecture), shape, (1.0, 1.0, 1.0), {})
    volumes = [phantom(shape.patch_size, seed) for seed in range(BATCH_SIZE)]
    converged = np.stack([reconstruct(volume, "late", seed) for seed, volume in enumerate(volumes)])[:, None]
    torch.manual_seed(0)
    network = build_copretraining_network(shape, 1, architecture).to(device)
    wrapped = Converged(network, torch.from_numpy(converged).to(device))
    batch = {
        "data": torch.from_numpy(np.stack(volumes))[:, None],  # (B, 1, D, H, W)
        "key_points": torch.zeros(BATCH_SIZE, 9, 3),
        "keys": ["phantom"] * BATCH_SIZE,
    }
    steps = {}
    for name in policies:
        policy = POLICIES[name]
        samples = dict(batch)
        if policy.enabled:
            target, rng = TopologyTarget(policy), np.random.default_rng(0)
            samples["target_topology"] = [target(volume, rng) for volume in batch["data"]]
        steps[name] = partial(build_step(policy, wrapped, plan, device), samples)
        steps[name]()
    return steps


def measure(
    device: torch.device, patch: Sequence[int], architecture: ArchitectureConfig, repeats: int
) -> dict[str, Any]:
    """Median step time of every policy, by the clock and in CPU seconds."""
    steps = build_steps(device, patch, architecture)
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in tqdm(range(repeats), unit="round", file=sys.stderr):
        for name, step in steps.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    return {
        "patch": list(patch),
        "batch_size": BATCH_SIZE,
        "vit": architecture.vit,
        "machine": describe(device),
        "seconds": seconds,
        "median": median,
        "ratio": {name: value / median["without"] for name, value in median.items()},
        "cpu_seconds": cpu_seconds,
        "cpu_ratio": {name: value / cpu["without"] for name, value in cpu.items()},
        "load": os.getloadavg()[0],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two rounds")
    parser.add_argument("--patch", nargs=3, type=int, default=[96, 96, 96], metavar=("D", "H", "W"))
    parser.add_argument("--vit", default="default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.patch, args.repeats = [16, 16, 16], 2
    architecture = QUICK if args.quick else ArchitectureConfig(vit=args.vit)
    result = measure(torch.device(args.device), args.patch, architecture, args.repeats)
    machine = result["machine"]
    sys.stdout.write(f"{title(machine)}, {machine['cores']} cores, {result['patch']}, batch {BATCH_SIZE}\n\n")
    columns = ("L_topo", "step, s", "ratio", "share of the step in which the networks wait", "ratio of CPU seconds")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|---|---|---|---|---|\n")
    for name, value in result["median"].items():
        ratio = result["ratio"][name]
        row = (
            name,
            f"{value:.2f}",
            f"{ratio:.2f}",
            f"{max(0.0, 1 - 1 / ratio):.0%}",
            f"{result['cpu_ratio'][name]:.2f}",
        )
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
