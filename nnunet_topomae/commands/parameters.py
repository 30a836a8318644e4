"""`nnunet-topomae parameters`: what the rule makes of a plan, and what each network costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nnunet_topomae.nnunet.names import CONFIGURATION
from nnunet_topomae.nnunet.plan_checks import NETWORK_KEYS, check_plans

if TYPE_CHECKING:
    from nnunet_topomae.architectures.rule import NetworkShape
    from nnunet_topomae.config import ArchitectureConfig
    from nnunet_topomae.nnunet.plan import PlanNetwork

ALL_PRESETS = "all"


class Subject(NamedTuple):
    """What is measured; ``planned`` is the plan's own network, where that is the ViT's partner."""

    shape: NetworkShape
    architecture: ArchitectureConfig
    channels: int
    classes: int
    planned: PlanNetwork | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="ID", help="data set id or name, already planned")
    source.add_argument("--patch", type=int, nargs=3, metavar=("D", "H", "W"), help="a patch size, instead of a plan")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="with -d: name of the plans")
    parser.add_argument("-c", default=CONFIGURATION, metavar="CONFIGURATION", help="with -d: configuration")
    parser.add_argument(
        "--strides", nargs="+", metavar="DxHxW", help="with --patch: pool strides, e.g. 1x2x2 2x2x2; default: nnU-Net's"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        metavar=("D", "H", "W"),
        help="with --patch: voxel size from which nnU-Net chooses the strides",
    )
    parser.add_argument("--channels", type=int, default=1, metavar="N", help="with --patch: number of image channels")
    parser.add_argument(
        "--classes", type=int, default=2, metavar="N", help="with --patch: number of classes, with background"
    )
    parser.add_argument(
        "--vit", nargs="+", metavar="PRESET", help=f"ViT presets, or `{ALL_PRESETS}`; default: the plan's"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from nnunet_topomae.architectures.summary import format_size

    subject = _from_plan(args.d, args.p, args.c) if args.d is not None else _from_patch(args)
    presets = _presets(args.vit, subject.architecture.vit)
    shape = subject.shape
    grids = " > ".join(map(format_size, shape.grids))
    print(f"patch {format_size(shape.patch_size)}, channels {subject.channels}, classes {subject.classes}")
    print(f"stem {format_size(shape.stem)}, stages {grids}")
    print(f"ViT tokens {format_size(shape.token_grid)} of {format_size(shape.token_size)} voxels")
    print(f"\n{'network':<22}{'ViT':<10}{'parameters / M':>15}{'MACs / G':>10}")
    for name, preset, parameters, macs in _rows(subject, presets):
        print(f"{name:<22}{preset:<10}{parameters / 1e6:>15.2f}{macs / 1e9:>10.2f}")
    print("\nMACs: one forward pass of one crop, convolutions and matrix products.")
    return 0


def _rows(subject: Subject, presets: Sequence[str]) -> Iterator[tuple[str, str, int, int]]:
    """Name, preset, parameters and MACs of every network; no memory is used for their weights."""
    import torch

    from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network, build_unetrpp
    from nnunet_topomae.architectures.summary import count_parameters, network_macs
    from nnunet_topomae.architectures.vit import VIT_PRESETS

    shape, architecture, channels, classes, planned = subject
    networks: list[tuple[str, str, torch.nn.Module]] = []
    with torch.device("meta"):
        if planned is None:
            networks.append(("UNETR++", "-", build_unetrpp(shape, channels, classes, architecture, False)))
        else:
            networks.append((planned.class_name.rpartition(".")[-1], "-", planned(channels, classes, False)))
        for preset in presets:
            chosen = replace(architecture, vit=preset)  # type: ignore[arg-type]
            pretraining = build_copretraining_network(shape, channels, chosen, planned=planned)
            networks.append(("co-pre-training" if chosen.has_vit else "pre-training", preset, pretraining))
            if preset in VIT_PRESETS:
                fusion = build_fusion_network(shape, channels, classes, chosen, False, planned)
                networks.append(("fusion", preset, fusion))
    for name, preset, network in networks:
        yield name, preset, count_parameters(network), network_macs(network, shape, channels)


def _presets(wanted: Sequence[str] | None, default: str) -> list[str]:
    from nnunet_topomae.architectures.vit import VIT_PRESETS

    if wanted is None:
        return [default]
    if ALL_PRESETS in wanted:
        return list(VIT_PRESETS)
    unknown = [name for name in wanted if name not in VIT_PRESETS]
    if unknown:
        raise ValueError(f"unknown ViT preset {unknown[0]!r}; choose from {', '.join(VIT_PRESETS)} or {ALL_PRESETS}")
    return list(wanted)


def _from_plan(dataset: str, plans_name: str, configuration: str) -> Subject:
    """Read a plan of nnU-Net's preprocessed folder."""
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_topomae.nnunet.dataset import read_dataset_json
    from nnunet_topomae.nnunet.folders import nnunet_folder
    from nnunet_topomae.nnunet.plan import check_network, read_plan
    from nnunet_topomae.nnunet.plans_file import read_plans

    folder = nnunet_folder("nnUNet_preprocessed") / maybe_convert_to_dataset_name(
        int(dataset) if dataset.isdigit() else dataset
    )
    path = folder / f"{plans_name}.json"
    content = read_plans(path)
    check_plans(content, configuration, str(path), NETWORK_KEYS)
    plans = PlansManager(content)
    dataset_json = read_dataset_json(folder)
    manager = plans.get_configuration(configuration)
    plan = read_plan(manager)
    if plan.network is not None:
        check_network(manager, str(path))
    return Subject(
        plan.shape,
        plan.config.architecture,
        determine_num_input_channels(plans, manager, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        plan.network,
    )


def _from_patch(args: argparse.Namespace) -> Subject:
    """Take patch size and strides from the command line.

    Raises:
        ValueError: a number that must be above 0 is not.
    """
    for name, values in (
        ("--patch", args.patch),
        ("--spacing", args.spacing),
        ("--channels", [args.channels]),
        ("--classes", [args.classes]),
    ):
        if not all(0 < value < float("inf") for value in values):
            raise ValueError(f"{name} {' '.join(f'{value:g}' for value in values)}: all of it must be above 0")
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    from nnunet_topomae.architectures.rule import derive_network_shape
    from nnunet_topomae.config import ArchitectureConfig
    from nnunet_topomae.plans.planner import MAX_POOLS, MIN_FEATURE_MAP_EDGE

    if args.strides is None:
        _, strides, *_ = get_pool_and_conv_props(args.spacing, args.patch, MIN_FEATURE_MAP_EDGE, MAX_POOLS)
    else:
        strides = [_read_stride(stride) for stride in args.strides]
    architecture = ArchitectureConfig()
    return Subject(derive_network_shape(args.patch, strides, architecture), architecture, args.channels, args.classes)


def _read_stride(text: str) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"stride {text!r} must be three numbers with crosses, for example 1x2x2")
    return [int(part) for part in parts]
