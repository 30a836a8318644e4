"""The part `memory` of studies/gpu_evidence.py: the planner's estimate against what trainings take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.memory import GIB, estimate_finetuning, estimate_pretraining
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import crop_mask, random_token_mask
from nnunet_topomae.training.schedules import build_adamw

Record = dict[str, Any]
Save = Callable[[], None]

MEMORY_CASES = ("hippocampus", "thigh PET/CT", "ACDC", "Synapse", "lung", "nnU-Net CT")


def memory_estimates(device: torch.device, folder: Path, record: Record, save: Save) -> None:
    """The planner's estimate over what two training steps really take, for six shapes and both trainings.

    On a CPU, which does not say what is taken: over the tensors that autograd keeps.
    """
    record["rows"] = []
    cuda = device.type == "cuda"
    cases = {name: memory.CASES[name] for name in MEMORY_CASES} if cuda else memory.QUICK_CASES
    architecture = ArchitectureConfig() if cuda else memory.QUICK
    for name, (patch, pools, channels, classes) in cases.items():
        shape = derive_network_shape(patch, [[1, 1, 1], *pools], architecture)
        estimates = {
            "pre-training": estimate_pretraining(shape, architecture, channels),
            "fine-tuning": estimate_finetuning(shape, architecture, channels, classes),
        }
        for training, estimate in estimates.items():
            with device:
                if training == "pre-training":
                    network: nn.Module = build_copretraining_network(shape, channels, architecture)
                else:
                    network = build_fusion_network(shape, channels, classes, architecture, True)
            row = {"case": name, "patch": patch, "training": training, "batch_size": 2}
            row |= peak_memory(network, shape, channels, classes, device)
            row["estimate"] = estimate.total(2) / GIB
            if cuda:
                row["estimate / used"] = row["estimate"] / row["used"]
            record["rows"].append(row)
            save()
            del network
    if not cuda:
        record["kept"] = list(memory.rows(memory.QUICK_CASES, memory.QUICK))


def peak_memory(
    network: nn.Module, shape: NetworkShape, channels: int, classes: int, device: torch.device
) -> dict[str, float]:
    """GiB at the peak of two steps with batch 2: tensors, what torch reserved, and all of the GPU that is taken.

    `used` is right only while nothing else runs on the GPU. On a CPU the steps run and nothing is said.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    train_two_steps(network, torch.randn(2, channels, *shape.patch_size, device=device), shape, classes)
    if not cuda:
        return {}
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    reserved, now = torch.cuda.max_memory_reserved(), torch.cuda.memory_reserved()
    sizes = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": reserved,
        "used": total - free + reserved - now,
    }
    return {name: size / GIB for name, size in sizes.items()}


def train_two_steps(network: nn.Module, data: torch.Tensor, shape: NetworkShape, classes: int) -> None:
    """Two steps in mixed precision with AdamW; the loss keeps about what the trainings' losses keep."""
    device = data.device.type
    optimizer = build_adamw(network, 1e-5, 0.05)
    scaler = torch.GradScaler(device, enabled=device == "cuda")
    masks = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (len(data), *shape.patch_size), device=data.device)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, enabled=device == "cuda"):
            if isinstance(network, CoPretrainingNetwork):
                tokens = random_token_mask(len(data), shape.token_grid, 0.5, masks)
                output = network(data, crop_mask(tokens, shape.token_size, data.device))
                found = [branch.reconstruction for branch in output.present().values()]
                loss = torch.stack([(volume - data).square().mean() for volume in found]).sum()
            else:
                finest, *coarser = network(data)
                loss = nn.functional.cross_entropy(finest.float(), labels)
                loss = loss + torch.stack([level.float().square().mean() for level in coarser]).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
