"""Convolutions that skip hidden voxels."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.roles import no_weight_decay
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.architectures.sparse import SparseMasking, VisibleCells, VisibleInstanceNorm
from nnunet_topomae.architectures.summary import measure_cost
from nnunet_topomae.config import ArchitectureConfig, TopoMAEConfig
from nnunet_topomae.nnunet.plan import PlanNetwork

PARTNERS = run_path(str(Path(__file__).with_name("test_partner.py")))
PATCH, STRIDES, FEATURES = PARTNERS["PATCH"], PARTNERS["STRIDES"], PARTNERS["FEATURES"]


@pytest.fixture
def plan_shape(architecture: ArchitectureConfig) -> NetworkShape:
    return derive_network_shape(PATCH, STRIDES, replace(architecture, partner="plan"), FEATURES)


@pytest.fixture(params=["PLAIN", "RESIDUAL"])
def network(request: pytest.FixtureRequest, plan_shape: NetworkShape, architecture: Any) -> CoPretrainingNetwork:
    planned = PARTNERS[request.param]
    chosen = replace(architecture, partner="plan", vit="none")
    return build_copretraining_network(plan_shape, 2, chosen, planned=planned, masking="sparse")


def test_norm_of_visible_cells() -> None:
    """Equals InstanceNorm of the visible cells alone."""
    norm = VisibleInstanceNorm(3, affine=True)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    norm.cells = VisibleCells()
    features = 5 + torch.randn(2, 3, 4, 6, 5)
    plain = nn.InstanceNorm3d(3, affine=True)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(features), plain(features))
    visible = torch.zeros(2, 1, 4, 6, 5)
    visible[:, :, :, :3] = 1
    norm.cells.visible = visible
    normed = norm(features)
    assert torch.allclose(normed[:, :, :, :3], plain(features[:, :, :, :3]), atol=1e-5)
    assert not normed[:, :, :, 3:].any()
    assert norm(features.half()).dtype == torch.float16


def test_hidden_voxels_change_no_output_and_leave_no_trace(network, plan_shape, crop, mask) -> None:  # type: ignore[no-untyped-def]
    data, chosen = crop(plan_shape, 2, 2), mask(plan_shape, 2)
    other = torch.where(chosen.hidden, 100 * torch.randn_like(data), data)
    network.eval()
    with torch.no_grad():
        first, second = network(data, chosen).partner, network(other, chosen).partner
        assert torch.equal(first.reconstruction, second.reconstruction)
        seen: list[torch.Tensor] = []
        for module in network.encoder.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(lambda _, inputs, output: seen.append(output))
        network(data, chosen)
        for features in seen:
            visible = nn.functional.adaptive_max_pool3d((~chosen.hidden).float(), features.shape[2:])
            assert not (features * (1 - visible)).any()
        # Whole crops are encoded as by the network that nnU-Net builds.
        seen.clear()
        network.encoder(data)
        assert all((features != 0).float().mean() > 0.9 for features in seen)


def test_hidden_voxels_change_no_output_of_a_network_without_norms(plan_shape, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    arguments = {**PARTNERS["COMMON"], "n_conv_per_stage": [1] * 4, "norm_op": None, "norm_op_kwargs": {}}
    planned = PlanNetwork.of(PARTNERS["PLAIN"].class_name, arguments, PARTNERS["IMPORTS"])
    chosen = replace(architecture, partner="plan", vit="none")
    network = build_copretraining_network(plan_shape, 2, chosen, planned=planned, masking="sparse").eval()
    data, hiding = crop(plan_shape, 2, 2), mask(plan_shape, 2)
    others = [torch.where(hiding.hidden, noise * torch.randn_like(data), data) for noise in (1, 100)]
    with torch.no_grad():
        first, second = (network(other, hiding).partner.reconstruction for other in others)
    assert torch.equal(first, second) and first.std() > 0


def test_weights_keep_their_names_and_tokens_do_not_decay(network) -> None:  # type: ignore[no-untyped-def]
    names = {name.split(".")[0] for name in network.state_dict()}
    assert names == {"encoder", "decoder", "key_points", "masking"}
    assert {f"masking.tokens.{number}" for number in range(4)} <= no_weight_decay(network)
    stock = PARTNERS["PLAIN"](2, 3, True)
    if type(stock.encoder).__name__ == type(network.encoder).__name__:
        own = network.encoder.state_dict()
        assert own.keys() == stock.encoder.state_dict().keys()


@pytest.mark.slow
def test_learns_copies_and_compiles(network, plan_shape, crop, mask) -> None:  # type: ignore[no-untyped-def]
    data, chosen = crop(plan_shape, 2, 2), mask(plan_shape, 2)
    network(data, chosen).partner.reconstruction.square().mean().backward()
    assert all(token.grad is not None and token.grad.any() for token in network.masking.tokens[:3])
    assert measure_cost(network, 2, PATCH).macs > 0  # on a copy, whose hooks must be its own
    twin = deepcopy(network)
    conv = next(module for module in twin.encoder.modules() if isinstance(module, nn.Conv3d))
    assert next(iter(conv._forward_hooks.values())).cells is twin.masking.cells
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            chosen = mask(plan_shape, 2)
            expected = network(data, chosen).partner.reconstruction
            assert torch.allclose(compiled(data, chosen).partner.reconstruction, expected, atol=1e-5)


class _Grouped(nn.Module):
    output_channels = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"knows InstanceNorm only, and norm of the plan's network is a GroupNorm"):
        SparseMasking(_Grouped())
    with pytest.raises(ValueError, match=r"'sparse' needs topomae.architecture.partner = 'plan'"):
        TopoMAEConfig.from_configuration({"topomae": {"pretraining": {"partner_masking": "sparse"}}})
