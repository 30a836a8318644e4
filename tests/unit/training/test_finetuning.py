"""Schedules of fine-tuning, with both partners: what learns when, and that every stage can be continued."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_topomae.architectures.build import build_unetr, build_unetrpp
from nnunet_topomae.architectures.fusion import FusionNetwork, TokenFusion
from nnunet_topomae.architectures.partner import declare_partner
from nnunet_topomae.architectures.roles import check_declarations, layers_below_output
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.architectures.vit import ViTEncoder, ViTPreset
from nnunet_topomae.config import ArchitectureConfig, FinetuningConfig
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.finetuning import prepare_schedule, without_pretraining
from nnunet_topomae.training.schedules import Pace, WarmupSchedule, build_adamw, build_sgd, poly
from nnunet_topomae.training.steps import optimise
from nnunet_topomae.training.transfer import transferred_parts

EPOCHS, STEPS, STAGE = 5, 2, 2
TINY = ArchitectureConfig(vit="tiny", dims=(4, 4, 8, 8), depth=1)
SHAPE = derive_network_shape((4, 8, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 1, 2]], TINY)
SCHEDULES = ("full", "warmup", "staged", "layer_decay", "head_only")


def _fusion() -> nn.Module:
    vit, partner = ViTPreset(6, 4, 1, 6, 1, 1), build_unetrpp(SHAPE, 1, 2, TINY, deep_supervision=False)
    encoder = ViTEncoder(SHAPE.token_grid, SHAPE.token_size, 1, vit)
    return FusionNetwork(encoder, TokenFusion(vit.width, SHAPE), partner.encoder, partner.decoder)


def _nnunet() -> nn.Module:
    network = PlainConvUNet(1, 3, (2, 3, 4), nn.Conv3d, 3, (1, 2, 2), 1, 2, 1, True, nn.InstanceNorm3d)
    return declare_partner(network)


def _section(schedule: str) -> FinetuningConfig:
    return FinetuningConfig(
        epochs=EPOCHS, iterations_per_epoch=STEPS, stage_epochs=STAGE, warmup_steps=1, schedule=schedule
    )


class _Run:
    """A training without data: gradients are random, but the same for everybody."""

    def __init__(self, make: Callable[[], nn.Module], schedule: str) -> None:
        torch.manual_seed(0)
        self.network, section, self.lines = make(), _section(schedule), []
        network: Any = unwrap(self.network)
        self.fresh = transferred_parts(network, "both").fresh
        paces = prepare_schedule(network, section, self.fresh, self.lines.append)
        if any("fusion" in name for name in self.fresh):
            groups: torch.optim.Optimizer = build_adamw(network, 1e-2, 0.05, (0.9, 0.999), 1e-3, self.fresh, paces)
        else:
            groups = build_sgd(network, 1e-2, 1e-3, self.fresh, paces)
        self.optimizer = groups
        self.schedule = WarmupSchedule(groups, EPOCHS, STEPS, section.warmup_steps, poly)

    def epochs(self, first: int, end: int, loss: Callable[[nn.Module], Tensor] | None = None) -> None:
        for step in range(first * STEPS, end * STEPS):
            self.schedule.step(step // STEPS, step % STEPS)
            generator = torch.Generator().manual_seed(step)
            weights = [p for p in self.network.parameters() if p.requires_grad]
            term = sum((torch.randn(p.shape, generator=generator) * p).sum() for p in weights)
            optimise(term if loss is None else loss(self.network), self.network, self.optimizer, None, 1.0, ["a"])

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in unwrap(self.network).named_parameters()}

    def moved(self, before: dict[str, Tensor]) -> set[str]:
        return {name for name, value in self.state().items() if not torch.equal(value, before[name])}

    def is_encoder(self, name: str) -> bool:
        return name.startswith(("vit_encoder.", "encoder."))


@pytest.mark.slow
@pytest.mark.parametrize("make", [_fusion, _nnunet])
def test_what_learns_in_each_stage(make: Callable[[], nn.Module]) -> None:
    runs = {schedule: _Run(make, schedule) for schedule in SCHEDULES}
    for schedule, run in runs.items():
        start = run.state()
        run.epochs(0, STAGE)
        first = run.moved(start)
        middle = run.state()
        run.epochs(STAGE, EPOCHS)
        second = run.moved(middle)
        everything, fresh = set(start), {name for name in start if name.startswith(tuple(run.fresh))}
        encoders = {name for name in start if run.is_encoder(name) and name not in fresh}
        expected = {"head_only": (fresh, fresh), "staged": (everything - encoders, everything)}
        assert (first, second) == expected.get(schedule, (everything, everything)), schedule
        assert encoders and fresh
        assert len(run.lines) == (schedule != "full")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "schedule"), [(_fusion, "staged"), *((_nnunet, schedule) for schedule in SCHEDULES)])
def test_a_training_continues_inside_every_stage(make: Callable[[], nn.Module], schedule: str) -> None:
    whole = _Run(make, schedule)
    checkpoints: dict[int, bytes] = {}
    for epoch in range(EPOCHS):
        whole.epochs(epoch, epoch + 1)
        file = io.BytesIO()
        torch.save({"weights": whole.network.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
        checkpoints[epoch + 1] = file.getvalue()
    for epoch in (1, STAGE, EPOCHS - 1):
        again = _Run(make, schedule)
        content = torch.load(io.BytesIO(checkpoints[epoch]), weights_only=True)
        again.network.load_state_dict(content["weights"])
        again.optimizer.load_state_dict(content["optimizer"])
        again.epochs(epoch, EPOCHS)
        expected = whole.state()
        assert all(torch.equal(value, expected[name]) for name, value in again.state().items())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["staged", "head_only"])
def test_frozen_parts_of_a_compiled_network(schedule: str) -> None:
    run = _Run(lambda: torch.compile(_nnunet(), backend="eager"), schedule)  # type: ignore[arg-type]
    start, data = run.state(), torch.randn(1, 1, 4, 8, 8)
    run.epochs(0, 1, lambda network: network(data).square().mean())
    assert not any(run.is_encoder(name) for name in run.moved(start)) and run.moved(start)
    run.epochs(STAGE, STAGE + 1, lambda network: network(data).square().mean())
    assert any(run.is_encoder(name) for name in run.moved(start)) == (schedule == "staged")


def test_rates_of_every_pace_in_closed_form() -> None:
    assert [Pace(start=3, ramp=2).at(step) for step in range(7)] == [0, 0, 0, 1 / 3, 2 / 3, 1, 1]
    assert Pace().at(0) == Pace().at(99) == 1.0
    run = _Run(_nnunet, "warmup")
    run.schedule.step(0, 1)
    base = run.schedule.factor(1)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-2 * base, 1e-3 * base * 2 / 5])
    assert "rising over 4 steps" in run.schedule.describe()
    assert "frozen for 4 steps, rising over 1 steps" in _Run(_nnunet, "staged").schedule.describe()


@pytest.mark.parametrize("make", [_fusion, _nnunet])
def test_full_is_what_it_was(make: Callable[[], nn.Module]) -> None:
    """Groups, their order and their keys, so that checkpoints of earlier versions continue."""
    run = _Run(make, "full")
    build: Any = build_sgd if make is _nnunet else build_adamw
    settings = (1e-2,) if make is _nnunet else (1e-2, 0.05, (0.9, 0.999))
    network = unwrap(run.network)
    plain = build(network, *settings, slow_learning_rate=1e-3, fast_prefixes=run.fresh)
    run.schedule.step(0)
    for group, old in zip(run.optimizer.param_groups, plain.param_groups, strict=True):
        assert set(group) == set(old) and group["weight_decay"] == old["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in old["params"]]


def test_layers_are_counted_from_the_output_of_their_encoder() -> None:
    fusion, unet = _fusion(), _nnunet()
    for network in (fusion, unet, build_unetr(SHAPE, 1, 2, TINY)):
        check_declarations(network)
    vit = layers_below_output(fusion.vit_encoder)  # type: ignore[arg-type]
    blocks = len(fusion.vit_encoder.blocks)  # type: ignore[arg-type, union-attr]
    assert vit["patch_embedding.weight"] == blocks + 1 and vit["norm.weight"] == 1
    assert [vit[f"blocks.{n}.norm1.weight"] for n in (0, blocks - 1)] == [blocks, 1]
    partner = layers_below_output(fusion.encoder)  # type: ignore[arg-type]
    stages = len(SHAPE.dims)
    last = (f"stages.{stages - 1}.", f"downsampling.{stages - 1}.")
    assert {partner[name] for name in partner if name.startswith(last)} == {1}
    assert {partner[name] for name in partner if name.startswith("full_resolution.")} == {stages + 1}
    own = layers_below_output(unet.encoder)  # type: ignore[arg-type]
    assert sorted(set(own.values())) == [1, 2, 3]
    run = _Run(_nnunet, "layer_decay")
    rates = {
        id(p): peak for g, peak in zip(run.optimizer.param_groups, run.schedule.peaks, strict=True) for p in g["params"]
    }
    for name, parameter in run.network.named_parameters():
        depth = own.get(name.removeprefix("encoder."), 0) if name.startswith("encoder.") else 0
        rate = 1e-2 if name.startswith("decoder.seg_layers.") else 1e-3 * 0.75**depth
        assert rates[id(parameter)] == pytest.approx(rate)


def test_a_part_that_starts_fresh_is_not_held_back() -> None:
    network = _fusion()
    fresh = transferred_parts(network, "vit").fresh  # the partner is left out
    paces = prepare_schedule(network, _section("staged"), fresh, str)
    assert paces and all(name.startswith("vit_encoder.") for name in paces)


def test_stages_longer_than_the_training_and_schedules_without_weights() -> None:
    for schedule in ("warmup", "staged"):
        with pytest.raises(ValueError, match=r"stage_epochs = 50 must be below topomae.finetuning.epochs = 50"):
            FinetuningConfig(epochs=50, schedule=schedule)
    assert FinetuningConfig(epochs=50).stage_epochs == 50
    lines: list[str] = []
    without_pretraining(FinetuningConfig(), lines.append)
    without_pretraining(FinetuningConfig(schedule="staged"), lines.append)
    assert len(lines) == 1 and "finetuning.schedule = staged has no effect" in lines[0]
    with pytest.raises(ValueError, match="would train nothing"):
        prepare_schedule(_nnunet(), _section("head_only"), ["nothing."], str)
