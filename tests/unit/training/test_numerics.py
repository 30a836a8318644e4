"""Crops of extreme content, and steps whose loss or gradient is not finite."""

import math
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import GradScaler, nn

from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data.loaders import build_pretraining_loader
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, build_topological_loss
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import PendingLoss
from nnunet_topomae.training.copretraining import CoPretrainingStep, detach_terms
from nnunet_topomae.training.networks import pretraining_network
from nnunet_topomae.training.record import average_terms
from nnunet_topomae.training.skipping import SkippedSteps
from nnunet_topomae.training.steps import optimise

TINY = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
SHAPE = derive_network_shape((8, 24, 16), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], TINY)
TOPOLOGY = TopologyConfig(region="crop", region_size=6)
TOPOMAE = TopoMAEConfig(TINY, topology=TOPOLOGY)
VECTORPOSE = TOPOMAE.for_vectorpose()
CPU = torch.device("cpu")


class _Case(nnUNetDatasetNumpy):
    """One case in memory."""

    def __init__(self, volume: np.ndarray) -> None:
        self.volume, self.identifiers = volume, ["a"]

    def load_case(self, case: str) -> tuple[np.ndarray, None, None, dict[str, Any]]:
        return self.volume, None, None, {}


def _plan(config: TopoMAEConfig) -> Plan:
    return Plan(config, SHAPE, (1.0, 1.0, 1.0), {})


def _batch(volume: np.ndarray, config: TopoMAEConfig = TOPOMAE) -> dict[str, Any]:
    labels = LabelManager({"background": 0, "organ": 1}, None)
    return next(build_pretraining_loader(_Case(volume), 2, _plan(config), labels, 1))


def _step(config: TopoMAEConfig = TOPOMAE) -> tuple[CoPretrainingStep, nn.Module]:
    torch.manual_seed(0)
    plan = _plan(config)
    network = pretraining_network(plan, 1)
    loss = CoPretrainingLoss(config.pretraining, config.topology, config.architecture.has_vit)
    return CoPretrainingStep(network, loss, build_topological_loss(config.topology), plan, CPU), network


def _supervised(data: torch.Tensor, label: int) -> tuple[torch.Tensor, nn.Module]:
    """nnU-Net's loss of a UNETR++ where all voxels have one label; 2 is the one to ignore."""
    torch.manual_seed(0)
    network = build_unetrpp(SHAPE, 1, 2, TINY, deep_supervision=False)
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, ignore_label=2, dice_class=MemoryEfficientSoftDiceLoss)
    found: torch.Tensor = loss(network(data), torch.full_like(data, label))
    return found, network


def _gradients_are_finite(network: nn.Module) -> bool:
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return len(gradients) > 50 and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape)


VOLUMES: dict[str, Callable[[], np.ndarray]] = {
    "zero": lambda: np.zeros((1, 8, 24, 16), np.float32),
    "constant": lambda: np.full((1, 8, 24, 16), -3.5, np.float32),
    "one voxel, the rest is padding": lambda: np.ones((1, 1, 1, 1), np.float32),
    "single slice": lambda: _random((1, 1, 30, 20)).astype(np.float32),
    "float64": lambda: _random((1, 9, 25, 17)),
    "integers": lambda: (100 * _random((1, 9, 25, 17))).astype(np.int16),
    "a million": lambda: (1e6 * _random((1, 9, 25, 17))).astype(np.float32),
    "denormal": lambda: (1e-42 * _random((1, 9, 25, 17))).astype(np.float32),
    "one bright voxel": lambda: np.pad(np.full((1, 1, 1, 1), 1e6), ((0, 0), (4, 4), (12, 12), (8, 8))),
}


QUICK = ("constant", "one voxel, the rest is padding", "a million")


NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VOLUMES]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TOPOMAE, {"mse_vit", "mse_partner", "topo_vit", "topo_partner"}),
        (VECTORPOSE, {"clean_partner", "edge_partner", "vec_partner"}),
    ],
    ids=["TopoMAE", "VectorPOSE"],
)
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_of_extreme_crops_are_finite(name: str, config: TopoMAEConfig, expected: set[str]) -> None:
    """Through loader, networks and all terms."""
    batch = _batch(VOLUMES[name](), config)
    assert batch["data"].dtype == torch.float32
    step, network = _step(config)
    terms = step(batch, torch.Generator().manual_seed(1), 1.0)
    assert expected <= set(terms) and all(map(math.isfinite, detach_terms(terms).values()))
    terms["total"].backward()
    assert _gradients_are_finite(network)


