"""Optimiser groups and learning-rate schedules."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.roles import no_weight_decay
from nnunet_topomae.config import PretrainingConfig

Factor = Callable[[float], float]

# nnU-Net's optimiser, and its limit of the gradient's norm.
NNUNET_MOMENTUM, NNUNET_WEIGHT_DECAY, NNUNET_CLIP = 0.99, 3e-5, 12.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 over ``progress`` in [0, 1]."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def poly(progress: float) -> float:
    """nnU-Net's polynomial decay: (1 - progress) ** 0.9.

    Args:
        progress: the part of the training that is over, in [0, 1].
    """
    return float((1.0 - progress) ** 0.9)


class Pace(NamedTuple):
    """When and how fast a weight learns, in comparison with the others.

    Attributes:
        factor: of its peak learning rate.
        start: the first optimiser step in which it learns at all.
        ramp: over so many steps from there on, its rate rises linearly to that of the schedule.
    """

    factor: float = 1.0
    start: int = 0
    ramp: int = 0

    def at(self, step: int) -> float:
        """Fraction of the schedule's rate in an optimiser step; the factor of the peak aside.

        Args:
            step: counted from 0 over the whole training.
        """
        return 0.0 if step < self.start else min(1.0, (step - self.start + 1) / (self.ramp + 1))


# Of a weight that nothing is said about.
NORMAL_PACE = Pace()
# Under this key, a group of the optimiser has its pace, if that is another one.
PACE = "pace"


class WarmupSchedule:
    """Linear warm-up, then a decay; a pure function of the place in the training, so resuming needs no state.

    A group of parameters may have a :class:`Pace` of its own.

    Attributes:
        warmup_steps: length of the warm-up that is used.

    Args:
        optimizer: its groups' ``lr`` at construction is the peak.
        epochs: length of the training.
        steps_per_epoch: optimiser steps in an epoch.
        warmup_steps: wanted length of the warm-up; at most a tenth of all steps is used.
        decay: factor from the progress after the warm-up, 0 to 1.
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int, steps_per_epoch: int, warmup_steps: int, decay: Factor
    ) -> None:
        self.optimizer = optimizer
        self.steps = epochs * steps_per_epoch
        self.steps_per_epoch = steps_per_epoch
        self.warmup_steps = min(warmup_steps, self.steps // 10)
        self.decay = decay
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        # Kept here, because the groups of a checkpoint replace those of the optimiser.
        self.paces = [Pace(*group.get(PACE, ())) for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Fraction of the peak learning rate in optimiser step ``step``, counted from 0 over the whole training."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.decay(min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps)))

    def step(self, epoch: int, step_of_epoch: int = 0) -> None:
        """Set the learning rates of one step; nnU-Net calls this at the start of every epoch.

        Args:
            epoch: counted from 0.
            step_of_epoch: optimiser step within the epoch, counted from 0.
        """
        place = epoch * self.steps_per_epoch + step_of_epoch
        factor = self.factor(place)
        for group, peak, pace in zip(self.optimizer.param_groups, self.peaks, self.paces, strict=True):
            group["lr"] = peak * factor * pace.at(place)

    def describe(self) -> str:
        """What is used, for the log: the warm-up, and the peak rate and number of weights of every group."""
        groups = "; ".join(
            f"{peak:g} for {sum(p.numel() for p in group['params'])} weights (decay {group['weight_decay']:g}"
            + (f", frozen for {pace.start} steps" if pace.start else "")
            + (f", rising over {pace.ramp} steps)" if pace.ramp else ")")
            for peak, pace, group in zip(self.peaks, self.paces, self.optimizer.param_groups, strict=True)
        )
        return f"warm-up of {self.warmup_steps} of {self.steps} steps; peak learning rates: {groups}"


def build_adamw(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    slow_learning_rate: float | None = None,
    fast_prefixes: Sequence[str] = (),
    paces: Mapping[str, Pace] | None = None,
) -> AdamW:
    """AdamW without decay on biases, norms, embeddings and scales (architectures.roles.no_weight_decay).

    Args:
        network: parameters that require a gradient are trained. Their names decide, so it must not be wrapped by
            ``torch.compile`` or DDP, which put a prefix before every name.
        learning_rate: peak learning rate.
        weight_decay: decay of the remaining parameters.
        betas: AdamW's averages.
        slow_learning_rate: peak for every parameter whose name starts with none of ``fast_prefixes``.
        fast_prefixes: names of freshly initialised parts.
        paces: of parameters by name, where they learn at another one than the others.

    Raises:
        ValueError: no parameter has one of ``fast_prefixes``, as in a wrapped network.
    """
    undecayed = no_weight_decay(network)
    groups = _groups(network, learning_rate, weight_decay, slow_learning_rate, fast_prefixes, undecayed, paces or {})
    # Not fused: a fused AdamW misreads the state of checkpoints that were written on another device.
    return AdamW(groups, lr=learning_rate, betas=betas)


def build_pretraining_adamw(network: nn.Module, section: PretrainingConfig) -> AdamW:
    """AdamW for co-pre-training, where the ViT's partner may have a learning rate of its own.

    Args:
        network: a CoPretrainingNetwork without its wrappers.
        section: the plan's rates and decay.
    """
    partner_rate = section.partner_learning_rate or section.learning_rate
    assert isinstance(network, CoPretrainingNetwork)
    parts = network.partner_prefixes
    return build_adamw(network, partner_rate, section.weight_decay, section.betas, section.learning_rate, parts)


def build_sgd(
    network: nn.Module,
    learning_rate: float,
    slow_learning_rate: float | None,
    fast_prefixes: Sequence[str] = (),
    paces: Mapping[str, Pace] | None = None,
) -> SGD:
    """nnU-Net's optimiser: SGD with Nesterov momentum 0.99 and a decay of 3e-5 on every weight.

    Args:
        network: as in :func:`build_adamw`.
        learning_rate: peak learning rate.
        slow_learning_rate: peak for every parameter whose name starts with none of ``fast_prefixes``; None for no
            difference.
        fast_prefixes: names of freshly initialised parts.
        paces: as in :func:`build_adamw`.

    Raises:
        ValueError: no parameter has one of ``fast_prefixes``, as in a wrapped network.
    """
    decay = NNUNET_WEIGHT_DECAY
    groups = _groups(network, learning_rate, decay, slow_learning_rate, fast_prefixes, (), paces or {})
    return SGD(groups, lr=learning_rate, momentum=NNUNET_MOMENTUM, nesterov=True)


def _groups(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    slow_learning_rate: float | None,
    fast_prefixes: Sequence[str],
    undecayed: Collection[str],
    paces: Mapping[str, Pace],
) -> list[dict[str, Any]]:
    """The parameters that are trained, by learning rate and weight decay."""
    names = [name for name, _ in network.named_parameters()]
    for prefix in fast_prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"no parameter's name starts with {prefix!r}, so no part would train at the rate of fresh weights. "
                f"The first name is {names[0] if names else None!r}: pass the network without its wrappers."
            )
    groups: dict[tuple[float, float, Pace], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = slow_learning_rate is not None and not name.startswith(tuple(fast_prefixes))
        rate = slow_learning_rate if slow and slow_learning_rate is not None else learning_rate
        decay = 0.0 if name in undecayed else weight_decay
        pace = paces.get(name, NORMAL_PACE)
        group = {"params": [], "lr": rate * pace.factor, "weight_decay": decay}
        if pace != NORMAL_PACE:
            group[PACE] = tuple(pace)
        groups.setdefault((rate, decay, pace), group)["params"].append(parameter)
    # The learning rate in nnU-Net's log is that of the first group: one that learns from the first step, if there is.
    return sorted(groups.values(), key=lambda group: Pace(*group.get(PACE, ()))[1:])
