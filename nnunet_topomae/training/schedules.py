"""Optimiser groups and learning-rate schedules."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

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


class WarmupSchedule:
    """Linear warm-up, then a decay; a pure function of the place in the training, so resuming needs no state.

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
        factor = self.factor(epoch * self.steps_per_epoch + step_of_epoch)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def describe(self) -> str:
        """What is used, for the log: the warm-up, and the peak rate and number of weights of every group."""
        groups = "; ".join(
            f"{peak:g} for {sum(p.numel() for p in group['params'])} weights (decay {group['weight_decay']:g})"
            for peak, group in zip(self.peaks, self.optimizer.param_groups, strict=True)
        )
        return f"warm-up of {self.warmup_steps} of {self.steps} steps; peak learning rates: {groups}"


def build_adamw(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    slow_learning_rate: float | None = None,
    fast_prefixes: Sequence[str] = (),
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

    Raises:
        ValueError: no parameter has one of ``fast_prefixes``, as in a wrapped network.
    """
    groups = _groups(network, learning_rate, weight_decay, slow_learning_rate, fast_prefixes, no_weight_decay(network))
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
    network: nn.Module, learning_rate: float, slow_learning_rate: float | None, fast_prefixes: Sequence[str] = ()
) -> SGD:
    """nnU-Net's optimiser: SGD with Nesterov momentum 0.99 and a decay of 3e-5 on every weight.

    Args:
        network: as in :func:`build_adamw`.
        learning_rate: peak learning rate.
        slow_learning_rate: peak for every parameter whose name starts with none of ``fast_prefixes``; None for no
            difference.
        fast_prefixes: names of freshly initialised parts.

    Raises:
        ValueError: no parameter has one of ``fast_prefixes``, as in a wrapped network.
    """
    groups = _groups(network, learning_rate, NNUNET_WEIGHT_DECAY, slow_learning_rate, fast_prefixes, ())
    return SGD(groups, lr=learning_rate, momentum=NNUNET_MOMENTUM, nesterov=True)


def _groups(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    slow_learning_rate: float | None,
    fast_prefixes: Sequence[str],
    undecayed: Collection[str],
) -> list[dict[str, Any]]:
    """The parameters that are trained, by learning rate and weight decay."""
    names = [name for name, _ in network.named_parameters()]
    for prefix in fast_prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"no parameter's name starts with {prefix!r}, so no part would train at the rate of fresh weights. "
                f"The first name is {names[0] if names else None!r}: pass the network without its wrappers."
            )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = slow_learning_rate is not None and not name.startswith(tuple(fast_prefixes))
        rate = slow_learning_rate if slow and slow_learning_rate is not None else learning_rate
        decay = 0.0 if name in undecayed else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())
