"""Which policy of L_topo trains best: short pre-trainings on real images, side by side, with the paper's weights.

    python studies/topology_training.py --name CT --images ct/*.nii.gz --window -175 250 --out training_ct.json
    python studies/topology_training.py --name MR --images mr/*.nii.gz --out training_mr.json
    python studies/topology_training.py --table training_ct.json training_mr.json
    python studies/topology_training.py --quick                   # three phantoms, two steps: shows that it works

Every variant starts from the same weights and sees the same crops and masks. At fixed steps, fixed crops of the images
left out give the hidden MSE of both networks and, as one yardstick for all variants, the exact topological distance of
the whole crop. Costs are CPU seconds on one torch thread, which other work on the machine hardly changes.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from topology_volumes import phantom
from tqdm import tqdm

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.files import write_json
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, build_topological_loss, compose_reconstruction
from nnunet_topomae.masking import crop_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import TopologicalLoss
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, cosine
from nnunet_topomae.training.steps import optimise

ARCHITECTURE = ArchitectureConfig(vit="tiny", dims=(16, 32, 64, 128), depth=1, drop_path=0.0)
BASE = TopologyConfig(region="crop", region_size=24, composition="paste", normalisation="per_voxel", threads=1)
VARIANTS: dict[str, tuple[TopologyConfig, float]] = {  # policy and the share of the training that is warm-up
    "no L_topo": (replace(BASE, enabled=False), 0.0),
    "crop, paste, per_voxel": (BASE, 0.2),
    "crop, paste, per_voxel, no warm-up": (BASE, 0.0),
    "crop, paste, per_voxel, weight x 10": (replace(BASE, weight=10.0), 0.2),
    "full, paste, per_voxel": (replace(BASE, region="full"), 0.2),
    "pool, paste, per_voxel": (replace(BASE, region="pool"), 0.2),
    "crop, full, per_voxel": (replace(BASE, composition="full"), 0.2),
    "crop, paste, paper": (replace(BASE, normalisation="paper"), 0.2),
    "full, full, paper": (replace(BASE, region="full", composition="full", normalisation="paper"), 0.0),
}
NETWORKS = ("vit", "partner")
LEARNING_RATE = 1e-3
BATCH_SIZE = 2


def read_images(paths: list[Path], window: list[float] | None) -> list[np.ndarray]:
    """Volumes (D, H, W): CT clipped to ``window`` and mapped to [0, 1], anything else to z-scores."""
    volumes = []
    for path in sorted(paths):
        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
        if window:
            volumes.append((np.clip(volume, *window) - window[0]) / (window[1] - window[0]))
        else:
            volumes.append((volume - volume.mean()) / volume.std())
    if len(volumes) < 2:
        raise SystemExit(f"{len(volumes)} images are not enough: at least 2 are needed, one of them left out")
    return volumes


def draw_batch(volumes: list[np.ndarray], patch: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Random crops of the volumes, padded with zeros where a volume is smaller, with key points."""
    crops, points = [], []
    for _ in range(BATCH_SIZE):
        volume = volumes[int(rng.integers(len(volumes)))]
        location = CropLocation.random(volume.shape, patch, rng)
        crops.append(crop_and_pad_nd(volume, [list(bounds) for bounds in location.bounds], 0))
        points.append(location.key_points())
    return {
        "data": torch.from_numpy(np.stack(crops))[:, None],  # (B, 1, D, H, W)
        "key_points": torch.from_numpy(np.stack(points)).float(),
        "keys": ["crop"] * BATCH_SIZE,
    }


