"""Shares of the gradient, against closed forms and against the gradients of a whole step."""

import json
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.losses.copretraining import CoPretrainingLoss
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.gradients import GradientWatch, gradient_norms, gradient_shares, weight_for_share
from nnunet_topomae.training.plots import measured_series, plot_terms

TINY = ArchitectureConfig(vit="tiny", dims=(4, 4, 8, 8), depth=1)
SHAPE = derive_network_shape((4, 8, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 1, 2]], TINY)


def test_norms_in_closed_form_and_the_step_goes_on() -> None:
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(3, 1, bias=False)
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 2.0])
    terms = {"a": 2 * first(a).sum(), "b": second(b).sum(), "both": (first(a) + second(b)).sum()}
    terms |= {"constant": torch.tensor(7.0)}
    norms = gradient_norms(terms, {"first": first, "second": second}, scale=1024.0)
    assert norms == {"first": {"a": 10.0, "both": 5.0}, "second": {"b": 3.0, "both": 3.0}}
    assert first.weight.grad is None
    (terms["a"] + terms["b"]).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(first.weight.grad, 2 * a[None])


def test_shares_leave_out_what_is_not_finite_and_parts_without_gradient() -> None:
    nothing = {"mse": 0.0}
    shares = gradient_shares({"vit": {"mse": 3.0, "topo_vit": 1.0, "spa": float("nan")}, "partner": nothing})
    assert shares == {"vit": {"mse": 0.75, "topo_vit": 0.25}}


@pytest.mark.parametrize("wanted", [0.05, 0.5])
def test_the_weight_reaches_the_wanted_share(wanted: float) -> None:
    weight, own, others = 1.0, 0.003, 0.7
    for _ in range(12):
        weight = weight_for_share(weight, weight * own / (weight * own + others), wanted)
    assert weight * own / (weight * own + others) == pytest.approx(wanted, rel=0.01)


def test_a_weight_without_a_share_stays_and_others_are_bounded() -> None:
    assert weight_for_share(2.0, 0.0, 0.1) == 2.0 == weight_for_share(2.0, 1.0, 0.1)
    assert weight_for_share(1.0, 1e-12, 0.9) == 1e3 and weight_for_share(1.0, 1 - 1e-12, 0.1) == 1e-2


def _watch(compiled: bool = False, **topology: Any) -> tuple[GradientWatch, dict[str, Any], list[str]]:
    torch.manual_seed(0)
    network = build_copretraining_network(SHAPE, 1, TINY)
    settings = TopologyConfig(**topology)
    config = TopoMAEConfig(TINY, PretrainingConfig(gradients_every=2), settings)
    plan = Plan(config, SHAPE, (1.0, 1.0, 1.0), {})
    loss = CoPretrainingLoss(config.pretraining, settings)
    wrapped = torch.compile(network, backend="eager") if compiled else network
    step = CoPretrainingStep(wrapped, loss, None, plan, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2, 1, *SHAPE.patch_size, generator=generator)
    lines: list[str] = []
    batch = {"data": data, "key_points": torch.rand(2, 9, 3, generator=generator)}
    return GradientWatch(step, config, lines.append), batch, lines


@pytest.mark.parametrize("compiled", [False, True])
def test_every_second_epoch_the_first_batch_is_measured_and_nothing_else_changes(compiled: bool) -> None:
    """A compiled network is measured without its wrapper, whose graphs run backwards once only."""
    watch, batch, lines = _watch(compiled)
    assert (watch.step.network is watch.network) == (not compiled)
    random = torch.get_rng_state()
    plain = copy(watch.step)
    plain.network = watch.network
    with torch.no_grad():
        watch.start(0)
        measured = watch(batch, [5, 6])
        assert measured == plain(batch, [5, 6], 1.0)
    assert torch.equal(torch.get_rng_state(), random)
    shares = watch.found["gradient_shares"]
    assert set(shares) == {"vit", "partner"}
    assert set(shares["vit"]) == {"mse_vit", "spa_vit", "spa_consis", "rec_consis"}
    assert all(sum(of.values()) == pytest.approx(1.0) for of in shares.values())
    assert len(lines) == 1 and "shares of the encoders' gradients: vit: " in lines[0]
    assert all(parameter.grad is None for parameter in watch.network.parameters())
    watch.start(1)
    assert watch.found == {} and not watch._due


def test_monitoring_has_the_full_weight_of_topology_in_all_epochs() -> None:
    watch, batch, _ = _watch()
    step, scales = watch.step, []
    watch.step = lambda batch, seeds, scale: scales.append(scale) or step(batch, seeds, scale)  # type: ignore[assignment]
    watch.start(1)
    watch(batch, [5, 6])
    assert scales == [1.0]


def test_an_adapted_weight_is_in_the_record_and_comes_back() -> None:
    watch, _, lines = _watch(weight="auto", auto_share=0.2)
    watch._use({"vit": {"mse_vit": 3.0, "topo_vit": 1.0}, "partner": {"mse_partner": 99.0, "topo_partner": 1.0}})
    record = json.loads(json.dumps({"epoch": 0, **watch.found}))
    assert record["gradient_shares"]["vit"]["topo_vit"] == 0.25
    assert record["topology_weight"] == {
        "topo_vit": pytest.approx(0.75**0.5),
        "topo_partner": pytest.approx((0.25 * 99) ** 0.5),
    }
    assert "topo_partner now has the weight 4.97" in lines[-1]
    loss = watch.step.loss
    assert loss.weighted({"topo_vit": torch.tensor(1.0)})["topo_vit"] == pytest.approx(0.05 * 0.75**0.5)
    second, _, _ = _watch(weight="auto")
    second.resume([record, {"epoch": 1}])
    assert second.step.loss.factors == loss.factors
    fixed, _, _ = _watch()
    fixed.resume([record])
    assert fixed.step.loss.factors == {}


def test_too_little_memory_leaves_the_shares_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, batch, lines = _watch()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("nnunet_topomae.training.gradients.gradient_norms", fail)
    watch.start(0)
    with torch.no_grad():
        terms = watch(batch, [5, 6])
        assert float(terms["total"]) == float(watch.step(batch, [5, 6], 1.0)["total"])
    assert watch.found == {} and "pretraining.gradients_every = 0" in lines[0]


@pytest.mark.slow
def test_progress_has_a_panel_per_encoder(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"epoch": epoch, "train": {"total": 1.0 / (1 + epoch)}, "validation": {"total": 1.2 / (1 + epoch)}}
        for epoch in range(12)
    ]
    for epoch in (0, 10):
        records[epoch]["gradient_shares"] = {"vit": {"mse_vit": 0.9, "topo_vit": 0.1}, "partner": {"mse_partner": 1.0}}
    series = measured_series(records)
    assert list(series) == ["share of the gradient, vit", "share of the gradient, partner"]
    assert series["share of the gradient, vit"]["topo_vit"] == [(0, 0.1), (10, 0.1)]
    plot_terms(records, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_auto_needs_the_measurement() -> None:
    with pytest.raises(ValueError, match=r"weight = 'auto' needs topomae.pretraining.gradients_every above 0"):
        TopoMAEConfig.from_configuration(
            {"topomae": {"topology": {"weight": "auto"}, "pretraining": {"gradients_every": 0}}}
        )
    with pytest.raises(ValueError, match=r"topology.weight = 'aut' must be of type float, or auto"):
        TopologyConfig.read({"weight": "aut"})
