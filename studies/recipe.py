"""What decides the first thousand steps: one factor at a time, on the same crops in the same order.

    nnUNetv2_plan_and_preprocess -d 904 -c 3d_fullres
    python studies/recipe.py crops -d 904 --patch 32 40 32 --steps 1200 --out crops.pt
    python studies/recipe.py run crops.pt --variants default heads=small nnunet --seeds 0 1 2 --out recipe.json
    python studies/recipe.py table recipe.json

A variant is a comma-separated list of factors, for example `heads=small,lr=3e-3`. `nnunet` is stock nnU-Net with its
own optimiser. `default` is where this study started: UNETR++ with published dropout, small residual ends and heads at
nnU-Net's scale; `fusion` is the fusion network likewise. The package now builds `dropout=0,ends=unit,heads=unit`
(exactly so with one block per stage, as here). Every variant of a seed sees the same crops in the same order; nnU-Net's
own loader and augmentation made them once. Half precision, compilation and several GPUs play no role here.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from recipe_crops import AUGMENTATIONS, make_crops
from recipe_variants import Variant, build_network, build_pretraining_network, read_variant
from step_time import nnunet_weights
from torch import Tensor, nn

from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.files import write_json
from nnunet_topomae.masking import crop_mask, random_token_mask
from nnunet_topomae.training.finetuning import prepare_schedule
from nnunet_topomae.training.schedules import PACE, Pace, build_adamw, build_sgd
from nnunet_topomae.training.steps import leave_out_frozen
from nnunet_topomae.training.transfer import transfer, transferred_parts


def build_optimisers(network: nn.Module, variant: Variant, steps: int = 4) -> list[torch.optim.Optimizer]:
    """The optimiser, or two of them for `muon`."""
    slow = variant.slow * variant.lr if variant.slow != 1.0 else None
    section = FinetuningConfig(
        epochs=steps,
        iterations_per_epoch=1,
        stage_epochs=max(1, steps // 4),
        warmup_steps=variant.warmup,
        schedule=variant.schedule,
    )
    parts = transferred_parts(network, "both", variant.pretrain_parts == "all").fresh
    paces = prepare_schedule(network, section, parts, str)
    fresh = parts if slow else ()
    if variant.optimiser == "sgd":
        optimiser = build_sgd(network, variant.lr, slow, fresh, paces)
        for group in optimiser.param_groups:
            group["weight_decay"] = variant.decay
        return [optimiser]
    if variant.optimiser == "adamw":
        betas = (0.9, variant.beta2)
        return [build_adamw(network, variant.lr, variant.decay, betas, slow, fresh, paces)]
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2]
    others = [p for name, p in network.named_parameters() if p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=variant.lr, weight_decay=variant.decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=variant.lr, weight_decay=0.0, betas=(0.9, variant.beta2)),
    ]


def scale_heads(network: nn.Module, data: torch.Tensor, std: float) -> None:
    """Scale every segmentation head so that its logits have a standard deviation of ``std`` on some crops."""
    with torch.no_grad():
        for head, logits in zip(network.decoder.seg_layers, network.train()(data), strict=False):
            head.weight *= std / logits.std()


def factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then nnU-Net's polynomial decay."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return float((1.0 - (step - warmup) / (steps - warmup)) ** 0.9)


def train(
    variant: Variant, crops: dict[str, Any], steps: int, seed: int, pretraining: dict[str, Any]
) -> dict[str, Any]:
    """Train and validate one variant; returns scores, losses and CPU seconds."""
    torch.manual_seed(seed)
    network = build_network(variant, crops)
    if pretraining:
        parts = transferred_parts(network, "both", variant.pretrain_parts == "all")
        transfer(pretraining["weights"], network, parts)
    if variant.first_std:
        scale_heads(network, crops["batches"][0][0].float(), variant.first_std)
    optimisers = build_optimisers(network, variant, steps)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(variant.ema or 0.9)
    )
    order = torch.randperm(len(crops["batches"]), generator=torch.Generator().manual_seed(seed)).tolist()
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    criterion = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    paces = [[Pace(*group.get(PACE, ())) for group in optimiser.param_groups] for optimiser in optimisers]
    losses, norms, first_std, start = [], [], 0.0, time.process_time()
    network.train()
    for step in range(steps):
        data, target = crops["batches"][order[step % len(order)]]
        for optimiser, rates, of_groups in zip(optimisers, peaks, paces, strict=True):
            for group, peak, pace in zip(optimiser.param_groups, rates, of_groups, strict=True):
                group["lr"] = peak * factor(step, steps, variant.warmup) * pace.at(step)
            optimiser.zero_grad()
        outputs = network(data.float())
        if step == 0:
            first_std = float(outputs[0].detach().std())
        loss = _deep_loss(criterion, outputs, target, variant.ds)
        loss.backward()
        for optimiser in optimisers:
            leave_out_frozen(optimiser)
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), variant.clip)))
        for optimiser in optimisers:
            optimiser.step()
        if variant.ema:
            average.update_parameters(network)
        losses.append(float(loss.detach()))
    seconds = time.process_time() - start
    dice = validate(average.module if variant.ema else network, crops)
    return {
        "dice": round(float(np.mean(dice)), 5),
        "dice_per_structure": [round(value, 5) for value in dice],
        "loss_20_40": round(statistics.mean(losses[20:40]), 4) if steps > 20 else None,
        "loss_last_20": round(statistics.mean(losses[-20:]), 4),
        "clipped": round(sum(norm > variant.clip for norm in norms) / steps, 3),
        "std_of_first_logits": round(first_std, 3),
        "cpu_seconds_a_step": round(seconds / steps, 4),
        "parameters": sum(p.numel() for p in network.parameters()),
        **{name: value for name, value in pretraining.items() if name != "weights"},
    }


def pretrain(variant: Variant, crops: dict[str, Any], seed: int) -> dict[str, Any]:
    """Masked pre-training on the same crops: the reconstruction errors and their consistency, as published."""
    torch.manual_seed(seed + 1000)
    shape, network = build_pretraining_network(variant, crops)
    channels = crops["batches"][0][0].shape[1]
    use_channels_last(network)
    for name, module in network.named_children():
        if name.endswith("key_points"):
            module.requires_grad_(False)
    optimiser = build_adamw(network, variant.pretrain_lr, 0.05, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(crops["batches"]), generator=generator).tolist()
    errors: dict[str, list[float]] = {name: [] for name in network.branches}
    for step in range(variant.pretrain):
        for group in optimiser.param_groups:
            group["lr"] = variant.pretrain_lr * factor(step, variant.pretrain, variant.pretrain // 10)
        optimiser.zero_grad()
        data = crops["batches"][order[step % len(order)]][0].float()
        mask = crop_mask(random_token_mask(len(data), shape.token_grid, 0.5, generator), shape.token_size)
        hidden, output = mask.hidden, network(data, mask)
        parts = {
            name: ((branch.reconstruction - data).square() * hidden).sum() / hidden.sum() / channels
            for name, branch in output.present().items()
        }
        loss = sum(parts.values()) / len(parts)
        if output.vit is not None and output.partner is not None:
            agreement = (output.vit.reconstruction - output.partner.reconstruction).square() * hidden
            loss = loss + 0.1 * agreement.sum() / hidden.sum() / channels
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        for name, value in parts.items():
            errors[name].append(float(value.detach()))
    last = {f"pretrain_mse_{name}": round(statistics.mean(values[-20:]), 4) for name, values in errors.items()}
    first = {f"pretrain_mse_{name}_first": round(values[0], 4) for name, values in errors.items()}
    return {"weights": network.state_dict(), **first, **last}


def _deep_loss(criterion: nn.Module, outputs: list[Tensor], target: Tensor, kind: str) -> Tensor:
    weights = {"unetrpp": (4 / 7, 2 / 7, 1 / 7), "nnunet": (4 / 7, 2 / 7, 1 / 7), "none": (1.0,)}[kind]
    if kind == "nnunet":
        weights = tuple(nnunet_weights(len(outputs))[:-1])
    total = torch.zeros(())
    for weight, logits in zip(weights, outputs, strict=False):
        scaled = nn.functional.interpolate(target.float(), logits.shape[2:], mode="nearest-exact")
        total = total + weight * criterion(logits, scaled)
    return total


def validate(network: Any, crops: dict[str, Any]) -> list[float]:
    """Mean Dice of every structure over the held-out cases, by nnU-Net's sliding window."""
    network.eval()
    network.decoder.deep_supervision = False
    manager = PlansManager(crops["plans"])
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.allow_tqdm = False
    predictor.manual_initialization(
        network, manager, manager.get_configuration("3d_fullres"), None, crops["dataset"], "nnUNetTrainer", None
    )
    scores = []
    for image, label in crops["cases"]:
        predicted = predictor.predict_sliding_window_return_logits(image).argmax(0)
        of_case = []
        for structure in range(1, len(crops["dataset"]["labels"])):
            a, b = predicted == structure, label[0] == structure
            of_case.append(float(2 * (a & b).sum() / max(int(a.sum() + b.sum()), 1)) if (a | b).any() else np.nan)
        scores.append(of_case)
    return [float(value) for value in np.nanmean(np.array(scores), axis=0)]


