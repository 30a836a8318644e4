"""nnU-Net's own networks in UNETR++'s place."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.build import (
    Tasks,
    build_copretraining_network,
    build_fusion_network,
    build_unetr,
    build_unetrpp,
)
from nnunet_topomae.architectures.memory import estimate_finetuning, estimate_pretraining, saved_tensor_bytes
from nnunet_topomae.architectures.partner import adopt, build_partner
from nnunet_topomae.architectures.roles import check_declarations
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.architectures.summary import count_parameters
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import crop_mask, random_token_mask
from nnunet_topomae.nnunet.plan import PlanNetwork

PATCH = (16, 32, 24)
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
FEATURES = [4, 6, 8, 10]
COMMON: dict[str, Any] = {
    "n_stages": 4,
    "features_per_stage": FEATURES,
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 3],
    "strides": STRIDES,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
    "n_conv_per_stage_decoder": [1, 1, 1],
}
IMPORTS = ("conv_op", "norm_op", "dropout_op", "nonlin")
PLAIN = PlanNetwork.of(
    "dynamic_network_architectures.architectures.unet.PlainConvUNet", {**COMMON, "n_conv_per_stage": [2] * 4}, IMPORTS
)
RESIDUAL = PlanNetwork.of(
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    {**COMMON, "n_blocks_per_stage": [1, 2, 2, 2]},
    IMPORTS,
)


@pytest.fixture(params=["plain", "residual"])
def planned(request: pytest.FixtureRequest) -> PlanNetwork:
    return PLAIN if request.param == "plain" else RESIDUAL


@pytest.fixture
def plan_architecture(architecture: ArchitectureConfig) -> ArchitectureConfig:
    return replace(architecture, partner="plan")


@pytest.fixture
def plan_shape(plan_architecture: ArchitectureConfig) -> NetworkShape:
    return derive_network_shape(PATCH, STRIDES, plan_architecture, FEATURES)


def test_stages_are_those_of_the_plan(plan_shape: NetworkShape) -> None:
    assert plan_shape.strides == ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan_shape.dims == (6, 8, 10)
    assert plan_shape.grids == ((16, 16, 12), (8, 8, 6), (4, 4, 3))
    assert plan_shape.token_grid == (8, 8, 6)  # 384 tokens; the coarsest stage has 48, too few


@pytest.mark.parametrize("size", [64, 96, 128])
def test_tokens_of_large_patches(plan_architecture: ArchitectureConfig, size: int) -> None:
    features = [32, 64, 128, 256, 320, 320]
    shape = derive_network_shape([size] * 3, [[1, 1, 1], *[[2, 2, 2]] * 5], plan_architecture, features)
    tokens = shape.token_grid[0] * shape.token_grid[1] * shape.token_grid[2]
    assert 64 <= tokens <= 2048


def test_hidden_voxels_change_no_output(  # type: ignore[no-untyped-def]
    plan_shape, plan_architecture, planned, crop, mask
) -> None:
    """Neither directly nor through a norm's mean: the network sees 0 in their place."""
    network = build_copretraining_network(plan_shape, 2, plan_architecture, planned=planned)
    data, chosen = crop(plan_shape, 2, 2), mask(plan_shape, 2)
    other = torch.where(chosen.hidden, 100 * torch.randn_like(data), data)
    with torch.no_grad():
        for first, second in zip(network(data, chosen), network(other, chosen), strict=True):
            assert torch.equal(first.reconstruction, second.reconstruction)
            assert torch.equal(first.key_points, second.key_points)


def test_pre_training_holds_every_key_that_stock_nnunet_asks_for(  # type: ignore[no-untyped-def]
    plan_shape, plan_architecture, planned
) -> None:
    weights = build_copretraining_network(plan_shape, 2, plan_architecture, planned=planned).state_dict()
    stock = planned(2, 3, True).state_dict()
    assert all(weights[name].shape == value.shape for name, value in stock.items() if ".seg_layers." not in name)


