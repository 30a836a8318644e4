import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import ArchitectureConfig, PretrainingConfig, TopologyConfig, TopoMAEConfig
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, build_topological_loss
from nnunet_topomae.masking import crop_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan, partner_network
from nnunet_topomae.topology import TopologicalLoss
from nnunet_topomae.training.copretraining import CoPretrainingStep, detach_terms, draw_mask
from nnunet_topomae.training.networks import pretraining_network
from nnunet_topomae.training.steps import optimise

CPU = torch.device("cpu")
TINY = ArchitectureConfig(vit="tiny", dims=(8, 8, 16, 16), depth=1)
SHAPE = derive_network_shape((8, 24, 16), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]], TINY)


SEED = 5


def _masks() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _step(topology: TopologyConfig) -> tuple[CoPretrainingStep, nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    network = build_copretraining_network(SHAPE, 2, TINY)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2, 2, *SHAPE.patch_size, generator=generator)
    rng = np.random.default_rng(0)
    batch = {
        "data": data,
        "key_points": torch.rand(2, 9, 3, generator=generator),
        "target_topology": [TopologyTarget(topology)(volume, rng) for volume in data],
    }
    plan = Plan(TopoMAEConfig(TINY, topology=topology), SHAPE, (1.0, 1.0, 1.0), {})
    loss = CoPretrainingLoss(PretrainingConfig(), topology)
    return CoPretrainingStep(network, loss, build_topological_loss(topology), plan, CPU), network, batch


@pytest.mark.parametrize(
    ("region", "composition"),
    [
        ("full", "paste"),
        ("crop", "full"),
        pytest.param("full", "full", marks=pytest.mark.slow),
        pytest.param("crop", "paste", marks=pytest.mark.slow),
        pytest.param("pool", "paste", marks=pytest.mark.slow),
        pytest.param("pool", "full", marks=pytest.mark.slow),
    ],
)
def test_topological_terms_are_those_of_the_composed_reconstructions(region: str, composition: str) -> None:
    topology = TopologyConfig(region=region, region_size=6, composition=composition, normalisation="paper")
    step, network, batch = _step(topology)
    terms = step(batch, _masks(), 1.0)
    mask = crop_mask(random_token_mask(2, SHAPE.token_grid, 0.5, _masks()), SHAPE.token_size)
    data, hidden = batch["data"], mask.hidden
    direct = TopologicalLoss(region, 6, normalisation="paper")
    origins = [target.origin for target in batch["target_topology"]]
    for name, branch in zip(("vit", "partner"), network(data, mask), strict=True):
        volume = branch.reconstruction
        volume = torch.where(hidden, volume, data) if composition == "paste" else volume
        expected = direct(volume, data, region_origin=origins if region == "crop" else None)
        assert terms[f"topo_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("partner", ["unetrpp", "zero", "sparse"])
def test_no_forward_or_backward_pass_asks_for_a_value(partner: str, tiny_plans: Any) -> None:
    """On a GPU that would wait until it has done all its work. Tensors without data cannot answer."""
    device, section = torch.device("meta"), PretrainingConfig(spatial="both", target="both")
    architecture, shape = TINY, SHAPE
    if partner != "unetrpp":
        section, architecture = replace(section, partner_masking=partner), replace(TINY, partner="plan")
    topology = TopologyConfig(enabled=False)  # its homology is computed from values, in threads
    config = TopoMAEConfig(architecture, section, topology)
    configuration = ConfigurationManager(tiny_plans("Dataset007_Tiny")["configurations"]["3d_fullres"])
    if planned := partner_network(configuration, config):
        strides = configuration.network_arch_init_kwargs["strides"]
        shape = derive_network_shape(SHAPE.patch_size, strides, architecture, planned.features)
    plan = Plan(config, shape, (1.0, 1.0, 1.0), {}, planned)
    with device:
        network = pretraining_network(plan, 2)
    size = (2, 2, *shape.patch_size)
    batch = {
        **{name: torch.zeros(size) for name in ("data", "inputs", "boundaries")},
        "key_points": torch.zeros(2, 9, 3),
        "vectors": torch.zeros(2, 9, 4),
        "locations": [CropLocation((-3, 0, 0), (5, 24, 16), (4, 30, 20))] * 2,
    }
    step = CoPretrainingStep(network, CoPretrainingLoss(section, topology), None, plan, device)
    terms = step(batch, _masks(), 1.0)
    terms["total"].backward()
    assert len(terms) == 14 and terms["total"].is_meta
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["boundary", "both"])
def test_corrupted_crops_are_rebuilt_everywhere(target: str) -> None:
    topology = TopologyConfig(region="full", composition="paste", normalisation="paper")
    _, _, batch = _step(topology)
    section = PretrainingConfig(target=target, spatial="vectors")
    plan = Plan(TopoMAEConfig(TINY, section, topology), SHAPE, (1.0, 1.0, 1.0), {})
    torch.manual_seed(0)
    network = pretraining_network(plan, 2).eval()  # the head has dropout
    step = CoPretrainingStep(
        network, CoPretrainingLoss(section, topology), build_topological_loss(topology), plan, torch.device("cpu")
    )
    batch |= {"inputs": batch["data"] + 1.0, "boundaries": batch["data"].sigmoid(), "vectors": torch.rand(2, 9, 4)}
    terms = step(batch, _masks(), 1.0)
    names = {"mse"} if target == "both" else set()
    names |= {"clean", "edge", "vec", "topo"}
    expected = {f"{name}_{branch}" for name in names for branch in ("vit", "partner")}
    assert set(terms) == expected | {"rec_consis", "vec_consis", "total"}
    mask = draw_mask(plan, 2, _masks(), CPU)
    assert mask.hidden.any() == (target == "both")
    output = network(batch["inputs"], mask)
    rebuilt = output.partner.reconstruction
    assert terms["clean_partner"].item() == pytest.approx((rebuilt - batch["data"]).abs().mean().item(), rel=1e-5)
    direct = TopologicalLoss("full", 6, normalisation="paper")(rebuilt, batch["data"])
    assert terms["topo_partner"].item() == pytest.approx(direct.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("composition", ["paste", "full"])
def test_padded_voxels_count_in_no_term(composition: str) -> None:
    step, network, batch = _step(TopologyConfig(region="full", composition=composition, normalisation="paper"))
    locations = [
        CropLocation((-3, 0, -5), (5, 24, 11), (4, 30, 20)),
        CropLocation((1, 2, 3), (9, 26, 19), (10, 28, 20)),
    ]
    inside = torch.stack([torch.from_numpy(location.inside())[None] for location in locations])
    batch["data"] = batch["data"] * inside
    rng = np.random.default_rng(0)
    target = TopologyTarget(step.plan.config.topology)
    batch |= {"locations": locations, "target_topology": [target(volume, rng) for volume in batch["data"]]}
    terms = step(batch, _masks(), 1.0)
    mask = crop_mask(random_token_mask(2, SHAPE.token_grid, 0.5, _masks()), SHAPE.token_size)
    data, hidden = batch["data"], mask.hidden
    counted = (hidden & inside).expand_as(data)
    direct = TopologicalLoss("full", normalisation="paper")
    for name, branch in network(data, mask).present().items():
        expected = (branch.reconstruction - data)[counted].square().mean()
        assert terms[f"mse_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)
        kept = counted if composition == "paste" else inside
        pasted = torch.where(kept, branch.reconstruction, data)
        assert terms[f"topo_{name}"].item() == pytest.approx(direct(pasted, data).item(), rel=1e-5)
    without = {key: value for key, value in batch.items() if key != "locations"}
    assert step(without, _masks(), 1.0)["mse_vit"].item() != terms["mse_vit"].item()


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["vit", "partner"])
def test_one_network_alone_has_its_own_terms_only(branch: str) -> None:
    step, _, batch = _step(TopologyConfig(region_size=7))
    expected = step(batch, _masks(), 1.0)
    torch.manual_seed(0)
    step.network = build_copretraining_network(SHAPE, 2, TINY, [branch])
    terms = step(batch, _masks(), 1.0)
    assert set(terms) == {f"mse_{branch}", f"spa_{branch}", f"topo_{branch}", "total"}
    for name in set(terms) - {"total"}:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-5)
    terms["total"].backward()