def crop(args: argparse.Namespace) -> None:
    """Make the crops that all variants see."""
    crops = make_crops(args.d, args.patch, args.steps, args.seed, args.fold, args.plans, args.batch, args.augmentation)
    torch.save(crops, args.out)


def run(args: argparse.Namespace) -> None:
    """Train what the file does not hold yet; every result is written at once."""
    crops = torch.load(args.crops, weights_only=False)
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        pretrainings: dict[Variant, dict[str, Any]] = {}
        for text in args.variants:
            results = json.loads(args.out.read_text()) if args.out.is_file() else []
            key = {"data": crops["name"], "variant": text, "steps": args.steps, "seed": seed}
            if any(key.items() <= result.items() for result in results):
                continue
            variant = read_variant(text)
            shared = variant.of_pretraining()
            if variant.pretrain and shared not in pretrainings:
                pretrainings[shared] = pretrain(shared, crops, seed)
            result = {**key, **train(variant, crops, args.steps, seed, pretrainings.get(shared, {}))}
            result |= {"settings": asdict(variant), "machine": describe(torch.device("cpu"))}
            results = json.loads(args.out.read_text()) if args.out.is_file() else []
            write_json(args.out, [*results, result])
            print(f"{text:40} seed {seed} steps {args.steps}: Dice {result['dice']:.4f}", result, flush=True)


