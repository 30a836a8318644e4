"""From any nnU-Net plan to the shape of the networks.

Patch size and pool strides of the plan are the only inputs, so stock ``nnUNetPlans`` work, at inference too:

1. The stem joins the first two pools. It takes only the first where fewer than 8192 tokens would be left or an axis
   would shrink by more than 4, and takes one pool more while over 2^17 tokens remain.
2. The other stages follow the next pools. Missing ones halve every even axis of at least 6 tokens, as long as two
   axes qualify. Otherwise the network has three stages instead of four.
3. Sizes that depend on the number of tokens (position embeddings, EPA's projection) follow from the grids.
4. The ViT's tokens are the cells of the third stage, so its grid needs no padding and inherits the plan's anisotropy.
   Another stage serves where the third has fewer than 64 or more than 2048 tokens.

Where the plan's own network is the partner, its stages are those of the plan, and only step 4 applies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.types import Size3

MIN_STAGES = 3
MIN_STEM_TOKENS = 8192
MAX_STEM_TOKENS = 2**17
MAX_STEM_STRIDE = 4
VIT_TOKENS = (64, 2048)
PREFERRED_TOKEN_STAGE = 2

_CURE = "Plan with -pl TopoMAEPlanner, or change the patch size and the strides in the plan."


@dataclass(frozen=True)
class NetworkShape:
    """Every size of the networks that follows from the plan. Stages are numbered from 0, fine to coarse.

    Attributes:
        patch_size: voxels (D, H, W) of nnU-Net's crop.
        strides: downsampling in front of every stage; the first one is the stem.
        dims: channels of every stage of the partner.
        projections: projected tokens in the EPA blocks of every stage of UNETR++; none for another partner.
        token_stage: the stage whose cells are the ViT's tokens.
    """

    patch_size: Size3
    strides: tuple[Size3, ...]
    dims: tuple[int, ...]
    projections: tuple[int, ...]
    token_stage: int

    @property
    def stem(self) -> Size3:
        """Stride between the patch and the first stage."""
        return self.strides[0]

    @property
    def cell_sizes(self) -> tuple[Size3, ...]:
        """Voxels along each axis in one cell of every stage."""
        return tuple(_product(self.strides[: stage + 1]) for stage in range(len(self.strides)))

    @property
    def grids(self) -> tuple[Size3, ...]:
        """Cells along each axis of every stage."""
        return tuple(_divide(self.patch_size, size) for size in self.cell_sizes)

    @property
    def token_size(self) -> Size3:
        """Voxels of one ViT token."""
        return self.cell_sizes[self.token_stage]

    @property
    def token_grid(self) -> Size3:
        """ViT tokens along each axis."""
        return self.grids[self.token_stage]


def derive_network_shape(
    patch_size: Sequence[int],
    pool_strides: Sequence[Sequence[int]],
    architecture: ArchitectureConfig,
    features: Sequence[int] | None = None,
) -> NetworkShape:
    """Apply the rule to one configuration of a plan.

    Args:
        patch_size: the plan's ``patch_size``.
        pool_strides: the plan's strides as nnU-Net stores them; entries of ones, such as the first, do not pool.
        architecture: which partner; channels of UNETR++ and upper limits of its projections.
        features: channels of every stage of the plan's own network, the one at full resolution included; needed where
            it is the partner.

    Raises:
        ValueError: a 2D plan, fewer than two pools, too small a patch for three stages, a patch that the strides do not
            divide, or a network of the plan that does not begin at full resolution.
    """
    patch = as_size3(patch_size, "patch_size")
    if architecture.partner == "plan":
        return _planned_shape(patch, [as_size3(stride, "stride") for stride in pool_strides], features)
    pools = [stride for stride in (as_size3(s, "pool stride") for s in pool_strides) if stride != (1, 1, 1)]
    if len(pools) < 2:
        raise ValueError(f"the network needs at least two pools, got strides {list(pool_strides)}. {_CURE}")
    if min(patch) < 1 or min(map(min, pools)) < 1:
        raise ValueError(f"patch size {patch} and strides {pools} must be positive. {_CURE}")

    strides = _stage_strides(patch, pools, max_stages=len(architecture.dims))
    total = _product(strides)
    if any(size % stride for size, stride in zip(patch, total, strict=True)):
        raise ValueError(f"patch size {patch} is not a multiple of the total stride {total} of {strides}. {_CURE}")
    if len(strides) < MIN_STAGES:
        raise ValueError(f"patch size {patch} with pools {pools} is too small for {MIN_STAGES} stages. {_CURE}")

    grids = [_divide(patch, _product(strides[: stage + 1])) for stage in range(len(strides))]
    if math.prod(grids[-1]) < 2:
        raise ValueError(f"patch size {patch} with pools {pools} leaves one cell in the last stage. {_CURE}")
    limits = (*architecture.projections[: len(strides) - 1], architecture.projections[-1])
    return NetworkShape(
        patch_size=patch,
        strides=strides,
        dims=architecture.dims[: len(strides)],
        projections=tuple(min(limit, math.prod(grid)) for limit, grid in zip(limits, grids, strict=True)),
        token_stage=_token_stage(grids),
    )


def _planned_shape(patch: Size3, strides: Sequence[Size3], features: Sequence[int] | None) -> NetworkShape:
    """Shape of the plan's own network. Its first stage, at full resolution, is the skip that no token is added to."""
    if features is None or len(features) != len(strides) or len(strides) < 2 or strides[0] != (1, 1, 1):
        raise ValueError(
            f"the plan's own network cannot be the ViT's partner: with strides {list(strides)} and features "
            f"{features} it is no U-Net of at least two stages whose first one has the stride 1. Set "
            "topomae.architecture.partner to 'unetrpp'."
        )
    total = _product(strides)
    if any(size % stride for size, stride in zip(patch, total, strict=True)):
        raise ValueError(f"patch size {patch} is not a multiple of the plan's total stride {total}. {_CURE}")
    stages = tuple(strides[1:])
    grids = [_divide(patch, _product(stages[: stage + 1])) for stage in range(len(stages))]
    return NetworkShape(patch, stages, tuple(features[1:]), (), _token_stage(grids))


