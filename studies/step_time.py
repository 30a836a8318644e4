"""Time of a training step (forward, backward, optimiser) over that of UNETR++ as published, at equal size.

    python studies/step_time.py --quick                                   # tiny networks, 16x16x16: seconds
    python studies/step_time.py --out step_time_cpu.json                  # CPU, 64x64x64, batch 2: fifteen minutes
    python studies/step_time.py --device cuda --out step_time_cuda.json   # 96x96x96 and 64x128x128, batch 2
    python studies/step_time.py --device cuda --compile                   # the same, compiled

The contestants take turns, so that other work on the machine disturbs all alike; medians are compared. On a CPU the
numbers are CPU seconds on one thread; on a GPU wall-clock seconds in mixed precision, waiting for the GPU. With large
crops, up to a third of the CPU seconds is the operating system's, which clears memory for new tensors. That share
varies from run to run. So the seconds without it ("user") are compared, too.

* Supervised: the same loss (cross-entropy, with deep supervision); the published network with SGD and Nesterov
  momentum, as it was trained, ours with AdamW, as our trainers do. The fusion network, and stock nnU-Net with SGD, show
  what a user's choices cost.
* Co-pre-training without L_topo (studies/training_step.py measures L_topo): the same step, once with the published
  network in place of our UNETR++.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from machine import describe, title
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from reference_unetrpp import ReferenceUNETRPP
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from nnunet_topomae.architectures.build import (
    build_copretraining_network,
    build_fusion_network,
    build_unetrpp,
)
from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.architectures.unetrpp import DEEP_SUPERVISION_WEIGHTS
from nnunet_topomae.config import ArchitectureConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.files import write_json
from nnunet_topomae.losses.copretraining import CoPretrainingLoss
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.schedules import build_adamw
from nnunet_topomae.training.steps import autocast, optimise

CLASSES = 14
SIZES: dict[str, list[tuple[list[int], int]]] = {  # patch and batch size
    "quick": [([16, 16, 16], 1)],
    # Of a single crop, torch computes small convolutions on one thread in a way that is over ten times slower.
    "cpu": [([64, 64, 64], 2)],
    "cuda": [([96, 96, 96], 2), ([64, 128, 128], 2)],
}
CONTESTANTS = ("published", "ours", "fusion", "nnU-Net", "co-pre-training, published", "co-pre-training, ours")
BASELINES = {
    "ours": "published",
    "fusion": "published",
    "nnU-Net": "published",
    "co-pre-training, ours": "co-pre-training, published",
}
# Too small to say anything: it shows that the command works.
QUICK = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1, feature_size=4)

Step = Callable[[], dict[str, float]]


def network_shape(patch: list[int], architecture: ArchitectureConfig) -> NetworkShape:
    """Sizes by our rule; 64x128x128 gives the published ones."""
    first = [1, 2, 2] if 2 * patch[0] == patch[1] else [2, 2, 2]
    halvings = min(4, min(patch).bit_length() - 3)
    return derive_network_shape(patch, [[1, 1, 1], first, *[[2, 2, 2]] * halvings], architecture)


def nnunet(patch: Sequence[int]) -> PlainConvUNet:
    """Stock nnU-Net's network, with the strides and channels that its planner chooses for isotropic voxels."""
    _, strides, kernels, _, _ = get_pool_and_conv_props((1.0, 1.0, 1.0), patch, 4, 999999)
    stages = len(strides)
    return PlainConvUNet(
        1,
        stages,
        [min(32 * 2**stage, 320) for stage in range(stages)],
        nn.Conv3d,
        kernels,
        strides,
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def nnunet_weights(outputs: int) -> list[float]:
    """nnU-Net's weights of deep supervision: halved with each scale, none for the coarsest."""
    raw = [0.5**scale for scale in range(outputs - 1)] + [0.0]
    return [weight / sum(raw) for weight in raw]


def supervised_loss(outputs: list[Tensor], target: Tensor, weights: Sequence[float]) -> Tensor:
    """Cross-entropy of all outputs."""
    loss = torch.zeros((), device=target.device)
    for weight, output in zip(weights, outputs, strict=True):
        if not weight:
            continue
        labels = F.interpolate(target, output.shape[2:], mode="nearest")[:, 0].long()
        loss = loss + weight * F.cross_entropy(output.float(), labels)
    return loss


def sgd(network: nn.Module) -> SGD:
    """The published optimiser, which is nnU-Net's."""
    return SGD(network.parameters(), 1e-4, momentum=0.99, weight_decay=3e-5, nesterov=True)


class Size(NamedTuple):
    """What is measured."""

    shape: NetworkShape
    architecture: ArchitectureConfig
    batch: int
    device: torch.device
    compiled: bool

    def prepare(self, network: nn.Module, ours: bool) -> nn.Module:
        """The network on its device, ours as our trainers prepare it; compiled if asked for."""
        network.to(self.device)
        if ours and self.device.type == "cpu":
            use_channels_last(network)
        return torch.compile(network) if self.compiled else network  # type: ignore[return-value]


def supervised(name: str, size: Size) -> Step:
    """A supervised step of one of the networks."""
    weights: Sequence[float] = DEEP_SUPERVISION_WEIGHTS
    if name == "published":
        network: nn.Module = ReferenceUNETRPP(size.shape, 1, CLASSES, size.architecture)
    elif name == "nnU-Net":
        network = nnunet(size.shape.patch_size)
        weights = nnunet_weights(len(network.decoder.seg_layers))
    else:
        build = build_fusion_network if name == "fusion" else build_unetrpp
        network = build(size.shape, 1, CLASSES, size.architecture, deep_supervision=True)
    ours = name in ("ours", "fusion")
    run = size.prepare(network, ours)
    optimizer = build_adamw(network, 1e-5, 0.05) if ours else sgd(network)
    volume = (size.batch, 1, *size.shape.patch_size)
    data = torch.randn(volume, device=size.device)
    target = torch.randint(CLASSES, volume, device=size.device).float()
    return timed(lambda: supervised_loss(run(data), target, weights), network, optimizer, size.device)


def copretraining(name: str, size: Size) -> Step:
    """A step of co-pre-training, with the published UNETR++ in it or with ours."""
    topology = TopologyConfig(enabled=False)
    plan = Plan(TopoMAEConfig(architecture=size.architecture, topology=topology), size.shape, (1.0, 1.0, 1.0), {})
    network = build_copretraining_network(size.shape, 1, size.architecture)
    if name.endswith("published"):
        published = ReferenceUNETRPP(size.shape, 1, 1, size.architecture, segmentation=False)
        network.encoder, network.decoder = published.encoder, published.decoder
    run = size.prepare(network, name.endswith("ours"))
    loss = CoPretrainingLoss(plan.config.pretraining, topology)
    step = CoPretrainingStep(run, loss, None, plan, size.device)
    masks = torch.Generator().manual_seed(0)
    data = torch.randn(size.batch, 1, *size.shape.patch_size)
    samples = {"data": data, "key_points": torch.zeros(size.batch, 9, 3), "keys": ["noise"] * size.batch}
    optimizer = build_adamw(network, 1e-5, 0.05)
    return timed(lambda: step(samples, masks, 0.0)["total"], network, optimizer, size.device)


def timed(compute_loss: Callable[[], Tensor], network: nn.Module, optimizer: Optimizer, device: torch.device) -> Step:
    """A function that does one optimiser step and returns its seconds: all of it, the forward part, the user part."""
    scaler = torch.GradScaler("cuda") if device.type == "cuda" else None

    def now() -> tuple[float, float]:
        if device.type != "cuda":
            return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        torch.cuda.synchronize(device)
        seconds = time.perf_counter()
        return seconds, seconds

    def step() -> dict[str, float]:
        start, user_start = now()
        with autocast(device):
            loss = compute_loss()
        forward, _ = now()
        optimise(loss, network, optimizer, scaler, 1.0, ["noise"])
        end, user_end = now()
        return {"step": end - start, "forward": forward - start, "user": user_end - user_start}

    return step


def measure(
    patch: list[int],
    batch: int,
    device: torch.device,
    repeats: int,
    compiled: bool = False,
    architecture: ArchitectureConfig | None = None,
    contestants: Sequence[str] = CONTESTANTS,
) -> dict[str, Any]:
    """Median seconds of every contestant at one size, and ratios."""
    architecture = architecture or ArchitectureConfig()
    size = Size(network_shape(patch, architecture), architecture, batch, device, compiled)
    steps: dict[str, Step] = {}
    for name in contestants:
        torch.manual_seed(0)
        steps[name] = (copretraining if name.startswith("co-pre-training") else supervised)(name, size)
        for _ in range(3 if device.type == "cuda" else 1):  # allocates, chooses kernels, compiles
            steps[name]()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in tqdm(range(repeats), desc="x".join(map(str, patch)), unit="round", file=sys.stderr):
        for name, step in steps.items():
            taken[name].append(step())
    median = {
        name: {part: statistics.median(values[part] for values in rounds) for part in rounds[0]}
        for name, rounds in taken.items()
    }
    ratios = {
        name: {part: seconds / median[BASELINES.get(name, name)][part] for part, seconds in parts.items()}
        for name, parts in median.items()
    }
    return {
        "patch": patch,
        "batch_size": batch,
        "compiled": compiled,
        "repeats": repeats,
        "median": median,
        "ratio": ratios,
        "seconds": taken,
    }


def table(row: dict[str, Any]) -> str:
    """Markdown of one size."""
    patch = "x".join(map(str, row["patch"]))
    lines = [
        f"{patch}, batch {row['batch_size']}{', compiled' if row['compiled'] else ''}",
        "",
        "| training step | seconds | ratio | ratio, user seconds | ratio, forward only |",
        "|---|---|---|---|---|",
    ]
    for name, parts in row["median"].items():
        ratio = row["ratio"][name]
        numbers = (parts["step"], ratio["step"], ratio["user"], ratio["forward"])
        lines.append(f"| {name} | {numbers[0]:.3f} | " + " | ".join(f"{number:.2f}" for number in numbers[1:]) + " |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two rounds")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, as nnU-Net does on a GPU")
    parser.add_argument("--patch", nargs=3, type=int, metavar=("D", "H", "W"), help="another size")
    parser.add_argument("--batch", type=int, default=1, help="batch size for --patch (default: 1)")
    parser.add_argument("--repeats", type=int, help="rounds (default: 7, on a GPU 20)")
    parser.add_argument("--out", type=Path, metavar="JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args = parse(argv)
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.benchmark = True  # as nnU-Net does
    sizes = [(args.patch, args.batch)] if args.patch else SIZES["quick" if args.quick else args.device]
    repeats = args.repeats or (2 if args.quick else 20 if args.device == "cuda" else 7)
    architecture = QUICK if args.quick else None
    result: dict[str, Any] = {"machine": describe(device), "sizes": []}
    sys.stdout.write(title(result["machine"]) + "\n")
    for patch, batch in sizes:
        result["sizes"].append(measure(patch, batch, device, repeats, args.compile, architecture))
        sys.stdout.write("\n" + table(result["sizes"][-1]) + "\n")
        sys.stdout.flush()
        if args.out:
            write_json(args.out, result)


if __name__ == "__main__":
    main()
