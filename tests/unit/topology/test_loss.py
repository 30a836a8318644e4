import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet_topomae.config import TopologyConfig
from nnunet_topomae.topology import TopologicalLoss, persistence_diagrams, wasserstein_distance

SHAPE = (2, 3, 4, 6, 5)


def batch(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def distance(first: Tensor, second: Tensor, dimensions: tuple[int, ...] = (0, 1, 2)) -> float:
    """sqrt(sum_k W2^2) of two volumes."""
    a, b = persistence_diagrams(first, dimensions), persistence_diagrams(second, dimensions)
    return float(np.sqrt(sum(wasserstein_distance(a[k].points, b[k].points) ** 2 for k in dimensions)))


def test_value_is_the_mean_over_batch_and_channels() -> None:
    first, second = batch(0), batch(1)
    expected = np.mean([distance(first[b, c], second[b, c]) for b in range(2) for c in range(3)])
    assert TopologicalLoss()(second, first).item() == pytest.approx(expected, rel=1e-12)


def test_value_agrees_with_gudhi() -> None:
    hera = pytest.importorskip("gudhi.hera")
    first, second = batch(0, (3, 4, 5)), batch(1, (3, 4, 5))
    a, b = persistence_diagrams(first, backend="gudhi"), persistence_diagrams(second, backend="gudhi")
    squares = [
        # delta: relative error of the auction; order: exponent; internal_p: ground metric
        hera.wasserstein_distance(-a[k].points, -b[k].points, order=2, internal_p=np.inf, delta=1e-6) ** 2
        for k in range(3)
    ]
    assert TopologicalLoss()(second, first).item() == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_per_voxel_divides_by_the_root_of_the_regions_voxels() -> None:
    first, second = batch(0), batch(1)
    paper = TopologicalLoss("crop", 4)(second, first)
    scaled = TopologicalLoss("crop", 4, normalisation="per_voxel")(second, first)
    assert scaled.item() == pytest.approx(paper.item() / np.sqrt(4 * 4 * 4), rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"region": "crop", "region_size": 4, "normalisation": "per_voxel"}, marks=pytest.mark.slow),
        pytest.param({"region": "pool", "region_size": 3}, marks=pytest.mark.slow),
        pytest.param({"dimensions": (1,)}, marks=pytest.mark.slow),
        pytest.param({"backend": "gudhi"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradient_by_finite_differences(options: dict[str, Any]) -> None:
    shape = (1, 2, 4, 6, 5)
    loss, first, second = TopologicalLoss(**options), batch(0, shape), batch(1, shape).requires_grad_()
    loss(second, first).backward()
    assert second.grad is not None
    step = 1e-6
    flat = second.detach().clone()
    for index in range(0, flat.numel(), 23):
        moved = [flat.clone(), flat.clone()]
        moved[0].view(-1)[index] += step
        moved[1].view(-1)[index] -= step
        slope = (loss(moved[0], first) - loss(moved[1], first)).item() / (2 * step)
        assert second.grad.view(-1)[index].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.slow
def test_gradcheck() -> None:
    loss, first = TopologicalLoss(), batch(2, (1, 2, 3, 2, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, first), (batch(3, (1, 2, 3, 2, 4)).requires_grad_(),), eps=1e-7)


def test_equal_volumes_give_zero_and_no_gradient() -> None:
    first = batch(0)
    second = first.clone().requires_grad_()
    value = TopologicalLoss()(second, first)
    value.backward()
    assert value.item() == 0.0
    assert second.grad is not None and torch.equal(second.grad, torch.zeros(SHAPE, dtype=torch.float64))


@pytest.mark.slow
def test_descending_the_gradient_lowers_the_loss() -> None:
    loss, first, second = TopologicalLoss(), batch(0), batch(1)
    values = []
    for _ in range(20):
        second = second.detach().requires_grad_()
        value = loss(second, first)
        value.backward()
        values.append(value.item())
        assert second.grad is not None
        second = second - 0.1 * second.grad
    assert values[-1] < 0.8 * values[0]


def test_the_target_gets_no_gradient() -> None:
    first, second = batch(0).requires_grad_(), batch(1).requires_grad_()
    TopologicalLoss()(second, first).backward()
    assert first.grad is None


def test_given_target_diagrams_change_nothing() -> None:
    first, second = batch(0), batch(1)
    loss = TopologicalLoss("crop", 4)
    origins = [(0, 1, 0), (0, 2, 1)]
    regions = [loss.region.extract(first[b : b + 1], origins[b])[0] for b in range(2)]
    targets = [[persistence_diagrams(channel) for channel in region] for region in regions]
    expected = loss(second, first, region_origin=origins)
    assert torch.equal(loss(second, targets, region_origin=torch.tensor(origins)), expected)
    assert torch.equal(loss.start(second, targets, region_origin=origins).result(), expected)


def test_the_region_follows_its_origin() -> None:
    first, second = batch(0), batch(1)
    loss, full = TopologicalLoss("crop", 4), TopologicalLoss()
    assert torch.equal(loss(second, first), full(second[..., 1:5, 0:4], first[..., 1:5, 0:4]))
    shifted = loss(second, first, region_origin=(0, 2, 1))
    assert torch.equal(shifted, full(second[..., 2:6, 1:5], first[..., 2:6, 1:5]))


def test_dark_structures_by_sub_level_sets() -> None:
    first, second = batch(0), batch(1).requires_grad_()
    loss = TopologicalLoss("crop", 4, level_sets="sub")
    value = loss(second, first)
    value.backward()
    assert second.grad is not None
    negative = (-second.detach()).requires_grad_()
    expected = TopologicalLoss("crop", 4)(negative, -first)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-14)
    assert negative.grad is not None
    torch.testing.assert_close(second.grad, -negative.grad, rtol=1e-12, atol=0)
    diagrams = persistence_diagrams(loss.region.extract(first)[0, 0])
    with pytest.raises(ValueError, match="births must be all at least or all at most"):
        loss(second[:1, :1], [[diagrams]])


@pytest.mark.parametrize("region", ["full", "crop", "pool"])
def test_images_in_two_dimensions(region: str) -> None:
    first, second = batch(0, (2, 3, 8, 9)), batch(1, (2, 3, 8, 9)).requires_grad_()
    flat, thick = TopologicalLoss(region, 4, spatial_dims=2), TopologicalLoss(region, 4)
    origin = {"region_origin": [(1, 2), (3, 0)]} if region == "crop" else {}
    deep = {"region_origin": [(0, 1, 2), (0, 3, 0)]} if region == "crop" else {}
    value = flat(second, first, **origin)
    assert torch.equal(value, thick(second[:, :, None], first[:, :, None], **deep))
    value.backward()
    assert second.grad is not None and second.grad.shape == second.shape and second.grad.abs().sum() > 0
    if region == "full":
        targets = [[persistence_diagrams(channel) for channel in sample] for sample in first]
        assert torch.equal(flat(second, targets), value)
        assert torch.equal(flat(second[0, 0], first[0, 0]), flat(second[:1, :1], first[:1, :1]))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), \(C, H, W\), \(H, W\)"):
        flat(second[None], first[None])