class Run:
    """One variant's training."""

    def __init__(self, name: str, patch: tuple[int, int, int], strides: list[list[int]], steps: int) -> None:
        topology, self.warmup = VARIANTS[name]
        config = TopoMAEConfig(architecture=ARCHITECTURE, topology=topology, pretraining=PretrainingConfig())
        shape = derive_network_shape(patch, strides, ARCHITECTURE)
        self.plan = Plan(config, shape, (1.0, 1.0, 1.0), {})
        torch.manual_seed(0)
        self.network = build_copretraining_network(shape, 1, ARCHITECTURE)
        self.loss = CoPretrainingLoss(config.pretraining, topology)
        term = build_topological_loss(topology)
        self.step = CoPretrainingStep(self.network, self.loss, term, self.plan, torch.device("cpu"))
        self.optimizer = build_adamw(self.network, LEARNING_RATE, config.pretraining.weight_decay)
        self.schedule = WarmupSchedule(self.optimizer, 1, steps, max(1, steps // 10), cosine)
        self.target = TopologyTarget(topology) if topology.enabled else None
        self.masks = torch.Generator().manual_seed(0)
        self.steps = steps
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def train_step(self, number: int, batch: dict[str, Any]) -> None:
        """One step; its CPU time includes the target diagrams, which belong to L_topo's price."""
        scale = min(1.0, number / (self.warmup * self.steps)) if self.warmup else 1.0
        start = time.process_time()
        if self.target is not None:
            rng = np.random.default_rng(number)
            batch = {**batch, "target_topology": [self.target(volume, rng) for volume in batch["data"]]}
        optimise(
            self.step(batch, self.masks, scale)["total"],
            self.network,
            self.optimizer,
            None,
            self.plan.config.pretraining.clip,
            batch["keys"],
        )
        self.seconds += time.process_time() - start
        self.schedule.step(0, number + 1)

    def evaluate(self, number: int, batches: list[dict[str, Any]]) -> None:
        """Hidden MSE and the exact distance of the whole crop, the same for every variant."""
        yardstick = TopologicalLoss("full", normalisation="per_voxel", threads=1)
        masks = torch.Generator().manual_seed(1)
        sums: dict[str, list[float]] = {}
        self.network.eval()
        with torch.no_grad():
            for batch in batches:
                tokens = random_token_mask(BATCH_SIZE, self.plan.shape.token_grid, 0.5, masks)
                mask = crop_mask(tokens, self.plan.shape.token_size)
                hidden, output = mask.hidden, self.network(batch["data"], mask)
                terms = self.loss(output, batch["data"], hidden, batch["key_points"])
                for network in NETWORKS:
                    volume = getattr(output, network).reconstruction
                    pasted = compose_reconstruction(volume, batch["data"], hidden, "paste")
                    sums.setdefault(f"mse_{network}", []).append(float(terms[f"mse_{network}"]))
                    sums.setdefault(f"paste_{network}", []).append(float(yardstick(pasted, batch["data"])))
                    sums.setdefault(f"full_{network}", []).append(float(yardstick(volume, batch["data"])))
        self.network.train()
        self.curve.append({"step": number, "cpu_s": self.seconds, **{k: float(np.mean(v)) for k, v in sums.items()}})

    def gradient_shares(self, batch: dict[str, Any]) -> dict[str, float]:
        """Norm of a network's gradient of the weighted L_topo relative to the weighted MSE's, and their cosine."""
        if self.target is None:
            return {}
        rng = np.random.default_rng(0)
        batch = {**batch, "target_topology": [self.target(volume, rng) for volume in batch["data"]]}
        terms = self.step(batch, torch.Generator().manual_seed(2), 1.0)
        parameters = list(self.network.parameters())
        shares = {}
        for network in NETWORKS:
            mse, topo = (self._gradient(f"{term}_{network}", terms, parameters) for term in ("mse", "topo"))
            shares[f"ratio_{network}"] = float(topo.norm() / mse.norm())
            shares[f"cosine_{network}"] = float(topo @ mse / (topo.norm() * mse.norm()))
        return shares

    def _gradient(self, name: str, terms: Mapping[str, torch.Tensor], parameters: list[Any]) -> torch.Tensor:
        weighted = self.loss.weights[name] * terms[name]
        gradients = torch.autograd.grad(weighted, parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None])


def train(name: str, volumes: list[np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant and return its curve and gradient shares."""
    held_out = volumes[-max(1, len(volumes) // 5) :]
    training = volumes[: -len(held_out)]
    patch = tuple(args.patch)
    run = Run(name, patch, args.strides, args.steps)
    rng = np.random.default_rng(args.seed)
    fixed_rng = np.random.default_rng(args.seed + 1)
    fixed = [draw_batch(held_out, patch, fixed_rng) for _ in range(4)]
    every = max(1, args.steps // 8)
    shares = []
    for number in tqdm(range(args.steps), desc=name, unit="step", file=sys.stderr, mininterval=10):
        if number % every == 0:
            run.evaluate(number, fixed)
        if number in (args.steps // 8, args.steps // 2):
            shares.append({"step": number, **run.gradient_shares(fixed[0])})
        run.train_step(number, draw_batch(training, patch, rng))
    run.evaluate(args.steps, fixed)
    shares.append({"step": args.steps, **run.gradient_shares(fixed[0])})
    return {"curve": run.curve, "gradients": shares}


def at_cpu_seconds(curve: list[dict[str, float]], key: str, seconds: float) -> float:
    """Value of a curve after ``seconds`` of training, linear between evaluations."""
    return float(np.interp(seconds, [point["cpu_s"] for point in curve], [point[key] for point in curve]))


def table(result: dict[str, Any]) -> str:
    """Markdown: end of training, the same at equal CPU time, price and gradient shares."""
    runs = result["variants"]
    budget = min(run["curve"][-1]["cpu_s"] for run in runs.values())
    plain = runs["no L_topo"]["curve"][-1]["cpu_s"]
    lines = [
        f"{result['name']}: {result['images']} images, crops {result['patch']}, {result['steps']} steps",
        "",
        "| variant | MSE ViT / UNETR++ | at equal CPU time | distance, pasted | distance, raw | CPU time "
        "| gradient L_topo / MSE |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        end, curve = run["curve"][-1], run["curve"]
        shares = [[f"{point[f'ratio_{n}']:.2g}" for point in run["gradients"] if len(point) > 1] for n in NETWORKS]
        cells = [
            " / ".join(f"{end[f'mse_{n}']:.4f}" for n in NETWORKS),
            " / ".join(f"{at_cpu_seconds(curve, f'mse_{n}', budget):.4f}" for n in NETWORKS),
            " / ".join(f"{end[f'paste_{n}']:.4f}" for n in NETWORKS),
            " / ".join(f"{end[f'full_{n}']:.4f}" for n in NETWORKS),
            f"{end['cpu_s'] / plain:.2f}",
            " / ".join(", ".join(values) for values in shares) if shares[0] else "-",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or print the tables of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="only print the tables of these results")
    parser.add_argument("--name", default="images")
    parser.add_argument("--images", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="CT window in HU")
    parser.add_argument("--patch", nargs=3, type=int, default=[24, 48, 48], metavar=("D", "H", "W"))
    parser.add_argument("--strides", type=json.loads, default=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="add these variants to the results in --out")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="phantoms, two variants and two steps")
    args = parser.parse_args(argv)
    if args.table:
        sys.stdout.write("\n\n".join(table(json.loads(path.read_text())) for path in args.table) + "\n")
        return
    if not args.quick and not (args.images and args.out):
        parser.error("--images and --out are needed")
    torch.set_num_threads(1)
    if args.quick:
        args.name, args.patch, args.steps, args.only = "phantoms", [16, 16, 16], 2, None
    volumes = (
        [phantom((20, 20, 20), seed) for seed in range(3)] if args.quick else read_images(args.images, args.window)
    )
    result = {
        "name": args.name,
        "images": len(volumes),
        "patch": args.patch,
        "steps": args.steps,
        "seed": args.seed,
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "variants": json.loads(args.out.read_text())["variants"] if args.only else {},
    }
    for name in args.only or list(VARIANTS)[: 2 if args.quick else None]:
        result["variants"][name] = train(name, volumes, args)
        if args.out:
            write_json(args.out, result)
    sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
