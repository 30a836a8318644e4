"""Every term against a loop over voxels, and the overall loss against the paper's formula written out."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.config import PretrainingConfig, TopologyConfig
from nnunet_topomae.losses.consistency import reconstruction_consistency, spatial_consistency
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, PoseTargets, TopologicalTerms, compose_reconstruction
from nnunet_topomae.losses.reconstruction import hidden_mse, inside_l1
from nnunet_topomae.losses.spatial import key_point_mse, vector_l1
from nnunet_topomae.losses.weights import term_weights, trained_branches, trains_decoder
from nnunet_topomae.topology import TopologicalLoss

SHAPE = (2, 3, 4, 5, 6)


def _inside() -> torch.Tensor:
    """Sample 0 is padded on two sides, sample 1 not at all."""
    inside = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    inside[0, :, 0] = False
    inside[0, :, :, :, 4:] = False
    return inside


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


def test_padded_voxels_count_neither_in_the_error_nor_in_the_agreement() -> None:
    output, data, hidden, _ = _batch(6)
    inside = _inside()
    assert (hidden & ~inside).any()
    vit, partner = (branch.reconstruction for branch in output)
    for call, other in ((hidden_mse, data), (reconstruction_consistency, partner)):
        errors = [
            float(vit[b, c, z, y, x] - other[b, c, z, y, x]) ** 2
            for b, c, z, y, x in itertools.product(*map(range, SHAPE))
            if hidden[b, 0, z, y, x] and inside[b, 0, z, y, x]
        ]
        assert call(vit, other, hidden, inside).item() == pytest.approx(np.mean(errors), rel=1e-5)
    junk = torch.where(inside, vit, torch.full_like(vit, 1e6))
    assert hidden_mse(junk, data, hidden, inside).item() == hidden_mse(vit, data, hidden, inside).item()


def test_padding_where_everything_hidden_is_padding_gives_zero_and_no_nan() -> None:
    output, data, hidden, _ = _batch(7)
    for padded in (slice(0, 1), slice(0, 2)):  # one sample, then the whole batch
        inside = torch.ones_like(hidden)
        inside[padded] &= ~hidden[padded]
        reconstruction = output.vit.reconstruction.clone().requires_grad_()
        loss = hidden_mse(reconstruction, data, hidden, inside)
        loss.backward()
        assert reconstruction.grad is not None and reconstruction.grad.isfinite().all()
        assert not reconstruction.grad[padded].any()
        if padded.stop == 2:
            assert loss.item() == 0.0
        else:
            alone = hidden_mse(output.vit.reconstruction[1:], data[1:], hidden[1:])
            assert loss.item() == pytest.approx(alone.item(), rel=1e-6)


def test_the_overall_loss_leaves_padding_out_of_three_terms() -> None:
    output, data, hidden, points = _batch(8)
    inside = _inside()
    loss = CoPretrainingLoss(PretrainingConfig(), TopologyConfig())
    terms = loss(output, data, hidden, points, inside=inside)
    plain = loss(output, data, hidden, points)
    assert terms["mse_vit"] == hidden_mse(output.vit.reconstruction, data, hidden, inside)
    assert terms["mse_partner"] == hidden_mse(output.partner.reconstruction, data, hidden, inside)
    assert {name for name in terms if terms[name] != plain[name]} == {"mse_vit", "mse_partner", "rec_consis", "total"}


@pytest.mark.slow
@pytest.mark.parametrize("composition", ["paste", "full"])
def test_padding_adds_nothing_to_the_topological_distance(composition: str) -> None:
    output, data, hidden, _ = _batch(9)
    inside = _inside()
    data = data * inside  # the loader pads with 0
    topological_loss = TopologicalLoss("full", threads=1)
    wrong_in_padding = torch.where(inside, data, output.vit.reconstruction).requires_grad_()
    composed = compose_reconstruction(wrong_in_padding, data, hidden, composition, inside)
    assert topological_loss(composed, data).item() == 0.0
    assert topological_loss(compose_reconstruction(wrong_in_padding, data, hidden, composition), data).item() > 0.0
    reconstruction = output.vit.reconstruction.clone().requires_grad_()
    composed = compose_reconstruction(reconstruction, data, hidden, composition, inside)
    topological_loss(composed, data).backward()
    assert reconstruction.grad is not None and reconstruction.grad.any()
    assert not reconstruction.grad[~inside.expand(SHAPE)].any()


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_mse_has_value_and_gradient_of_the_mean_over_the_hidden_voxels(padded: bool) -> None:
    """Picking them out waits for a GPU, which the loss must not. Where none is left, both are 0."""
    output, data, hidden, _ = _batch(10)
    inside = _inside() if padded else None
    for chosen in (hidden, torch.zeros_like(hidden), torch.ones_like(hidden)):
        reconstruction = output.vit.reconstruction.clone().requires_grad_()
        loss = hidden_mse(reconstruction, data, chosen, inside)
        (gradient,) = torch.autograd.grad(loss, reconstruction)
        counted = (chosen if inside is None else chosen & inside).expand(SHAPE)
        expected, slopes = torch.zeros(()), torch.zeros(SHAPE)
        if counted.any():
            expected = (reconstruction - data)[counted].square().mean()
            (slopes,) = torch.autograd.grad(expected, reconstruction)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, slopes)


def test_half_precision_terms_are_computed_in_float32() -> None:
    reconstruction = torch.full(SHAPE, 300.0, dtype=torch.float16)  # its square overflows float16
    hidden = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    assert hidden_mse(reconstruction, torch.zeros(SHAPE), hidden).item() == pytest.approx(90000.0)


def test_key_point_mse_and_consistency() -> None:
    output, _, hidden, points = _batch(2)
    vit, partner = output
    expected = np.mean((vit.key_points.numpy() - points.numpy()) ** 2)
    assert key_point_mse(vit.key_points, points).item() == pytest.approx(expected, rel=1e-5)
    expected = np.mean((vit.key_points.numpy() - partner.key_points.numpy()) ** 2)
    assert spatial_consistency(vit.key_points, partner.key_points).item() == pytest.approx(expected, rel=1e-5)
    difference = (vit.reconstruction - partner.reconstruction).numpy()[hidden.expand(SHAPE).numpy()]
    actual = reconstruction_consistency(vit.reconstruction, partner.reconstruction, hidden).item()
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
        + l1 * (1 - 2 * l2) * terms["mse_partner"]
        + l1 * l2 * terms["topo_partner"]
        + l1 * l2 * terms["spa_partner"]
        + l3 * terms["spa_consis"]
        + l3 * terms["rec_consis"]
    )
    assert terms["total"] == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {*term_weights(PretrainingConfig(), TopologyConfig()), "total"}
    assert (terms["topo_vit"], terms["topo_partner"]) == (pytest.approx(0.7), pytest.approx(1.9))


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
    assert weights["topo_vit"] == weights["topo_partner"] == 0.0
    assert weights["mse_vit"] == pytest.approx(0.4)


def test_without_the_spatial_task_no_term_trains_key_points() -> None:
    weights = term_weights(PretrainingConfig(spatial="none"), TopologyConfig())
    assert {name for name, weight in weights.items() if weight == 0.0} == {"spa_vit", "spa_partner", "spa_consis"}
    assert weights["rec_consis"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "topology", "expected"),
    [
        ({}, True, ("vit", "partner")),
        ({"lambda1": 0.0}, True, ("vit", "partner")),  # the consistency terms need both
        ({"lambda1": 0.0, "lambda3": 0.0}, True, ("vit",)),
        ({"lambda1": 1.0, "lambda3": 0.0}, True, ("partner",)),
        ({"lambda1": 0.0, "lambda3": 0.0, "lambda2": 0.5}, True, ("vit",)),
        ({"lambda1": 0.4, "lambda3": 0.0, "lambda2": 0.5, "spatial": "none"}, True, ("vit", "partner")),
        ({"lambda1": 1.0, "spatial": "none"}, False, ("vit", "partner")),
    ],
)
def test_trained_branches_are_those_with_a_weight(values, topology, expected) -> None:  # type: ignore[no-untyped-def]
    assert trained_branches(PretrainingConfig(**values), TopologyConfig(enabled=topology)) == expected


def test_a_loss_without_any_weight_is_refused() -> None:
    config = PretrainingConfig(lambda2=0.5, lambda3=0.0, spatial="none")
    with pytest.raises(ValueError, match=r"lambda2 = 0.5.*weight 0"):
        trained_branches(config, TopologyConfig(enabled=False))


@pytest.mark.parametrize(("name", "lambda1"), [("vit", 0.0), ("partner", 1.0)])
def test_terms_of_an_absent_network_are_absent_and_the_others_as_before(name: str, lambda1: float) -> None:
    output, data, hidden, points = _batch(10)
    loss = CoPretrainingLoss(PretrainingConfig(lambda1=lambda1, lambda3=0.0), TopologyConfig())
    both = loss(output, data, hidden, points, TopologicalTerms(torch.tensor(0.7), torch.tensor(0.7)))
    alone = CoPretrainingOutput(**{"vit": None, "partner": None, name: getattr(output, name)})
    terms = loss(alone, data, hidden, points, TopologicalTerms(**{name: torch.tensor(0.7)}))
    assert set(terms) == {f"mse_{name}", f"spa_{name}", f"topo_{name}", "total"}
    assert {key: both[key].item() for key in terms} == pytest.approx({k: v.item() for k, v in terms.items()})


def test_topology_in_every_nth_step_has_the_same_mean_weight() -> None:
    output, data, hidden, points = _batch(11)
    topology = TopologicalTerms(torch.tensor(0.7), torch.tensor(1.9))
    shares = {}
    for every in (1, 3):
        config = TopologyConfig(every=every, warmup_epochs=4)
        loss = CoPretrainingLoss(PretrainingConfig(), config)
        without = loss(output, data, hidden, points)["total"].item()
        steps = [
            loss(output, data, hidden, points, topology if step % every == 0 else None, config.training_factor(3))
            for step in range(6)
        ]
        shares[every] = np.mean([terms["total"].item() for terms in steps]) - without
        assert all(terms["topo_vit"].item() == pytest.approx(0.7) for terms in steps if "topo_vit" in terms)
    assert shares[1] == pytest.approx(0.75 * 0.05 * (0.7 + 1.9), rel=1e-4)
    assert shares[3] == pytest.approx(shares[1], rel=1e-4)


def test_topology_weight_is_a_factor_of_the_topological_terms_only() -> None:
    plain, tenfold = (term_weights(PretrainingConfig(), TopologyConfig(weight=weight)) for weight in (1.0, 10.0))
    changed = {name: tenfold[name] / value for name, value in plain.items() if tenfold[name] != value}
    assert changed == {"topo_vit": pytest.approx(10.0), "topo_partner": pytest.approx(10.0)}


def test_vectors_across_the_seam_of_the_azimuth_are_near() -> None:
    predicted = torch.tensor([[0.5, 0.25, 0.98], [0.5, 0.25, -0.98]]).repeat_interleave(9, 0).view(2, 9, 3)
    predicted.requires_grad_(True)
    target = torch.tensor([0.4, 0.45, -0.98, 1.0]).expand(2, 9, 4)
    loss = vector_l1(predicted, target)
    assert loss.item() == pytest.approx(0.1 + 0.2 + (0.04 + 0.0) / 2, rel=1e-4)
    loss.backward()
    assert predicted.grad[0, :, 2].lt(0).all()  # to -0.98 the way from 0.98 is up, across the seam
    assert torch.isfinite(predicted.grad).all()


def test_angles_without_weight_do_not_count() -> None:
    predicted = torch.full((1, 9, 3), 0.5, requires_grad=True)
    target = torch.zeros(1, 9, 4)
    loss = vector_l1(predicted, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert torch.all(predicted.grad[..., 1:] == 0) and torch.isfinite(predicted.grad).all()
    target = torch.zeros(1, 9, 4)
    target[0, 3] = torch.tensor([0.5, 0.2, 0.4, 0.01])  # only this vector has a direction
    assert vector_l1(predicted, target).item() == pytest.approx(0.5 * 8 / 9 + 0.3 + 0.1, rel=1e-5)


def test_both_spatial_tasks_and_both_targets_are_weighted_alike() -> None:
    output, data, hidden, points = _batch(12)
    generator = torch.Generator().manual_seed(12)
    vectors = [torch.rand(2, 9, 3, generator=generator) for _ in output]
    edges = [torch.rand(SHAPE, generator=generator) for _ in output]
    pairs = zip(output, vectors, edges, strict=True)
    output = CoPretrainingOutput(*(branch._replace(vectors=v, boundaries=e) for branch, v, e in pairs))
    pose = PoseTargets(torch.rand(2, 9, 4, generator=generator), torch.rand(SHAPE, generator=generator))
    config = PretrainingConfig(spatial="both", target="both", lambda1=0.3, lambda2=0.2, lambda3=0.7)
    terms = CoPretrainingLoss(config, TopologyConfig(enabled=False))(output, data, hidden, points, pose=pose)
    found = {name: value.item() for name, value in terms.items()}
    assert found["clean_vit"] == pytest.approx((output.vit.reconstruction - data).abs().mean().item())
    assert found["edge_vit"] == pytest.approx((edges[0] - pose.boundaries).abs().mean().item())
    expected = 0.0
    for name, share in (("vit", 0.7), ("partner", 0.3)):
        expected += share * 0.6 * (found[f"mse_{name}"] + found[f"clean_{name}"] + found[f"edge_{name}"])
        expected += share * 0.2 * (found[f"spa_{name}"] + found[f"vec_{name}"])
    expected += 0.7 * (found["spa_consis"] + found["vec_consis"] + found["rec_consis"])
    assert found["total"] == pytest.approx(expected, rel=1e-5)
    whole = reconstruction_consistency(
        output.vit.reconstruction, output.partner.reconstruction, torch.ones_like(hidden)
    )
    assert found["rec_consis"] == pytest.approx(whole.item())  # corrupted crops are rebuilt everywhere


def test_padding_does_not_count_in_the_error_of_boundaries() -> None:
    target = torch.zeros(SHAPE)
    inside = torch.ones(2, 1, *SHAPE[2:], dtype=torch.bool)
    inside[1, :, :2] = False
    output = torch.where(inside, torch.full(SHAPE, 0.25), torch.full(SHAPE, 99.0))
    assert inside_l1(output, target, inside).item() == pytest.approx(0.25)
    assert inside_l1(target + 0.5, target).item() == pytest.approx(0.5)
    assert inside_l1(output, target, torch.zeros_like(inside)).item() == 0.0


def test_composition() -> None:
    output, data, hidden, _ = _batch(5)
    raw = output.vit.reconstruction
    assert torch.equal(compose_reconstruction(raw, data, hidden, "full"), raw)
    expected = np.where(hidden.numpy(), raw.numpy(), data.numpy())
    np.testing.assert_array_equal(compose_reconstruction(raw, data, hidden, "paste").numpy(), expected)


@pytest.mark.parametrize(
    ("values", "topology", "with_vit", "expected"),
    [
        ({}, True, True, True),
        ({"lambda2": 0.5, "lambda3": 0.0}, False, True, False),
        ({"lambda2": 0.5, "lambda3": 0.0}, True, True, True),
        ({"lambda2": 0.5}, False, True, True),  # the reconstructions should agree
        ({"lambda2": 0.5}, False, False, False),  # with whom?
        ({"lambda2": 0.5, "target": "boundary", "spatial": "vectors"}, False, False, False),
        ({"lambda2": 0.4, "target": "boundary", "spatial": "vectors"}, False, False, True),
        ({"lambda1": 0.0, "lambda3": 0.0}, True, True, False),
    ],
)
def test_a_decoder_is_trained_by_the_terms_that_read_it(
    values: dict[str, Any], topology: bool, with_vit: bool, expected: bool
) -> None:
    assert trains_decoder(PretrainingConfig(**values), TopologyConfig(enabled=topology), with_vit) == expected


def test_each_decoder_has_its_own_terms() -> None:
    config = PretrainingConfig(lambda1=0.0, lambda3=0.0)
    assert trains_decoder(config, TopologyConfig(), branch="vit") and not trains_decoder(config, TopologyConfig())
