"""What the spatial task can learn: short pre-trainings with and without flips, in both frames of the key points.

    python studies/spatial_task.py --name MR --images mr/*.nii.gz --patch 24 32 24 --out spatial_task.json
    python studies/spatial_task.py --name CT --images ct/*.nii.gz --window -175 250 --patch 32 24 24 --out more.json
    python studies/spatial_task.py --table spatial_task.json    # of several runs with the same --out
    python studies/spatial_task.py --quick --out quick.json    # three phantoms, four steps: shows that it works

All variants start from the same weights and train both networks with the paper's weights of the losses, without L_topo.
The error of the key points, L_spa, is measured on crops of the images left out, drawn and flipped as in the variant's
training. It stands next to two numbers that need no network: the error of always answering the mean target of the
training, and the variance of the crops' places alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from image_study import image_parser, read_volumes
from machine import describe
from topology_training import ARCHITECTURE
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import PretrainingConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data.key_point_statistics import key_point_statistics
from nnunet_topomae.data.transforms import Places, turn_crop
from nnunet_topomae.files import write_json
from nnunet_topomae.losses.copretraining import CoPretrainingLoss
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import CoPretrainingStep, detach_terms
from nnunet_topomae.training.schedules import build_adamw
from nnunet_topomae.training.steps import optimise

AXES = (0, 1, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "no flips": {"flip_axes": ()},
    "flips, frame `volume`": {"flip_axes": AXES, "flip_frame": "volume"},
    "flips, frame `crop`": {"flip_axes": AXES, "flip_frame": "crop"},
}
NETWORKS = ("vit", "partner")
CPU = torch.device("cpu")
BATCH_SIZE = 2
LEARNING_RATE = 1e-3


def draw_batch(volumes: list[np.ndarray], config: PretrainingConfig, patch: Any, rng: Any) -> dict[str, Any]:
    """A batch as data.loaders.CropLocationLoader draws it, from volumes (D, H, W) in memory."""
    crops, points, locations = [], [], []
    for _ in range(BATCH_SIZE):
        volume = volumes[int(rng.integers(len(volumes)))]
        places = Places(patch, config.flip_axes, config.flip_frame)
        location, turn = places.draw(volume.shape, rng)
        crop = torch.from_numpy(crop_and_pad_nd(volume, [list(b) for b in location.bounds], 0))
        crops.append(turn_crop(crop[None], turn))
        points.append(torch.from_numpy(places.key_points(location, turn)))
        locations.append(location.turned(turn))
    return {"data": torch.stack(crops), "key_points": torch.stack(points), "locations": locations}


def train(name: str, volumes: list[np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant and return its errors on crops of the images left out."""
    held_out = volumes[-max(1, len(volumes) // 5) :]
    training = volumes[: -len(held_out)]
    section, patch = PretrainingConfig(**VARIANTS[name]), tuple(args.patch)
    topology = TopologyConfig(enabled=False)
    shape = derive_network_shape(patch, args.strides, ARCHITECTURE)
    plan = Plan(TopoMAEConfig(ARCHITECTURE, section, topology), shape, (1.0, 1.0, 1.0), {})
    torch.manual_seed(args.seed)
    network = build_copretraining_network(shape, 1, ARCHITECTURE)
    step = CoPretrainingStep(network, CoPretrainingLoss(section, topology), None, plan, CPU)
    optimizer = build_adamw(network, LEARNING_RATE, section.weight_decay)
    schedule = OneCycleLR(
        optimizer, LEARNING_RATE, args.steps, pct_start=max(0.1, 2 / args.steps), cycle_momentum=False
    )
    rng, masks = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    start = time.process_time()
    for _ in tqdm(range(args.steps), desc=name, unit="step", file=sys.stderr, mininterval=10):
        batch = draw_batch(training, section, patch, rng)
        optimise(step(batch, masks, 0.0)["total"], network, optimizer, None, section.clip, [name])
        schedule.step()
    seconds = time.process_time() - start
    network.eval()
    return {**evaluate(step, section, training, held_out, args), "cpu_s": round(seconds, 1)}


def evaluate(
    step: CoPretrainingStep,
    section: PretrainingConfig,
    training: list[np.ndarray],
    held_out: list[np.ndarray],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """L_spa of both networks on fixed crops of the images left out, and what needs no network."""
    patch, rng = tuple(args.patch), np.random.default_rng(args.seed + 1)
    masks = torch.Generator().manual_seed(args.seed + 1)
    drawn = [draw_batch(training, section, patch, rng)["key_points"] for _ in range(200)]
    mean = torch.cat(drawn).mean(dim=0)  # (9, 3)
    batches = [draw_batch(held_out, section, patch, rng) for _ in range(args.crops // BATCH_SIZE)]
    with torch.no_grad():
        terms = [detach_terms(step(batch, masks, 0.0)) for batch in batches]
    targets = torch.cat([batch["key_points"] for batch in batches])
    shapes = [volume.shape for volume in held_out]
    return {
        "spa": {n: float(np.mean([term[f"spa_{n}"] for term in terms])) for n in NETWORKS},
        "mean_answer": float((targets - mean).square().mean()),
        "location_variance": key_point_statistics(
            shapes, Places(patch, section.flip_axes, section.flip_frame)
        ).location,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: what was learned next to what needs no network."""
    lines = [
        "| images, crop | training | always the mean | places alone | L_spa ViT | L_spa UNETR++ |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for variant, run in result["variants"].items():
            numbers = [run["mean_answer"], run["location_variance"], *(run["spa"][n] for n in NETWORKS)]
            crop = "x".join(map(str, result["patch"]))
            lines.append(f"| {name}, {crop} | {variant} | " + " | ".join(f"{value:.4f}" for value in numbers) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study on one set of images, or print the table of earlier ones."""
    parser = image_parser(__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--crops", type=int, default=200, help="held-out crops to measure on")
    args = parser.parse_args(argv)
    if args.table:
        sys.stdout.write(table(json.loads(args.table.read_text())) + "\n")
        return
    volumes = read_volumes(args, parser, quick_crops=2 * BATCH_SIZE)
    torch.set_num_threads(1)
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    results[args.name] = {
        "images": len(volumes),
        "patch": args.patch,
        "steps": args.steps,
        "batch_size": BATCH_SIZE,
        "crops": args.crops,
        "seed": args.seed,
        "machine": describe(CPU),
        "variants": {name: train(name, volumes, args) for name in VARIANTS},
    }
    write_json(args.out, results)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