def test_total_reaches_every_weight_and_topology_is_left_out_on_request() -> None:
    step, network, batch = _step(TopologyConfig(region_size=7))
    terms = step(batch, _masks(), 1.0)
    terms["total"].backward()
    without_gradient = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without_gradient == []
    assert "topo_vit" not in step(batch, _masks(), 0.0)
    del batch["target_topology"]
    assert "topo_vit" not in step(batch, _masks(), 1.0)


@pytest.mark.slow
def test_the_gap_is_among_the_terms_where_the_distance_is_not_exact() -> None:
    step, _, batch = _step(TopologyConfig(region="full"))
    assert "topo_gap" not in step(batch, _masks(), 1.0)
    step, _, batch = _step(TopologyConfig(region="full", tolerance=0.3))
    assert 1e-9 < step(batch, _masks(), 1.0)["topo_gap"].item() <= 0.3


@pytest.mark.slow
def test_pre_training_learns() -> None:
    """The first total is near that of predicting the mean: both reconstruction heads start small."""
    step, network, batch = _step(TopologyConfig(region_size=7))
    optimizer = torch.optim.AdamW(network.parameters(), 6e-3)
    totals = []
    for _ in range(50):
        terms = step(batch, _masks(), 1.0)
        optimise(terms["total"], network, optimizer, None, 1.0, ["a"])
        totals.append(detach_terms(terms)["total"])
    assert totals[-1] < 0.7 * totals[0]


@pytest.mark.slow
def test_compiled_network_runs_with_topology() -> None:
    step, network, batch = _step(TopologyConfig(region_size=7))
    expected = detach_terms(step(batch, _masks(), 1.0))
    step.network = torch.compile(network, backend="eager")
    assert detach_terms(step(batch, _masks(), 1.0)) == pytest.approx(expected, rel=1e-4)


def test_clipping_bounds_the_gradient() -> None:
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in layer.parameters()])
    optimise(1e6 * layer(torch.ones(1, 3)).sum(), layer, optimizer, None, 0.25, ["a"])
    after = torch.cat([p.detach().flatten() for p in layer.parameters()])
    assert torch.linalg.norm(after - before).item() == pytest.approx(0.25, rel=1e-3)


def test_every_step_has_its_own_gradient() -> None:
    """The second step must not add to the gradient of the first; gradients take no memory in between."""
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    moves = []
    for _ in range(2):
        before = layer.weight.detach().clone()
        optimise(layer(torch.ones(1, 3)).sum(), layer, optimizer, None, 100.0, ["a"])
        moves.append(layer.weight.detach() - before)
        assert layer.weight.grad is None
    torch.testing.assert_close(moves[1], moves[0])


def test_a_loss_that_is_not_finite_names_the_cases_and_changes_nothing() -> None:
    layer = nn.Linear(3, 1)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.raises(RuntimeError, match="cases a, b"):
        optimise(layer(torch.full((1, 3), math.nan)).sum(), layer, optimizer, None, 1.0, ["a", "b"])
    assert torch.equal(layer.weight, before)
