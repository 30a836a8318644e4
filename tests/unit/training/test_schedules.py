import math

import pytest
import torch
from torch import nn

from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, cosine, poly


def _schedule(epochs: int, warmup: int, decay: object = cosine) -> WarmupSchedule:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    return WarmupSchedule(optimizer, epochs, warmup, decay)  # type: ignore[arg-type]


def test_cosine_with_warm_up_in_closed_form() -> None:
    schedule = _schedule(100, 4)
    for epoch in range(100):
        schedule.step(epoch)
        expected = (epoch + 1) / 5 if epoch < 4 else 0.5 * (1 + math.cos(math.pi * (epoch - 4) / 96))
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected)


def test_poly_is_nnunets() -> None:
    schedule = _schedule(1000, 0, poly)
    assert [schedule.factor(e) for e in (0, 500, 999)] == pytest.approx([1.0, 0.5**0.9, 0.001**0.9])


def test_warm_up_takes_at_most_a_tenth() -> None:
    assert _schedule(30, 50).warmup_epochs == 3
    assert _schedule(5, 50).warmup_epochs == 0


def test_resuming_needs_no_state() -> None:
    first, second = _schedule(50, 5), _schedule(50, 5)
    for epoch in range(20):
        first.step(epoch)
    second.step(19)
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]


def test_groups_cover_every_parameter_once_with_the_right_rate_and_decay() -> None:
    network = nn.ModuleDict({"fusion": nn.Linear(3, 4), "encoder": nn.Linear(4, 5)})
    network["encoder"].bias.requires_grad_(False)
    optimizer = build_adamw(network, 1e-3, 0.05, slow_learning_rate=1e-4, fast_prefixes=("fusion.",))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        id(network["fusion"].weight): (1e-3, 0.05),
        id(network["fusion"].bias): (1e-3, 0.0),
        id(network["encoder"].weight): (1e-4, 0.05),
    }
