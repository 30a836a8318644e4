"""Schedules of fine-tuning: which pre-trained weights learn from when on, and how fast."""

from collections.abc import Callable, Sequence

from torch import nn

from nnunet_topomae.architectures.roles import layers_below_output, part_prefixes
from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.training.schedules import Pace


def prepare_schedule(
    network: nn.Module, section: FinetuningConfig, fresh: Sequence[str], log: Callable[[str], object]
) -> dict[str, Pace]:
    """The paces of the pre-trained weights; `head_only` freezes them instead.

    Freezing by ``requires_grad`` is for good, so it is done before nnU-Net wraps the network for several GPUs. Weights
    that learn later on compute their gradients from the start, and have the learning rate 0 until then
    (training.steps.optimise).

    Args:
        network: declares its parts (architectures/roles.py), without wrappers.
        section: the plan's schedule.
        fresh: beginnings of the names of parameters that are not pre-trained.
        log: takes a line about schedules other than `full`.

    Returns:
        By name of the parameter, for the optimiser.

    Raises:
        ValueError: nothing of the network is fresh, so `head_only` would train nothing.
    """
    pretrained = [name for name, _ in network.named_parameters() if not name.startswith(tuple(fresh))]
    if section.schedule != "full":
        log(f"schedule {section.schedule}: {len(pretrained)} of {len(list(network.parameters()))} tensors pre-trained")
    if section.schedule == "head_only":
        _freeze(network, pretrained)
    if section.schedule == "warmup":
        return dict.fromkeys(pretrained, Pace(ramp=section.first_stage))
    encoders = _encoder_depths(network, pretrained)
    if section.schedule == "staged":
        return dict.fromkeys(encoders, Pace(start=section.first_stage, ramp=section.warmup_used))
    if section.schedule == "layer_decay":
        return {name: Pace(factor=section.layer_decay**depth) for name, depth in encoders.items()}
    return {}


def without_pretraining(section: FinetuningConfig, log: Callable[[str], object]) -> None:
    """Say so where a plan's schedule has no pre-trained weights to apply to.

    Args:
        section: the plan's schedule.
        log: takes the line.
    """
    if section.schedule != "full":
        log(
            f"finetuning.schedule = {section.schedule} has no effect: nothing is pre-trained, so all weights learn "
            "from the first step"
        )


def _freeze(network: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        network.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("finetuning.schedule = 'head_only' would train nothing: all weights are pre-trained")


def _encoder_depths(network: nn.Module, pretrained: Sequence[str]) -> dict[str, int]:
    """How deep every pre-trained weight of an encoder lies below its output."""
    encoders: tuple[str, ...] = network.encoder_parts  # type: ignore[assignment]
    part_prefixes(network, encoders)
    depths = {
        f"{part}.{name}": depth
        for part in encoders
        for name, depth in layers_below_output(network.get_submodule(part)).items()
    }
    return {name: depths[name] for name in pretrained if name in depths}