@pytest.mark.parametrize("label", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_supervised_loss_of_extreme_crops_is_finite(name: str, label: int) -> None:
    loss, network = _supervised(_batch(VOLUMES[name](), VECTORPOSE)["data"], label)
    assert math.isfinite(float(loss.detach()))
    loss.backward()
    assert _gradients_are_finite(network)


@pytest.mark.parametrize("config", [TOPOMAE, VECTORPOSE], ids=["TopoMAE", "VectorPOSE"])
def test_a_batch_that_is_all_padding_is_no_error(config: TopoMAEConfig) -> None:
    """The loaders draw no such crop, but all hidden voxels of a batch may be padding."""
    batch = _batch(VOLUMES["zero"](), config)
    batch["locations"] = [CropLocation((50, 50, 50), (58, 74, 66), SHAPE.patch_size)] * 2
    step, network = _step(config)
    terms = step(batch, torch.Generator().manual_seed(1), 1.0)
    values = detach_terms(terms)
    assert all(map(math.isfinite, values.values()))
    assert all(value == 0 for name, value in values.items() if name.startswith(("mse", "topo", "rec", "clean", "edge")))
    terms["total"].backward()
    assert _gradients_are_finite(network)


def _too_bright() -> np.ndarray:
    return np.pad(np.full((1, 1, 1, 1), 1e30, np.float32), ((0, 0), (4, 3), (12, 11), (8, 7)))


def test_an_intensity_of_1e30_skips_the_step_of_topomae_and_ends_in_an_error_that_names_the_case() -> None:
    batch = _batch(_too_bright())
    step, network = _step()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    terms = step(batch, torch.Generator().manual_seed(1), 0.0)
    skipped = SkippedSteps(most_in_a_row=1)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 0.1)
    with pytest.raises(RuntimeError, match=r"mse_vit is (nan|inf).*of the cases a\. Look at their images"):
        optimise(terms, network, optimizer, None, 1.0, batch["keys"], skipped)
    assert skipped.total == 1 and all(map(torch.equal, network.parameters(), before)) and not optimizer.state


def test_an_intensity_of_1e30_leaves_the_other_losses_finite() -> None:
    """They are linear in the image, or follow a norm; docs/reliability.md says what that means."""
    batch = _batch(_too_bright(), VECTORPOSE)
    step, network = _step(VECTORPOSE)
    terms = step(batch, torch.Generator().manual_seed(1), 0.0)
    assert float(terms["total"].detach()) > 1e20 and math.isfinite(float(terms["total"].detach()))
    terms["total"].backward()
    assert _gradients_are_finite(network)
    loss, network = _supervised(batch["data"], 0)
    assert math.isfinite(float(loss.detach()))
    loss.backward()
    assert _gradients_are_finite(network)


def test_a_reconstruction_that_is_not_finite_is_skipped_and_not_an_error_of_topology() -> None:
    step, network = _step()
    batch = _batch(_random((1, 8, 24, 16)))
    batch["data"][0] = math.inf  # as an overflow in half precision inside the network
    terms = step(batch, torch.Generator().manual_seed(1), 1.0)
    assert not math.isfinite(float(terms["total"]))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    skipped = SkippedSteps()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 0.1)
    assert not optimise(terms, network, optimizer, None, 1.0, batch["keys"], skipped)
    assert skipped.total == 1 and all(map(torch.equal, network.parameters(), before)) and not optimizer.state


def _layer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer, torch.optim.SGD(layer.parameters(), 0.5)


def _loss(layer: nn.Linear, value: float) -> dict[str, torch.Tensor]:
    return {"fine": torch.ones(()), "total": layer(torch.full((1, 2), value)).sum()}


def test_skipped_steps_change_nothing_and_the_next_good_one_counts_again() -> None:
    (layer, optimizer), skipped = _layer(), SkippedSteps(most_in_a_row=3)
    good = []
    for value in (math.nan, math.inf, 1.0, math.nan, -math.inf, 1.0):
        before = layer.weight.detach().clone()
        good.append(optimise(_loss(layer, value), layer, optimizer, None, 1.0, ["a"], skipped))
        assert good[-1] != torch.equal(layer.weight, before) and layer.weight.grad is None
    assert good == [False, False, True, False, False, True] and skipped.total == 4


