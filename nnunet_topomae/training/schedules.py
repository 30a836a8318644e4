"""Optimiser groups and learning-rate schedules."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from nnunet_topomae.architectures.build import no_weight_decay

Factor = Callable[[float], float]


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 over ``progress`` in [0, 1]."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def poly(progress: float) -> float:
    """nnU-Net's polynomial decay: (1 - progress) ** 0.9."""
    return float((1.0 - progress) ** 0.9)


class WarmupSchedule:
    """Linear warm-up, then a decay; a pure function of the epoch, so resuming needs no state.

    Args:
        optimizer: its groups' ``lr`` at construction is the peak.
        epochs: length of the training.
        warmup_epochs: wanted length of the warm-up; at most a tenth of ``epochs`` is used.
        decay: factor from the progress after the warm-up, 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, warmup_epochs: int, decay: Factor) -> None:
        self.optimizer = optimizer
        self.epochs = epochs
        self.warmup_epochs = min(warmup_epochs, epochs // 10)
        self.decay = decay
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def factor(self, epoch: int) -> float:
        """Fraction of the peak learning rate in ``epoch``."""
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        return self.decay((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs))

    def step(self, epoch: int) -> None:
        """Set the learning rates of ``epoch``; nnU-Net calls this at the start of every epoch."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(epoch)


def build_adamw(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    slow_learning_rate: float | None = None,
    fast_prefixes: Sequence[str] = (),
) -> AdamW:
    """AdamW without decay on biases, norms, embeddings and scales (architectures.build.no_weight_decay).

    Args:
        network: parameters that require a gradient are trained.
        learning_rate: peak learning rate.
        weight_decay: decay of the remaining parameters.
        betas: AdamW's averages.
        slow_learning_rate: peak for every parameter whose name starts with none of ``fast_prefixes``.
        fast_prefixes: names of freshly initialised parts.
    """
    undecayed = no_weight_decay(network)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = slow_learning_rate is not None and not name.startswith(tuple(fast_prefixes))
        rate = slow_learning_rate if slow and slow_learning_rate is not None else learning_rate
        decay = 0.0 if name in undecayed else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return AdamW(list(groups.values()), lr=learning_rate, betas=betas)