def test_unbatched_volumes() -> None:
    first, second = batch(0, (4, 6, 5)), batch(1, (4, 6, 5))
    loss = TopologicalLoss()
    assert loss(second, first).item() == pytest.approx(distance(first, second), rel=1e-12)
    assert torch.equal(loss(second[None], first[None]), loss(second[None, None], first[None, None]))


def test_thread_counts_give_identical_bits() -> None:
    first, second = batch(0), batch(1)
    outcomes = []
    for threads in (1, 2, 5):
        moved = second.clone().requires_grad_()
        value = TopologicalLoss(threads=threads)(moved, first)
        value.backward()
        outcomes.append((value.detach(), moved.grad))
    for value, gradient in outcomes[1:]:
        assert torch.equal(value, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])


def test_start_uses_the_values_of_its_time() -> None:
    first, second = batch(0), batch(1)
    loss = TopologicalLoss()
    expected = loss(second, first)
    moved = second.clone()
    pending = loss.start(moved, first)
    moved.zero_()
    assert torch.equal(pending.result(), expected)
    assert pending.done()


def test_float32_in_float32_out() -> None:
    first, second = batch(0, dtype=torch.float32), batch(1, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = TopologicalLoss("pool", 4)(second, first)
    value.backward()
    assert value.dtype == torch.float32
    assert second.grad is not None and second.grad.dtype == torch.float32
    plain = TopologicalLoss("pool", 4)(second.detach().double(), first.double())
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu() -> None:
    first, second = batch(0, dtype=torch.float32), batch(1, dtype=torch.float32).requires_grad_()
    moved = second.detach().cuda().requires_grad_()
    for volume, made in ((first, second), (first.cuda(), moved)):
        TopologicalLoss("crop", 4)(made, volume).backward()
    assert second.grad is not None and moved.grad is not None and moved.grad.is_cuda
    assert torch.equal(moved.grad.cpu(), second.grad)


def test_layout_and_integer_input() -> None:
    first = (255 * batch(0)).to(torch.uint8)
    second = batch(1).permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    assert not second.is_contiguous()
    for region in ("full", "pool"):
        loss = TopologicalLoss(region, 4)
        assert torch.equal(loss(second, first), loss(second.contiguous(), first.double()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_the_module_can_be_copied_and_pickled(duplicate: Any) -> None:
    loss, first, second = TopologicalLoss("crop", 4), batch(0), batch(1)
    assert torch.equal(duplicate(loss)(second, first), loss(second, first))
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}


def test_the_configuration_fits() -> None:
    t = TopologyConfig()
    loss = TopologicalLoss(t.region, t.region_size, t.dimensions, t.normalisation, t.backend, t.threads)
    assert loss.region.policy == t.region


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_result(bad: float) -> None:
    second = batch(1)
    second[1, 2, 0, 0, 0] = bad
    pending = TopologicalLoss().start(second, batch(0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        pending.result()


def test_constant_volumes_are_defined() -> None:
    first, second = torch.full(SHAPE, 2.0), torch.full(SHAPE, 1.0, requires_grad=True)
    value = TopologicalLoss()(second, first)
    value.backward()
    assert value.item() == 0.0  # both diagrams are a single point on the diagonal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="must be float32 or float64"):
        TopologicalLoss()(batch(1).to(dtype), batch(0))


def test_shapes_that_do_not_fit_are_refused() -> None:
    loss, first, second = TopologicalLoss("crop", 4), batch(0), batch(1)
    with pytest.raises(ValueError, match="differ"):
        loss(second, first[:1])
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\)"):
        loss(second[0, 0, 0], first[0, 0, 0])
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\)"):
        loss(first[None], second[None])
    with pytest.raises(ValueError, match="3 region origins for a batch of 2"):
        loss(second, first, region_origin=[(0, 0, 0)] * 3)
    with pytest.raises(TypeError, match="pass \\(reconstruction, target\\)"):
        loss(second, first.requires_grad_())


def test_target_diagrams_that_do_not_fit_are_refused() -> None:
    loss, first, second = TopologicalLoss("crop", 4), batch(0), batch(1)
    right = persistence_diagrams(first[0, 0, :, :4, :4])
    with pytest.raises(ValueError, match="channels"):
        loss(second, [[right] * 3])
    with pytest.raises(ValueError, match="compute them on the same region"):
        loss(second, [[persistence_diagrams(first[0, 0])] * 3] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "centre"}, "unknown region policy"),
        ({"normalisation": "mean"}, "unknown normalisation"),
        ({"dimensions": (0, 3)}, "distinct and out of"),
        ({"backend": "ripser"}, "unknown persistent homology backend"),
        ({"threads": -2}, "threads must be"),
        ({"level_sets": "upper"}, "unknown level sets"),
        ({"spatial_dims": 1}, "must be 2"),
        ({"region_size": 1}, "at least 2 voxels"),
    ],
)
def test_other_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopologicalLoss(**options)


