"""The planner's memory estimate against tensors that autograd really keeps, on the CPU.

    python studies/memory.py --out memory.json        # two minutes, at most 12 GB
    python studies/memory.py --quick                  # one small shape, tiny networks: seconds

For every shape both trainings run one forward pass on real tensors, in float32 and in mixed precision (bfloat16, as
CPUs have it), and the kept tensors are counted. Weights are not among them; they are the same in both.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# oneDNN's bfloat16 kernels for Intel's AMX end the process with a division by zero at one of the shapes (torch 2.15).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.memory import IN_FLIGHT, MIXED_SHARE, saved_tensor_bytes
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.files import write_json

Case = tuple[list[int], list[list[int]], int, int]  # patch, pools, channels, classes
CASES: dict[str, Case] = {
    "hippocampus": ([40, 56, 40], [[2, 2, 2]] * 3, 1, 3),
    "thigh PET/CT": ([64, 40, 40], [[2, 2, 2]] * 3, 2, 2),
    "cine": ([12, 256, 256], [[1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2]], 1, 2),
    "ACDC": ([16, 160, 160], [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 1, 4),
    "Synapse": ([96, 96, 96], [[2, 2, 2]] * 4, 1, 9),
    "lung": ([32, 192, 192], [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 1, 2),
    "nnU-Net CT": ([64, 128, 128], [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]], 1, 14),
}
QUICK_CASES: dict[str, Case] = {"quick": ([16, 16, 16], [[2, 2, 2]] * 3, 1, 2)}
QUICK = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1, feature_size=4)
BATCH_SIZE = 1
GIB = 2**30


def measure(build: Callable[[], nn.Module], shape: Any, channels: int) -> dict[str, float]:
    """Kept bytes on the device `meta`, in float32 and in mixed precision."""
    kept = {}
    with torch.device("meta"):
        kept["estimate"], largest = saved_tensor_bytes(build(), torch.empty(BATCH_SIZE, channels, *shape.patch_size))
    network, data = build(), torch.randn(BATCH_SIZE, channels, *shape.patch_size)
    kept["float32"], _ = saved_tensor_bytes(network, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept["mixed"], _ = saved_tensor_bytes(network, data)
    return {**{name: size / GIB for name, size in kept.items()}, "in flight": IN_FLIGHT * largest / GIB}


def rows(cases: dict[str, Case], architecture: ArchitectureConfig) -> Iterator[dict[str, Any]]:
    """Every shape and training."""
    for name, (patch, pools, channels, classes) in cases.items():
        shape = derive_network_shape(patch, [[1, 1, 1], *pools], architecture)
        networks: dict[str, Callable[[], nn.Module]] = {
            "pre-training": lambda s=shape, c=channels: build_copretraining_network(s, c, architecture),
            "fine-tuning": lambda s=shape, c=channels, k=classes: build_fusion_network(s, c, k, architecture, True),
        }
        for training, build in networks.items():
            kept = measure(build, shape, channels)
            yield {
                "case": name,
                "patch": patch,
                "training": training,
                **kept,
                "estimate / float32": kept["estimate"] / kept["float32"],
                "estimate / mixed": MIXED_SHARE * kept["estimate"] / kept["mixed"],
            }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small shape, tiny networks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    sys.stdout.write("| data | patch | training | kept, float32, GB | estimate / float32 | kept, mixed, GB ")
    sys.stdout.write("| estimate / mixed |\n|---|---|---|---|---|---|---|\n")
    measured = []
    for row in rows(QUICK_CASES, QUICK) if args.quick else rows(CASES, ArchitectureConfig()):
        measured.append(row)
        patch = "x".join(map(str, row["patch"]))
        sys.stdout.write(
            f"| {row['case']} | {patch} | {row['training']} | {row['float32']:.2f} | {row['estimate / float32']:.2f} "
            f"| {row['mixed']:.2f} | {row['estimate / mixed']:.2f} |\n"
        )
        sys.stdout.flush()
    if args.out:
        write_json(args.out, {"machine": platform.machine(), "torch": torch.__version__, "rows": measured})


if __name__ == "__main__":
    main()