def test_fusion_starts_exactly_at_the_plans_network(  # type: ignore[no-untyped-def]
    plan_shape, plan_architecture, planned, crop
) -> None:
    fusion = build_fusion_network(plan_shape, 2, 3, plan_architecture, True, planned).eval()
    stock = planned(2, 3, True).eval()
    stock.load_state_dict({name: value for name, value in fusion.state_dict().items() if name in stock.state_dict()})
    data = crop(plan_shape, 2, 2)
    with torch.no_grad():
        fused, plain = fusion(data), stock(data)
    assert len(fused) == len(plain) == 3
    assert all(torch.equal(first, second) for first, second in zip(fused, plain, strict=True))


@pytest.mark.slow
def test_every_trained_parameter_learns(  # type: ignore[no-untyped-def]
    plan_shape, plan_architecture, planned, crop, mask
) -> None:
    network = build_copretraining_network(plan_shape, 1, plan_architecture, planned=planned)
    idle = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    others = range(len(network.decoder.seg_layers) - 1)
    assert idle == {f"decoder.seg_layers.{i}.{kind}" for i in others for kind in ("weight", "bias")}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # residual blocks start as identities, so their first layers learn from the second step on
        optimizer.zero_grad()
        output = network(crop(plan_shape, 2, 1), mask(plan_shape, 2))
        sum(tensor.square().mean() for branch in output for tensor in branch if tensor is not None).backward()
        optimizer.step()
    silent = {name for name, p in network.named_parameters() if p.requires_grad and not p.grad.any()}
    assert all(name.endswith("conv.bias") for name in silent)  # the norm after it takes a bias out again


def test_reconstruction_starts_near_zero_and_is_float32(  # type: ignore[no-untyped-def]
    plan_shape, plan_architecture, planned, crop
) -> None:
    partner = build_partner(plan_shape, 1, 1, plan_architecture, planned, purpose="reconstruction")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = partner(crop(plan_shape, 2, 1))
    assert rebuilt.dtype == torch.float32 and rebuilt.shape == (2, 1, *PATCH)
    assert 0 < rebuilt.std() < 0.3
    logits = build_partner(plan_shape, 1, 3, plan_architecture, planned)(crop(plan_shape, 2, 1))
    assert logits.std() > 3 * rebuilt.std()