def test_losses_share_their_threads() -> None:
    assert TopologicalLoss(threads=2).pool is TopologicalLoss("crop", threads=2).pool


def test_the_settings_are_in_the_representation() -> None:
    text = repr(TopologicalLoss("crop", 24, (0, 2), backend="gudhi", tolerance=0.01))
    for part in ("'crop'", "region_size=24", "(0, 2)", "'gudhi'", "tolerance=0.01"):
        assert part in text


def test_an_array_is_refused_as_reconstruction() -> None:
    start = inspect.unwrap(TopologicalLoss.start)  # without the run-time checks of types in tests
    with pytest.raises(TypeError, match="must be a tensor, got ndarray"):
        start(TopologicalLoss(), np.zeros((3, 4, 5), np.float32), torch.zeros(3, 4, 5))  # type: ignore[arg-type]


def test_the_loss_carries_its_gap_and_keeps_to_the_tolerance() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, 1, 17, 16, 18, generator=generator)
    reconstruction = volume + 0.2 * torch.rand(volume.shape, generator=generator)
    exact = TopologicalLoss().start(reconstruction, volume)
    assert exact.gap < 1e-12
    loose = TopologicalLoss(tolerance=0.05).start(reconstruction, volume)
    assert 1e-12 < loose.gap <= 0.05
    assert exact.result() < loose.result() <= exact.result() / (1 - loose.gap) ** 0.5
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="tolerance"):
            TopologicalLoss(tolerance=wrong)
