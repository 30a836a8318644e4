"""Every term against a loop over voxels, and the overall loss against the paper's formula written out."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.config import PretrainingConfig, TopologyConfig
from nnunet_topomae.losses.consistency import reconstruction_consistency, spatial_consistency
from nnunet_topomae.losses.copretraining import (
    TERMS,
    CoPretrainingLoss,
    TopologicalTerms,
    compose_reconstruction,
    term_weights,
)
from nnunet_topomae.losses.reconstruction import hidden_mse
from nnunet_topomae.losses.spatial import key_point_mse

SHAPE = (2, 3, 4, 5, 6)


def _batch(seed: int) -> tuple[CoPretrainingOutput, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def branch() -> BranchOutput:
        return BranchOutput(torch.randn(SHAPE, generator=generator), torch.rand(2, 9, 3, generator=generator) * 2 - 1)

    hidden = torch.rand(2, 1, *SHAPE[2:], generator=generator) < 0.4
    data = torch.randn(SHAPE, generator=generator)
    return CoPretrainingOutput(branch(), branch()), data, hidden, torch.rand(2, 9, 3, generator=generator)


def test_hidden_mse_equals_a_loop() -> None:
    output, data, hidden, _ = _batch(0)
    errors = [
        float(output.vit.reconstruction[b, c, z, y, x] - data[b, c, z, y, x]) ** 2
        for b, c, z, y, x in itertools.product(*map(range, SHAPE))
        if hidden[b, 0, z, y, x]
    ]
    assert hidden_mse(output.vit.reconstruction, data, hidden).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_hidden_mse_has_no_gradient_at_visible_voxels() -> None:
    output, data, hidden, _ = _batch(1)
    reconstruction = output.vit.reconstruction.requires_grad_()
    hidden_mse(reconstruction, data, hidden).backward()
    assert reconstruction.grad is not None
    assert torch.equal(reconstruction.grad != 0, hidden.expand(SHAPE))


def test_nothing_hidden_is_an_error() -> None:
    with pytest.raises(ValueError, match="hides no voxel"):
        hidden_mse(torch.zeros(SHAPE), torch.zeros(SHAPE), torch.zeros(2, 1, *SHAPE[2:], dtype=torch.bool))


def test_half_precision_terms_are_computed_in_float32() -> None:
    reconstruction = torch.full(SHAPE, 300.0, dtype=torch.float16)  # its square overflows float16
    hidden = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    assert hidden_mse(reconstruction, torch.zeros(SHAPE), hidden).item() == pytest.approx(90000.0)


def test_key_point_mse_and_consistency() -> None:
    output, _, hidden, points = _batch(2)
    vit, unetrpp = output
    expected = np.mean((vit.key_points.numpy() - points.numpy()) ** 2)
    assert key_point_mse(vit.key_points, points).item() == pytest.approx(expected, rel=1e-5)
    expected = np.mean((vit.key_points.numpy() - unetrpp.key_points.numpy()) ** 2)
    assert spatial_consistency(vit.key_points, unetrpp.key_points).item() == pytest.approx(expected, rel=1e-5)
    difference = (vit.reconstruction - unetrpp.reconstruction).numpy()[hidden.expand(SHAPE).numpy()]
    actual = reconstruction_consistency(vit.reconstruction, unetrpp.reconstruction, hidden).item()
    assert actual == pytest.approx(np.mean(difference**2), rel=1e-5)


@pytest.mark.parametrize("lambdas", [(0.5, 0.1, 0.1), (0.3, 0.2, 0.7), (0.0, 0.5, 0.0), (1.0, 0.0, 1.0)])
def test_total_is_the_papers_formula(lambdas: tuple[float, float, float]) -> None:
    l1, l2, l3 = lambdas
    output, data, hidden, points = _batch(3)
    topology = TopologicalTerms(torch.tensor(0.7), torch.tensor(1.9))
    loss = CoPretrainingLoss(PretrainingConfig(lambda1=l1, lambda2=l2, lambda3=l3), TopologyConfig())
    terms = {name: value.item() for name, value in loss(output, data, hidden, points, topology).items()}
    expected = (
        (1 - l1) * (1 - 2 * l2) * terms["mse_vit"]
        + (1 - l1) * l2 * terms["topo_vit"]
        + (1 - l1) * l2 * terms["spa_vit"]
        + l1 * (1 - 2 * l2) * terms["mse_unetrpp"]
        + l1 * l2 * terms["topo_unetrpp"]
        + l1 * l2 * terms["spa_unetrpp"]
        + l3 * terms["spa_consis"]
        + l3 * terms["rec_consis"]
    )
    assert terms["total"] == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {*TERMS, "total"}
    assert (terms["topo_vit"], terms["topo_unetrpp"]) == (pytest.approx(0.7), pytest.approx(1.9))


def test_warm_up_scales_only_the_topological_terms() -> None:
    output, data, hidden, points = _batch(4)
    topology = TopologicalTerms(torch.tensor(0.7), torch.tensor(1.9))
    loss = CoPretrainingLoss(PretrainingConfig(), TopologyConfig())
    full = loss(output, data, hidden, points, topology, 1.0)["total"].item()
    half = loss(output, data, hidden, points, topology, 0.5)["total"].item()
    without = loss(output, data, hidden, points)
    assert full - half == pytest.approx(0.5 * 0.5 * 0.1 * (0.7 + 1.9), rel=1e-4)
    assert without["total"].item() == pytest.approx(full - 0.5 * 0.1 * (0.7 + 1.9), rel=1e-4)
    assert "topo_vit" not in without


def test_disabled_topology_has_no_weight() -> None:
    weights = term_weights(PretrainingConfig(), TopologyConfig(enabled=False))
    assert weights["topo_vit"] == weights["topo_unetrpp"] == 0.0
    assert weights["mse_vit"] == pytest.approx(0.4)


def test_topology_weight_is_a_factor_of_the_topological_terms_only() -> None:
    plain, tenfold = (term_weights(PretrainingConfig(), TopologyConfig(weight=weight)) for weight in (1.0, 10.0))
    changed = {name: tenfold[name] / value for name, value in plain.items() if tenfold[name] != value}
    assert changed == {"topo_vit": pytest.approx(10.0), "topo_unetrpp": pytest.approx(10.0)}


def test_composition() -> None:
    output, data, hidden, _ = _batch(5)
    raw = output.vit.reconstruction
    assert torch.equal(compose_reconstruction(raw, data, hidden, "full"), raw)
    expected = np.where(hidden.numpy(), raw.numpy(), data.numpy())
    np.testing.assert_array_equal(compose_reconstruction(raw, data, hidden, "paste").numpy(), expected)