@pytest.mark.parametrize("stages", [2, 3])
def test_every_task_on_a_network_of_few_stages(plan_architecture: ArchitectureConfig, stages: int) -> None:
    """Vectors read the stages below full resolution, of which a small patch leaves one or two."""
    patch, strides, features = (8, 16, 16), [[1, 1, 1], [2, 2, 2], [2, 2, 2]][:stages], FEATURES[:stages]
    lists = ("strides", "kernel_sizes", "features_per_stage")
    arguments = {**COMMON, "n_stages": stages, **{key: COMMON[key][:stages] for key in lists}, "strides": strides}
    arguments |= {"n_conv_per_stage": [1] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
    planned = PlanNetwork.of(PLAIN.class_name, arguments, IMPORTS)
    shape = derive_network_shape(patch, strides, plan_architecture, features)
    tasks = Tasks(key_points=True, vectors=True, boundaries=True)
    network = build_copretraining_network(shape, 5, plan_architecture, planned=planned, tasks=tasks)
    tokens = random_token_mask(2, shape.token_grid, 0.5, torch.Generator().manual_seed(0))
    output = network(torch.randn(2, 5, *patch), crop_mask(tokens, shape.token_size))
    for branch in output.present().values():
        assert branch.vectors is not None and branch.vectors.shape == (2, 9, 3)
        assert branch.reconstruction.shape == (2, 5, *patch)


def test_without_a_vit(plan_shape, plan_architecture, planned, crop, mask) -> None:  # type: ignore[no-untyped-def]
    alone = replace(plan_architecture, vit="none")
    network = build_copretraining_network(plan_shape, 1, alone, planned=planned)
    assert network.branches == ("partner",)
    assert {name.split(".")[0] for name in network.state_dict()} == {"encoder", "decoder", "key_points"}
    heard: list[object] = []
    output = network(crop(plan_shape, 1, 1), mask(plan_shape, 1), on_vit=heard.append)
    assert output.vit is None and output.partner is not None and not heard
    fine_tuned = build_fusion_network(plan_shape, 1, 3, alone, True, planned)
    assert count_parameters(fine_tuned) == count_parameters(planned(1, 3, True))
    with pytest.raises(ValueError, match="vit is 'none'"):
        build_unetr(plan_shape, 1, 3, alone)
    with pytest.raises(ValueError, match="one or both of vit, partner"):
        build_copretraining_network(plan_shape, 1, alone, ["vit"], planned)


def test_unetrpp_without_a_vit(four_stages, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, replace(architecture, vit="none"))
    assert network(crop(four_stages, 1, 1), mask(four_stages, 1)).vit is None


def test_roles_are_declared(plan_shape, plan_architecture, planned) -> None:  # type: ignore[no-untyped-def]
    network = build_fusion_network(plan_shape, 2, 3, plan_architecture, True, planned)
    check_declarations(network)
    (first,) = network.encoder.resampled_as
    assert network.encoder.get_parameter(first).shape[:2] == (FEATURES[0], 2)


@pytest.mark.slow
def test_memory_counts_the_plans_network(plan_shape, plan_architecture, architecture) -> None:  # type: ignore[no-untyped-def]
    wide = PlanNetwork.of(PLAIN.class_name, {**COMMON, "n_conv_per_stage": [2] * 4}, IMPORTS)
    wide = replace(wide, arguments=wide.arguments.replace("[4, 6, 8, 10]", "[8, 12, 16, 20]"))
    shape = derive_network_shape(PATCH, STRIDES, plan_architecture, wide.features)
    for estimate in (
        lambda shape, planned: estimate_pretraining(shape, plan_architecture, 1, planned=planned),
        lambda shape, planned: estimate_finetuning(shape, plan_architecture, 1, 3, planned=planned),
    ):
        small, large = estimate(plan_shape, PLAIN), estimate(shape, wide)
        assert large.fixed > small.fixed and large.per_sample > small.per_sample


def test_memory_counts_what_sparse_masking_keeps(plan_shape, plan_architecture, planned, crop) -> None:  # type: ignore[no-untyped-def]
    """The estimate, without data, equals the tensors that autograd keeps with data."""
    estimates, kept = [], []
    for masking in ("zero", "sparse"):
        alone = replace(plan_architecture, vit="none")
        estimates.append(estimate_pretraining(plan_shape, alone, 1, False, planned, masking).per_sample)
        network = build_copretraining_network(plan_shape, 1, alone, planned=planned, masking=masking)
        kept.append(saved_tensor_bytes(network, crop(plan_shape, 2, 1))[0] // 2)
    assert kept[1] > 1.1 * kept[0]
    assert estimates[1] - estimates[0] == pytest.approx(kept[1] - kept[0], rel=0.05)


class _Headless(nn.Module):
    """An encoder and something that is no decoder in nnU-Net's sense, as in Primus."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Identity(), nn.Identity()

    def forward(self, data: Tensor) -> Tensor:
        return data


def test_refused(plan_shape, plan_architecture, architecture) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="_Headless cannot be the ViT's partner: it has no decoder.seg_layers,"):
        adopt(_Headless(), 1)
    with pytest.raises(ValueError, match="nothing says how to build"):
        build_partner(plan_shape, 1, 1, plan_architecture)
    with pytest.raises(ValueError, match=r"partner is 'plan', so this plan has no UNETR\+\+"):
        build_unetrpp(plan_shape, 1, 3, plan_architecture, deep_supervision=True)
    with pytest.raises(ValueError, match="no U-Net of at least two stages"):
        derive_network_shape(PATCH, STRIDES, plan_architecture, None)
    with pytest.raises(ValueError, match="no U-Net of at least two stages"):
        derive_network_shape(PATCH, [[2, 2, 2], *STRIDES[1:]], plan_architecture, FEATURES)
    with pytest.raises(ValueError, match="not a multiple of the plan's total stride"):
        derive_network_shape((15, 32, 24), STRIDES, plan_architecture, FEATURES)