def table(args: argparse.Namespace) -> None:
    """Markdown: mean and spread over seeds of every variant."""
    results = [result for file in args.files for result in json.loads(file.read_text())]
    rows: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["data"], result["steps"], result["variant"]), []).append(result)
    print("| data | steps | variant | Dice, mean | per seed | loss, last 20 | CPU s per step |")
    print("|---|---|---|---|---|---|---|")
    for (data, steps, variant), of in sorted(rows.items()):
        dice = [result["dice"] for result in of]
        print(
            f"| {data} | {steps} | {variant} | {statistics.mean(dice):.4f} | {', '.join(f'{d:.3f}' for d in dice)} | "
            f"{statistics.mean(r['loss_last_20'] for r in of):.3f} | "
            f"{statistics.median(r['cpu_seconds_a_step'] for r in of):.3f} |"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    making = actions.add_parser("crops")
    making.add_argument("-d", type=int, required=True)
    making.add_argument("--plans", default="nnUNetPlans")
    making.add_argument("--fold", type=int, default=0)
    making.add_argument("--patch", type=int, nargs=3, required=True)
    making.add_argument("--batch", type=int, help="crops per step (default: the plan's)")
    making.add_argument("--augmentation", choices=AUGMENTATIONS, default="nnunet", help="nnunet is without mirroring")
    making.add_argument("--steps", type=int, default=160)
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--out", type=Path, required=True)
    making.set_defaults(run=crop)
    running = actions.add_parser("run")
    running.add_argument("crops", type=Path)
    running.add_argument("--variants", nargs="+", required=True)
    running.add_argument("--steps", type=int, default=160)
    running.add_argument("--seeds", type=int, nargs="+", default=[0])
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("--out", type=Path, required=True)
    running.set_defaults(run=run)
    showing = actions.add_parser("table")
    showing.add_argument("files", type=Path, nargs="+")
    showing.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
