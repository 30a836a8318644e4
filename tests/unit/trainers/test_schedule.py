"""Learning rates inside the trainers: one step after the other, and after `--c`."""

from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.trainers.seeded_trainer import SeededNNUNetTrainer
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.training.schedules import WarmupSchedule, poly
from nnunet_topomae.training.skipping import SkippedSteps

EPOCHS, STEPS, WARMUP, PEAK = 5, 4, 3, 0.5


class _Loss(nn.Module):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()


def _trainer(epoch: int) -> Any:
    """What a training step needs of a trainer, with a network of one weight."""
    network = nn.Conv3d(1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), PEAK)
    trainer = UNETRPPTrainer.__new__(UNETRPPTrainer)
    trainer.network, trainer.optimizer, trainer.loss, trainer.grad_scaler = network, optimizer, _Loss(), None
    trainer.device, trainer.current_epoch, trainer.step_of_epoch = torch.device("cpu"), epoch, 0
    trainer.bar = None
    trainer.lr_scheduler = WarmupSchedule(optimizer, EPOCHS, STEPS, WARMUP, poly)
    trainer.config, trainer.skipped = TopoMAEConfig(), SkippedSteps()
    return trainer


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_step_has_its_own_rate(epoch: int) -> None:
    """Also where a training continues: the rate depends on the place in the training alone."""
    trainer = _trainer(epoch)
    batch = {"data": torch.ones(2, 1, 3, 4, 5), "target": torch.zeros(2, 1, 3, 4, 5), "keys": ["a", "b"]}
    rates = []
    for _ in range(STEPS):
        trainer.train_step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [PEAK * trainer.lr_scheduler.factor(epoch * STEPS + step) for step in range(STEPS)]
    assert len(set(rates)) == STEPS


def test_stock_nnunet_with_a_seed_does_its_step_and_skips_those_that_are_not_finite() -> None:
    trainers = []
    for kind in (nnUNetTrainer, SeededNNUNetTrainer):
        trainer = _trainer(0)
        trainer.__class__ = kind
        torch.manual_seed(0)
        trainer.network.reset_parameters()
        trainers.append(trainer)
    stock, ours = trainers
    ours.print_to_log_file = (lines := []).append
    batch = {"data": torch.full((2, 1, 3, 4, 5), 30.0), "target": torch.zeros(2, 1, 3, 4, 5), "keys": ["a", "b"]}
    assert ours.train_step(batch)["loss"] == stock.train_step(batch)["loss"]
    after = [trainer.network.weight.detach().clone() for trainer in trainers]
    assert torch.equal(*after) and stock.network.weight.grad is not None
    batch["data"] = batch["data"] * torch.nan
    ours.train_step(batch)
    assert torch.equal(ours.network.weight, after[1]) and ours.skipped.total == 1
    assert lines == ["step skipped: loss nan or its gradient is not finite; a, b"]
