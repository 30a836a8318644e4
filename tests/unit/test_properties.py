"""What holds for any shape, spacing, stride and type of number: the shape rule, masks, places, tokens, fusion,
persistent homology and resampled weights. Hypothesis draws the examples, always the same ones."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_topomae.architectures.fusion import TokenFusion
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.data.transforms import resample_crop, scaled_box, square_planes, turn_crop
from nnunet_topomae.geometry import CropLocation, Turn
from nnunet_topomae.masking import crop_mask, patchify, random_token_mask, unpatchify
from nnunet_topomae.plans.planner import large_enough
from nnunet_topomae.topology import TopologicalLoss, TopologyRegion, persistence_diagrams, wasserstein_distance
from nnunet_topomae.training.resample import resample_reading, resample_written

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


def _three(most: int, least: int = 1) -> Any:
    return some.tuples(*[some.integers(least, most)] * 3)


SEEDS = some.integers(0, 2**32)
FLOATS = some.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def _times(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = (a * b for a, b in zip(first, second, strict=True))
    return depth, height, width


@FEW
@given(_three(200), some.lists(some.tuples(*[some.sampled_from([1, 2, 2, 3])] * 3), max_size=7), some.booleans())
def test_the_rule_gives_networks_that_fit_or_says_what_to_change(
    patch: tuple[int, int, int], strides: list[tuple[int, int, int]], fitting: bool
) -> None:
    if fitting:  # multiples of the strides
        for stride in strides:
            patch = _times(patch, stride) if math.prod(patch) < 2**18 else patch
    try:
        shape = derive_network_shape(patch, [(1, 1, 1), *strides], ArchitectureConfig())
    except ValueError as error:
        assert "TopoMAEPlanner" in str(error)
        return
    assert len(shape.strides) == len(shape.grids) == len(shape.dims) == len(shape.projections) >= 3
    assert all(_times(grid, cell) == patch for grid, cell in zip(shape.grids, shape.cell_sizes, strict=True))
    assert all(all(a % b == 0 for a, b in zip(*grids, strict=True)) for grids in pairwise(shape.grids))
    assert _times(shape.token_grid, shape.token_size) == patch and math.prod(shape.grids[-1]) > 1


@FEW
@given(some.tuples(*[some.floats(0.05, 20.0)] * 3), _three(400))
def test_any_spacing_and_image_can_be_planned(
    spacing: tuple[float, float, float], median: tuple[int, int, int]
) -> None:
    try:
        shape = large_enough(np.array(spacing), np.array(median))
    except ValueError as error:
        assert "spacing" in str(error) and str(list(median)) in str(error)
    else:
        assert all(new >= old for new, old in zip(shape, median, strict=True))


@FEW
@given(
    _three(3).filter(lambda cells: math.prod(cells) > 1),
    some.lists(_three(2), min_size=2, max_size=4),
    some.integers(0, 3),
    some.integers(1, 2),
)
def test_fusion_fits_any_strides_and_starts_at_zero(
    coarsest: tuple[int, int, int], strides: list[tuple[int, int, int]], token_stage: int, batch: int
) -> None:
    patch = coarsest
    for stride in strides:
        patch = _times(patch, stride)
    dims = (2, 4, 4, 6)[: len(strides)]
    shape = NetworkShape(patch, tuple(strides), dims, (), min(token_stage, len(strides) - 1))
    fusion = TokenFusion(4, shape)
    stages = [torch.randn(batch, dim, *grid) for dim, grid in zip(dims, shape.grids, strict=True)]
    taps = [torch.randn(batch, 4, *shape.token_grid) for _ in dims]
    assert all(map(torch.equal, fusion(stages, taps), stages))


@FEW
@given(some.integers(1, 4), _three(5), _three(3), some.floats(0.01, 0.99), SEEDS)
def test_masks_hide_the_same_number_of_tokens_and_their_voxels(
    batch: int, grid: tuple[int, int, int], token: tuple[int, int, int], ratio: float, seed: int
) -> None:
    tokens = math.prod(grid)
    hidden = round(ratio * tokens)
    if not 0 < hidden < tokens:
        with pytest.raises(ValueError, match="at least one must be hidden and one visible"):
            random_token_mask(batch, grid, ratio, [seed] * batch)
        return
    mask = random_token_mask(batch, grid, ratio, [seed + sample for sample in range(batch)])
    assert mask.flatten(1).sum(1).tolist() == [hidden] * batch
    assert torch.equal(mask[:1], random_token_mask(1, grid, ratio, [seed]))  # whatever the other samples are
    visible, voxels = crop_mask(mask, token)
    assert visible.shape == (batch, tokens - hidden) and bool((visible.diff(dim=1) > 0).all())
    assert not mask.flatten(1).gather(1, visible).any()
    share = patchify(voxels.float(), token)
    assert torch.equal(share.amin(2) > 0, mask.flatten(1)) and torch.equal(share.amax(2) > 0, mask.flatten(1))


@FEW
@given(some.integers(1, 2), some.integers(1, 3), _three(3), _three(4), FLOATS, some.sampled_from([1, 2]))
def test_tokens_give_their_volume_back(
    batch: int, channels: int, grid: tuple[int, int, int], token: tuple[int, int, int], kind: torch.dtype, step: int
) -> None:
    depth, height, width = _times(grid, token)
    volume = torch.randn(batch, channels, depth, height, width * step).to(kind)[..., ::step]  # also with gaps
    tokens = patchify(volume, token)
    assert tokens.shape == (batch, math.prod(grid), channels * math.prod(token)) and tokens.dtype == kind
    assert torch.equal(unpatchify(tokens, grid, token), volume)


TURNS = some.tuples(some.lists(some.sampled_from([(0, 1), (0, 2), (1, 2)]), max_size=4), some.sets(some.integers(0, 2)))


@FEW
@given(_three(9), _three(12, least=-6), _three(9), some.none() | _three(7), TURNS)
def test_places_turn_with_their_crops(
    volume: tuple[int, int, int],
    lower: tuple[int, int, int],
    edges: tuple[int, int, int],
    resampled: tuple[int, int, int] | None,
    turns: tuple[list[tuple[int, int]], set[int]],
) -> None:
    upper = tuple(start + edge for start, edge in zip(lower, edges, strict=True))
    location = CropLocation(lower, upper, volume, resampled)  # type: ignore[arg-type]
    points = location.key_points()
    assert np.isfinite(points).all() and np.abs(points).max() <= 1.0
    assert location.inside().all() == (not location.is_padded) or resampled is not None
    turn = Turn()
    for plane in turns[0]:
        turn = turn.quarter(plane)
    turn = turn.flipped(sorted(turns[1]))
    turned = location.turned(turn)
    inside = turn_crop(torch.from_numpy(location.inside())[None].float(), turn)[0] > 0
    if resampled is None or not turn.flips:  # a centre on the edge between two voxels goes to one side
        assert torch.equal(inside, torch.from_numpy(turned.inside()))
    assert turned.volume_shape == turn.of_axes([float(size) for size in volume])
    for _ in range(4):
        turn = turn.quarter((0, 2))
    assert location.turned(turn) == turned


@FEW
@given(_three(12), _three(12), some.floats(0.25, 4.0), some.tuples(*[some.floats(0.1, 9.0)] * 3), SEEDS)
def test_scaled_crops_have_the_shape_of_the_patch_and_show_what_they_read(
    patch: tuple[int, int, int],
    volume: tuple[int, int, int],
    factor: float,
    spacing: tuple[float, float, float],
    seed: int,
) -> None:
    box = scaled_box(patch, factor, volume)
    assert all(1 <= edge <= max(size, kept) for edge, size, kept in zip(box, volume, patch, strict=True))
    constant = torch.full((2, *box), float(seed % 7))
    assert torch.allclose(resample_crop(constant, patch), torch.full((2, *patch), float(seed % 7)))
    for first, second in square_planes(patch, spacing):
        assert patch[first] == patch[second] and abs(spacing[first] / spacing[second] - 1) < 0.02


NUMBERS = some.sampled_from(["float32", "float64", "float16", "int16", "uint8", "bool"])


@FEW
@given(some.lists(some.integers(1, 4), min_size=1, max_size=3), NUMBERS, SEEDS, some.sampled_from(["super", "sub"]))
def test_diagrams_of_any_shape_and_type_are_those_of_another_library(
    shape: list[int], kind: str, seed: int, level_sets: str
) -> None:
    values = (5 * np.random.default_rng(seed).normal(size=shape)).round(1).astype(kind)
    found, other = (persistence_diagrams(values, (0, 1, 2), name, level_sets) for name in ("native", "cripser"))
    for dimension in (0, 1, 2):
        points, births = found[dimension].points, found[dimension].birth_voxels
        assert sorted(points.tolist()) == sorted(other[dimension].points.tolist())
        assert points[:, 0].tolist() == values.reshape(-1)[births].astype(float).tolist()
        assert (points[:, 0] >= points[:, 1] if level_sets == "super" else points[:, 0] <= points[:, 1]).all()
        assert wasserstein_distance(points, points) == 0.0


@pytest.mark.slow
@FEW
@given(_three(5), some.sampled_from(["full", "crop", "pool"]), some.integers(2, 4), SEEDS, some.booleans())
def test_the_topological_loss_is_0_for_equal_volumes_and_has_a_finite_gradient(
    shape: tuple[int, int, int], policy: str, size: int, seed: int, double: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.float64 if double else torch.float32
    target, start = (torch.randn(1, 2, *shape, generator=generator, dtype=kind) for _ in range(2))
    loss = TopologicalLoss(policy, size)
    assert tuple(TopologyRegion(policy, size).extract(target).shape[2:]) == TopologyRegion(policy, size).shape(shape)
    assert float(loss(target, target)) == 0.0
    reconstruction = start.requires_grad_()
    value = loss(reconstruction, target)
    value.backward()
    assert value.dtype == kind and bool(torch.isfinite(value)) and bool(torch.isfinite(reconstruction.grad).all())  # type: ignore[arg-type]
    assert value.item() == pytest.approx(float(loss(target, reconstruction.detach())), rel=1e-5, abs=1e-6)


@FEW
@given(_three(5), _three(5), some.sampled_from([torch.float32, torch.float64]), SEEDS)
def test_resampled_weights_answer_resampled_fields_as_before(
    old: tuple[int, int, int], new: tuple[int, int, int], kind: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, *old, generator=generator, dtype=kind)
    field = torch.randn(*new, generator=generator, dtype=kind)
    read = resample_reading(weight, new)
    assert read.shape == (2, *new) and read.dtype == kind
    answers = torch.einsum("kdhw,dhw->k", read.double(), field.double())
    expected = torch.einsum("kdhw,dhw->k", weight.double(), resample_written(field.double(), old))
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(resample_written(weight, old), weight)
    ones = resample_written(torch.ones(old, dtype=kind), new)
    torch.testing.assert_close(ones, torch.ones(new, dtype=kind))