def test_too_many_in_a_row_name_terms_and_cases() -> None:
    (layer, optimizer), skipped = _layer(), SkippedSteps(most_in_a_row=3)
    batches = iter([["a", "b"], ["b", "c"], ["b", "a"]])
    with pytest.raises(RuntimeError, match=r"3 training steps in a row .*\(total is nan\).*cases b, a, c\. .*--c"):
        for cases in batches:
            optimise(_loss(layer, math.nan), layer, optimizer, None, 1.0, cases, skipped)
    assert next(batches, None) is None and torch.equal(layer.weight, torch.ones(1, 2))


def test_a_gradient_that_is_not_finite_is_skipped_although_the_loss_is_finite() -> None:
    layer, optimizer = _layer()
    with torch.no_grad():
        layer.weight.zero_()
    loss = layer(torch.ones(1, 2)).abs().sqrt().sum()  # 0, with an infinite slope
    with pytest.raises(RuntimeError, match="the gradient alone is not finite"):
        optimise(loss, layer, optimizer, None, 1.0, ["a"])
    assert torch.equal(layer.weight, torch.zeros(1, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_scaler_lowers_its_scale(value: float) -> None:
    (layer, optimizer), skipped = _layer(), SkippedSteps()
    scaler = GradScaler("cpu", init_scale=1024.0)
    assert not optimise(_loss(layer, value), layer, optimizer, scaler, 1.0, ["a"], skipped)
    assert scaler.get_scale() == 512.0 and torch.equal(layer.weight, torch.ones(1, 2))
    assert optimise(_loss(layer, 1.0), layer, optimizer, scaler, 1.0, ["a"], skipped)
    assert scaler.get_scale() == 512.0 and not torch.equal(layer.weight, torch.ones(1, 2))


def test_the_mean_of_an_epoch_leaves_skipped_steps_out() -> None:
    steps: list[Any] = [{"total": 1.0}, {"total": math.nan, "topo": math.inf}, {"total": 3.0}]
    means = average_terms(steps)
    assert means["total"] == 2.0 and math.isnan(means["topo"])


class _Hanging:
    """A topological loss whose threads never end, or fail."""

    gap = 0.0

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.waited: list[float | None] = []

    def start(self, *_: Any, **__: Any) -> PendingLoss:
        future: Future[Any] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        return PendingLoss(torch.zeros(1, 1, 2, 2, 2), [future], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "says"), [(None, r"more than 0.05 s \(topology.time_limit\)"), (MemoryError("full"), "MemoryError: full")]
)
def test_a_step_goes_on_without_a_topological_term_that_hangs_or_fails(error: Exception | None, says: str) -> None:
    step, _ = _step()
    lines: list[str] = []
    topology = replace(TOPOLOGY, time_limit=0.05)
    step.plan = replace(step.plan, config=replace(step.plan.config, topology=topology))
    real, step.log = step.topological_loss, lines.append
    batch, masks = _batch(_random((1, 8, 24, 16))), torch.Generator().manual_seed(1)
    step.topological_loss = _Hanging(error)  # type: ignore[assignment]
    for _ in range(4):
        terms = step(batch, masks, 1.0)
        assert not {"topo_vit", "topo_unetrpp"} & set(terms) and math.isfinite(float(terms["total"]))
    assert len(lines) == step.missing.total == 4 and re.search(f"4 so far: .*{says}; cases a, a", lines[-1])
    step.plan = replace(step.plan, config=replace(step.plan.config, topology=TOPOLOGY))
    step.topological_loss = real
    assert "topo_vit" in step(batch, masks, 1.0)
    step.topological_loss = _Hanging(MemoryError("full"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"the 5th step in a row\. .*topology.region_size.*--c"):
        for _ in range(5):
            step(batch, masks, 1.0)
    assert len(lines) == 8


def test_a_step_goes_on_without_targets_for_the_topological_term() -> None:
    step, _ = _step()
    lines: list[str] = []
    step.log = lines.append
    batch, masks = _batch(_random((1, 8, 24, 16))), torch.Generator().manual_seed(1)
    del batch["target_topology"]
    assert "topo_vit" not in step(batch, masks, 1.0) and not lines  # a step that is planned without the term
    batch["no_target_topology"] = "the diagrams of the input needed more than 300 s (topology.time_limit)"
    step(batch, masks, 0.0)
    assert step.missing.total == 0
    with pytest.raises(RuntimeError, match="input needed more than 300 s .*the 5th step in a row"):
        for _ in range(5):
            assert "topo_vit" not in step(batch, masks, 1.0)
    assert len(lines) == 4 and "cases a, a" in lines[0]
