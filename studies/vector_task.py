"""Do networks learn where a crop was taken? Errors of vectors and key points on images that were left out.

    python studies/vector_task.py --name MR --images mr/*.nii.gz --patch 24 32 24 --out vector_task.json
    python studies/vector_task.py --name MR --images ... --variants "vectors" --out vector_task.json
    python studies/vector_task.py --table vector_task.json    # of several runs with the same --out
    python studies/vector_task.py --quick --out quick.json    # three phantoms, four steps: shows that it works

All variants train UNETR++ alone, with the loader, losses and step of the pre-trainers and a cosine schedule. Errors are
those of 200 random crops of the images left out, augmented as in the variant's training, next to the error of always
answering the mean.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from image_study import image_parser, read_volumes
from machine import describe
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from topology_training import ARCHITECTURE
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import PretrainingConfig, TopologyConfig, TopoMAEConfig, VectorPOSEConfig
from nnunet_topomae.data.loaders import CropLocationLoader, build_pretraining_loader
from nnunet_topomae.files import write_json
from nnunet_topomae.losses.copretraining import CoPretrainingLoss
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.networks import pretraining_network
from nnunet_topomae.training.schedules import build_adamw
from nnunet_topomae.training.spatial_errors import measure_spatial_errors
from nnunet_topomae.training.steps import optimise

CPU = torch.device("cpu")
LABELS = LabelManager({"background": 0, "organ": 1}, None)
LEARNING_RATE = 1e-3
_STILL = VectorPOSEConfig(tasks="vectors", scale=(1.0, 1.0), rotate=False, flip_axes=())
_MASKED = PretrainingConfig(lambda1=1.0, lambda3=0.0)
# VectorPOSE, or masked reconstruction with the paper's weights.
VARIANTS: dict[str, VectorPOSEConfig | PretrainingConfig] = {
    "VectorPOSE": VectorPOSEConfig(),
    "vectors": VectorPOSEConfig(tasks="vectors"),
    "vectors, no augmentation": _STILL,
    "VectorPOSE, no augmentation": replace(_STILL, tasks="both"),
    "masked, vectors": replace(_MASKED, spatial="vectors"),
    "masked, key points": _MASKED,
}


class Images:
    """Volumes (D, H, W) in memory, as nnU-Net's data sets hand them out."""

    def __init__(self, volumes: list[np.ndarray]) -> None:
        self.volumes = {f"image{number}": volume[None] for number, volume in enumerate(volumes)}
        self.identifiers = list(self.volumes)

    def load_case(self, case: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        """The image, and a label map of zeros."""
        return self.volumes[case], np.zeros_like(self.volumes[case]), None, {}


def make_plan(name: str, args: argparse.Namespace) -> Plan:
    """What a variant trains."""
    variant, topology = VARIANTS[name], TopologyConfig(enabled=False)
    architecture = replace(ARCHITECTURE, vit="none")
    if isinstance(variant, VectorPOSEConfig):
        config = TopoMAEConfig(architecture, topology=topology, vectorpose=variant).for_vectorpose()
    else:
        config = TopoMAEConfig(architecture, variant, topology)
    shape = derive_network_shape(tuple(args.patch), args.strides, architecture)
    return Plan(config, shape, tuple(args.spacing), {})


def train(name: str, volumes: list[np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant and return its errors on images left out."""
    held_out = volumes[-max(1, len(volumes) // 5) :]
    plan = make_plan(name, args)
    section = plan.config.pretraining
    torch.manual_seed(args.seed)
    network = pretraining_network(plan, 1)
    step = CoPretrainingStep(network, CoPretrainingLoss(section, plan.config.topology, False), None, plan, CPU)
    optimizer = build_adamw(network, LEARNING_RATE, section.weight_decay)
    schedule = OneCycleLR(
        optimizer, LEARNING_RATE, args.steps, pct_start=max(0.1, 2 / args.steps), cycle_momentum=False
    )
    loader = _loader(volumes[: -len(held_out)], plan, args)
    masks = torch.Generator().manual_seed(args.seed)
    start = time.process_time()
    for _ in tqdm(range(args.steps), desc=name, unit="step", file=sys.stderr, mininterval=10):
        batch = next(loader)
        optimise(step(batch, masks, 0.0), network, optimizer, None, section.clip, batch["keys"])
        schedule.step()
    spent = round(time.process_time() - start, 1)
    network.eval()
    of_held_out = _loader(held_out, plan, args)
    found = measure_spatial_errors(network, of_held_out, plan, of_held_out.indices, CPU, args.crops)
    return {"cpu_s": spent, **{errors.task: errors.facts() for errors in found}}


def _loader(volumes: list[np.ndarray], plan: Plan, args: argparse.Namespace) -> CropLocationLoader:
    return build_pretraining_loader(Images(volumes), args.batch_size, plan, LABELS, args.seed)


def table(results: dict[str, Any]) -> str:
    """Markdown: each variant next to always answering the mean."""
    lines = ["| images, crop | training | steps | task | error | always the mean |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for variant, run in result["variants"].items():
            for task in ("vectors", "key_points"):
                if task in run:
                    error, mean = (_words(run[task][which]) for which in ("partner", "mean_answer"))
                    crop, words = "x".join(map(str, result["patch"])), task.replace("_", " ")
                    lines.append(f"| {name}, {crop} | {variant} | {result['steps']} | {words} | {error} | {mean} |")
    return "\n".join(lines)


def _words(errors: dict[str, float]) -> str:
    degrees = f", {errors['degrees']:.0f} degrees" if "degrees" in errors else ""
    return f"{errors['mm']:.2f} mm{degrees}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study on one set of images, or print the table of earlier ones."""
    parser = image_parser(__doc__)
    parser.add_argument("--spacing", nargs=3, type=float, default=[1.0, 1.0, 1.0], metavar=("D", "H", "W"), help="mm")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--crops", type=int, default=25, help="crops of each image left out, 200 in all at most")
    args = parser.parse_args(argv)
    if args.table:
        sys.stdout.write(table(json.loads(args.table.read_text())) + "\n")
        return
    volumes = read_volumes(args, parser, quick_crops=2)
    torch.set_num_threads(1)
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    before = results.get(args.name, {}).get("variants", {})
    for variant in args.variants:
        before[variant] = train(variant, volumes, args)
        sizes = {"images": len(volumes), "patch": args.patch, "steps": args.steps, "batch_size": args.batch_size}
        results[args.name] = {**sizes, "seed": args.seed, "machine": describe(CPU), "variants": before}
        write_json(args.out, results, indent=1)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
