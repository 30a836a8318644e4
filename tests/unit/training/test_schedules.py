import math

import pytest
import torch
from torch import nn

from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, cosine, poly


def _schedule(epochs: int, warmup: int, decay: object = cosine, steps_per_epoch: int = 10) -> WarmupSchedule:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    return WarmupSchedule(optimizer, epochs, steps_per_epoch, warmup, decay)  # type: ignore[arg-type]


def test_cosine_with_warm_up_in_closed_form() -> None:
    schedule = _schedule(10, 4)
    for step in range(100):
        schedule.step(step // 10, step % 10)
        expected = (step + 1) / 5 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 96))
        assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected)


def test_poly_is_nnunets() -> None:
    schedule = _schedule(1000, 0, poly, steps_per_epoch=1)
    assert [schedule.factor(step) for step in (0, 500, 999)] == pytest.approx([1.0, 0.5**0.9, 0.001**0.9])


def test_warm_up_takes_at_most_a_tenth_of_the_steps() -> None:
    assert _schedule(30, 50).warmup_steps == 30
    assert _schedule(30, 20).warmup_steps == 20


def test_a_training_of_few_epochs_warms_up_too() -> None:
    """Eight epochs of 20 steps once had no warm-up at all, because a tenth of the epochs was none."""
    schedule = _schedule(8, 20, poly, steps_per_epoch=20)
    assert schedule.warmup_steps == 16
    factors = [schedule.factor(step) for step in range(17)]
    assert factors[0] == pytest.approx(1 / 17) and factors == sorted(factors) and factors[16] == 1.0
    assert "warm-up of 16 of 160 steps" in schedule.describe()


@pytest.mark.parametrize("decay", [cosine, poly])
def test_steps_past_the_end_have_the_last_rate(decay: object) -> None:
    schedule = _schedule(3, 0, decay)
    assert schedule.factor(30) == schedule.factor(35) == 0.0


def test_resuming_needs_no_state() -> None:
    first, second = _schedule(50, 5), _schedule(50, 5)
    for epoch in range(20):
        first.step(epoch)
    second.step(19)
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]


def _two_parts() -> nn.ModuleDict:
    return nn.ModuleDict({"fusion": nn.Linear(3, 4), "encoder": nn.Linear(4, 5)})


def test_groups_cover_every_parameter_once_with_the_right_rate_and_decay() -> None:
    network = _two_parts()
    network["encoder"].bias.requires_grad_(False)
    optimizer = build_adamw(network, 1e-3, 0.05, slow_learning_rate=1e-4, fast_prefixes=("fusion.",))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        id(network["fusion"].weight): (1e-3, 0.05),
        id(network["fusion"].bias): (1e-3, 0.0),
        id(network["encoder"].weight): (1e-4, 0.05),
    }


def test_a_wrapped_network_is_refused_and_an_unwrapped_one_keeps_its_rates() -> None:
    """torch.compile puts `_orig_mod.` before every name, so that no part is fresh any more."""
    network = _two_parts()
    compiled = torch.compile(network, backend="eager")
    with pytest.raises(ValueError, match=r"'fusion\.'.*_orig_mod\.fusion\.weight"):
        build_adamw(compiled, 1e-3, 0.05, slow_learning_rate=1e-4, fast_prefixes=("fusion.",))
    optimizer = build_adamw(unwrap(compiled), 1e-3, 0.05, slow_learning_rate=1e-4, fast_prefixes=("fusion.",))
    weights = {group["lr"]: 0 for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        weights[group["lr"]] += sum(parameter.numel() for parameter in group["params"])
    assert weights == {1e-3: 3 * 4 + 4, 1e-4: 4 * 5 + 5}


def test_the_log_names_every_rate_and_its_number_of_weights() -> None:
    optimizer = build_adamw(_two_parts(), 1e-3, 0.05, slow_learning_rate=1e-4, fast_prefixes=("fusion.",))
    line = WarmupSchedule(optimizer, 3, 10, 0, poly).describe()
    assert "0.001 for 12 weights (decay 0.05)" in line and "0.0001 for 20 weights (decay 0.05)" in line
