"""Why a plan has the numbers that it has, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_topomae.architectures.memory import GIB
from nnunet_topomae.architectures.summary import format_size
from nnunet_topomae.config import FinetuningConfig, PretrainingConfig, TopoMAEConfig
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.plan import Plan, check_network, read_plan
from nnunet_topomae.plans.planner import TRAININGS, estimate_need
from nnunet_topomae.plans.preset import find_preset, plain, value_in_plans


class Row(NamedTuple):
    """One value of a plan."""

    name: str
    value: str
    reason: str


def explain(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> str:
    """A table of one configuration: value by value, with its reason.

    Args:
        plans: content of a plans file.
        dataset_json: content of `dataset.json`, for the numbers of channels and classes.
        configuration: its name, such as `3d_fullres`.

    Raises:
        ValueError: not a configuration of the plans, or one that the networks cannot take.
    """
    manager = PlansManager(dict(plans))
    if configuration not in manager.available_configurations:
        raise ValueError(f"no configuration {configuration}; the plans have {manager.available_configurations}")
    chosen = manager.get_configuration(configuration)
    plan = read_plan(chosen)
    if plan.network is not None:
        check_network(chosen, f"plans {plans['plans_name']}")
    channels = len(channel_names(dataset_json))
    classes = manager.get_label_manager(dict(dataset_json)).num_segmentation_heads
    rows = [
        *_data_rows(chosen, plan),
        *_network_rows(plan),
        *_memory_rows(plan, channels, classes, chosen.batch_size),
        *_schedule_rows(plan.config),
        *_preset_rows(plans, chosen.configuration),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row.name:<{widths[0]}}  {row.value:<{widths[1]}}  {row.reason}" for row in rows]
    return "\n".join([f"{plans['plans_name']}, {configuration}", "", *lines])


def _data_rows(chosen: Any, plan: Plan) -> Iterator[Row]:
    median = [int(size) for size in chosen.median_image_size_in_voxels]
    yield Row("spacing", " ".join(f"{s:g}" for s in plan.spacing) + " mm", "nnU-Net's target spacing, in (D, H, W)")
    yield Row("median image", "x".join(map(str, median)), "after resampling to that spacing")
    larger = [axis for axis, size, image in zip("DHW", plan.shape.patch_size, median, strict=True) if size > image]
    note = f"; padded along {', '.join(larger)}, where the image is smaller" if larger else ""
    yield Row(
        "patch", format_size(plan.shape.patch_size), f"one crop, a multiple of the strides, in the image's shape{note}"
    )
    yield Row("batch", str(chosen.batch_size), "crops per step: what fits into memory, at most 5 % of the data set")
    yield Row("normalisation", ", ".join(chosen.normalization_schemes), "channel by channel, nnU-Net's")


def _network_rows(plan: Plan) -> Iterator[Row]:
    shape, architecture = plan.shape, plan.config.architecture
    if plan.network is not None:
        name = plan.network.class_name.rpartition(".")[2]
        yield Row("partner", name, "the plan's own network, in UNETR++'s place")
        for number, (grid, dim) in enumerate(zip(shape.grids, shape.dims, strict=True)):
            size = f"{format_size(grid)}, {dim} channels"
            yield Row(f"stage {number + 1}", size, "the plan's, below full resolution")
        yield from _vit_rows(plan)
        return
    yield Row("stem", format_size(shape.stem), "the plan's first pools joined, to a stage of at most 2^17 cells")
    for number, (grid, dim, projection) in enumerate(zip(shape.grids, shape.dims, shape.projections, strict=True)):
        projected = f"{projection} projected tokens (at most {architecture.projections[number]} and all cells)"
        yield Row(f"stage {number + 1}", f"{format_size(grid)}, {dim} channels", projected)
    yield from _vit_rows(plan)


def _vit_rows(plan: Plan) -> Iterator[Row]:
    shape = plan.shape
    tokens = f"{format_size(shape.token_grid)} of {format_size(shape.token_size)}"
    yield Row("ViT tokens", tokens, f"the cells of stage {shape.token_stage + 1}")
    yield Row("ViT", plan.config.architecture.vit, "preset; `nnunet-topomae parameters` compares them")


def _memory_rows(plan: Plan, channels: int, classes: int, batch_size: int) -> Iterator[Row]:
    masking = plan.config.pretraining.partner_masking
    for name in reversed(TRAININGS):
        need = estimate_need(name, plan.shape, plan.config.architecture, channels, classes, plan.network, masking)
        yield Row(
            f"memory, {name}",
            f"{need.total(batch_size) / GIB:.1f} GB",
            f"estimate on CUDA: {need.fixed / GIB:.1f} GB fixed + {batch_size} crops of {need.per_sample / GIB:.2f} GB",
        )


def _schedule_rows(config: TopoMAEConfig) -> Iterator[Row]:
    stages: dict[str, PretrainingConfig | FinetuningConfig] = {
        "pretraining": config.pretraining,
        "finetuning": config.finetuning,
    }
    for name, stage in stages.items():
        steps = stage.epochs * stage.iterations_per_epoch
        warmup = f"{min(stage.warmup_steps, steps // 10)} steps"
        if stage.warmup_steps > steps // 10:
            warmup += f", a tenth of all; the plan asks for {stage.warmup_steps}"
        yield Row(f"{name}.epochs", str(stage.epochs), f"of {stage.iterations_per_epoch} steps: {steps} in all")
        yield Row(f"{name}.learning_rate", f"{stage.learning_rate:g}", f"peak, after a warm-up of {warmup}")
    yield Row("mask_ratio", f"{config.pretraining.mask_ratio:g}", "fraction of hidden tokens (paper: 0.5)")
    lambdas = [config.pretraining.lambda1, config.pretraining.lambda2, config.pretraining.lambda3]
    yield Row(
        "lambda1, 2, 3", ", ".join(f"{value:g}" for value in lambdas), "weights of the loss (paper: 0.5, 0.1, 0.1)"
    )
    topology = config.topology
    region = topology.region if topology.region == "full" else f"{topology.region} {topology.region_size}"
    yield Row("topology", region if topology.enabled else "off", "what L_topo sees of a crop; docs/topology.md")


def _preset_rows(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[Row]:
    """Every value of the preset that the plans were made with, with its source, or that it has been changed since."""
    preset = find_preset(plans)
    if preset is None:
        return
    for value in preset.values:
        found = value_in_plans(value.key, plans, configuration)
        reason = f"preset {preset.name}, {value.source}: {value.reason}"
        if found != value.value:
            reason = f"changed: preset {preset.name} has {plain(value.value)}"
        yield Row(value.key, plain(found), reason)
