import math
import random

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_topomae.architectures.build import build_unetrpp
from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.architectures.summary import count_parameters
from nnunet_topomae.config import ArchitectureConfig

ONE, PLANE, ALL = [1, 1, 1], [1, 2, 2], [2, 2, 2]

# Patch, pools, stem, token size, tokens, stages, million parameters of UNETR++ with 14 classes.
TABLE = {
    "Synapse": ((96, 96, 96), [ALL] * 4, (4, 4, 4), (16, 16, 16), 216, 4, 29.87),
    "UNETR++ Synapse": ((64, 128, 128), [PLANE, *[ALL] * 4], (2, 4, 4), (8, 16, 16), 512, 4, 42.95),
    "ACDC": ((16, 160, 160), [PLANE, PLANE, ALL, ALL, PLANE], (1, 4, 4), (4, 16, 16), 400, 4, 37.8),
    "MSD lung": ((32, 192, 192), [ALL, ALL, ALL, PLANE, PLANE], (4, 4, 4), (8, 16, 16), 576, 4, 33.2),
    "BraTS": ((128, 128, 128), [ALL] * 5, (4, 4, 4), (16, 16, 16), 512, 4, 43.0),
    "Prostate": ((20, 320, 256), [PLANE, PLANE, ALL, ALL, PLANE, PLANE], (1, 4, 4), (4, 16, 16), 1600, 4, 91.0),
    "ACDC nnU-Net": ((20, 256, 224), [PLANE, ALL, ALL, PLANE, PLANE], (2, 4, 4), (4, 16, 16), 1120, 4, 45.6),
    "Hippocampus": ((40, 56, 40), [ALL] * 3, (2, 2, 2), (8, 8, 8), 175, 3, 12.6),
    "Spleen": ((64, 192, 160), [PLANE, *[ALL] * 4, PLANE], (2, 4, 4), (8, 16, 16), 960, 4, 62.8),
    "tiny": ((32, 32, 32), [ALL] * 3, (2, 2, 2), (8, 8, 8), 64, 3, 7.8),
}


QUICK = ("Synapse", "ACDC", "tiny")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_known_plans(name: str) -> None:
    patch, pools, stem, token_size, tokens, stages, millions = TABLE[name]
    architecture = ArchitectureConfig()
    shape = derive_network_shape(patch, [ONE, *pools], architecture)
    assert (shape.stem, shape.token_size, math.prod(shape.token_grid)) == (stem, token_size, tokens)
    assert len(shape.strides) == len(shape.grids) == len(shape.dims) == len(shape.projections) == stages
    with torch.device("meta"):
        network = build_unetrpp(shape, 1, 14, architecture, deep_supervision=False)
    assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.01)


def test_published_sizes() -> None:
    """UNETR++'s own counts: 42.953 M at 64x128x128 and 29.867 M at 96^3, both with 14 classes."""
    architecture = ArchitectureConfig()
    for name, millions in (("UNETR++ Synapse", 42.953), ("Synapse", 29.867)):
        patch, pools, *_ = TABLE[name]
        with torch.device("meta"):
            network = build_unetrpp(derive_network_shape(patch, pools, architecture), 1, 14, architecture, True)
        assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.001)


def test_sizes_follow_from_the_strides() -> None:
    shape = derive_network_shape((16, 160, 160), [ONE, PLANE, PLANE, ALL, ALL, PLANE], ArchitectureConfig())
    assert shape.strides == ((1, 4, 4), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert shape.grids == ((16, 40, 40), (8, 20, 20), (4, 10, 10), (4, 5, 5))
    assert shape.cell_sizes == ((1, 4, 4), (2, 8, 8), (4, 16, 16), (4, 32, 32))
    assert shape.projections == (64, 64, 64, 32)


def test_plan_with_a_single_pool_along_depth() -> None:
    shape = derive_network_shape((12, 256, 256), [ONE, PLANE, PLANE, ALL, PLANE, PLANE], ArchitectureConfig())
    assert shape.strides == ((1, 4, 4), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert shape.token_size == (2, 16, 16)


def test_missing_pools_are_added_where_two_axes_can_be_halved() -> None:
    shape = derive_network_shape((48, 24, 20), [ONE, ALL, ALL], ArchitectureConfig())
    assert shape.strides == (ALL_T := (2, 2, 2), ALL_T, (2, 2, 1))
    assert shape.grids[-1] == (6, 3, 5)


def test_large_patches_absorb_pools_in_the_stem() -> None:
    shape = derive_network_shape((128, 512, 512), [ALL] * 6, ArchitectureConfig())
    assert shape.stem == (8, 8, 8)
    assert math.prod(shape.grids[0]) == 65536


def test_stem_joins_no_more_than_a_stride_of_four() -> None:
    shape = derive_network_shape((96, 96, 96), [[4, 4, 4], ALL, ALL, ALL], ArchitectureConfig())
    assert shape.stem == (4, 4, 4)


@pytest.mark.parametrize("seed", range(5))
def test_properties_on_random_plans_of_nnunet(seed: int) -> None:
    draw = random.Random(seed)
    taken = 0
    while taken < 30:
        spacing = [draw.choice((0.5, 1.0, 1.5, 3.0, 6.0)) for _ in range(3)]
        wish = [draw.randint(12, 260) for _ in range(3)]
        _, strides, _, patch, _ = get_pool_and_conv_props(spacing, wish, 4, 999999)
        if len(strides) < 4 or math.prod(patch) > 2**23:
            continue
        taken += 1
        architecture = ArchitectureConfig()
        shape = derive_network_shape([int(size) for size in patch], strides, architecture)
        assert 3 <= len(shape.strides) <= 4
        for grid, cell in zip(shape.grids, shape.cell_sizes, strict=True):
            assert tuple(g * c for g, c in zip(grid, cell, strict=True)) == tuple(patch)
        assert all(p <= math.prod(g) for p, g in zip(shape.projections, shape.grids, strict=True))
        assert max(shape.projections) <= 64 and shape.projections[-1] <= 32
        assert math.prod(shape.grids[0]) <= 2**17
        pooled = [tuple(math.prod(axis) for axis in zip(*strides[: n + 1], strict=True)) for n in range(len(strides))]
        assert shape.stem in pooled
        planned = [cell for cell in shape.cell_sizes if all(c <= p for c, p in zip(cell, pooled[-1], strict=True))]
        assert set(planned) <= set(pooled)
        suitable = [stage for stage, grid in enumerate(shape.grids) if 64 <= math.prod(grid) <= 2048]
        assert shape.token_stage in suitable or not suitable
        assert shape.token_stage == 2 or 2 not in suitable


@pytest.mark.parametrize(
    ("patch", "strides", "message"),
    [
        ((96, 96), [[1, 1], [2, 2]], "3D configurations"),
        ((96, 96, 96), [ONE, [2, 2]], "3D configurations"),
        ((96, 96, 96), [ONE, ALL], "at least two pools"),
        ((30, 32, 32), [ONE, ALL, ALL, ALL], "not a multiple"),
        ((16, 16, 16), [ONE, ALL, ALL], "too small for 3 stages"),
        ((8, 8, 8), [ALL, ALL, ALL], "one cell"),
        ((0, 96, 96), [ONE, ALL, ALL], "positive"),
        ((96, 96, 96), [ONE, ALL, [0, 2, 2], ALL], "positive"),
    ],
)
def test_impossible_plans_name_the_cure(patch: tuple[int, ...], strides: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        derive_network_shape(patch, strides, ArchitectureConfig())
    assert "TopoMAEPlanner" in str(error.value) or "3d_fullres" in str(error.value)