def _stage_strides(patch: Size3, pools: list[Size3], max_stages: int) -> tuple[Size3, ...]:
    """Stem and strides of the following stages (steps 1 and 2 of the rule)."""
    used = 2
    joined = _product(pools[:2])
    if math.prod(_divide(patch, joined)) < MIN_STEM_TOKENS or max(joined) > MAX_STEM_STRIDE:
        used = 1
    while used < len(pools) and math.prod(_divide(patch, _product(pools[:used]))) > MAX_STEM_TOKENS:
        used += 1

    strides = [_product(pools[:used]), *pools[used : used + max_stages - 1]]
    while len(strides) < max_stages:
        grid = _divide(patch, _product(strides))
        halved = [size % 2 == 0 and size >= 6 for size in grid]
        if sum(halved) < 2:
            break
        strides.append((1 + halved[0], 1 + halved[1], 1 + halved[2]))
    return tuple(strides)


def _token_stage(grids: Sequence[Size3]) -> int:
    """The stage with a suitable number of ViT tokens, nearest to the preferred one; else the least unsuitable."""

    def unsuitability(stage: int) -> tuple[float, int]:
        tokens = math.prod(grids[stage])
        return max(VIT_TOKENS[0] / tokens, tokens / VIT_TOKENS[1], 1.0), abs(stage - PREFERRED_TOKEN_STAGE)

    return min(range(len(grids)), key=unsuitability)


def _product(strides: Sequence[Size3]) -> Size3:
    depth, height, width = (math.prod(axis) for axis in zip(*strides, strict=True))
    return depth, height, width


def _divide(size: Size3, stride: Size3) -> Size3:
    return size[0] // stride[0], size[1] // stride[1], size[2] // stride[2]
