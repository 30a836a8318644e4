import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network, build_unetrpp
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.architectures.summary import (
    Cost,
    count_macs,
    count_parameters,
    measure_cost,
    network_macs,
    summary_line,
)
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import crop_mask

NORMS = {"instance_norm", "batch_norm", "layer_norm", "group_norm"}
PRODUCTS = {"conv", "linear", "matmul", "bmm", "addmm", "mm", "einsum"}


def visible_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, **_: object) -> Tensor:
    """Attention as matrix products, which fvcore can see."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return (q * factor @ k.transpose(-2, -1)).softmax(-1) @ v


def fvcore_macs(network: nn.Module, shape: tuple[int, ...], device: str = "cpu") -> dict[str, float]:
    fvcore = pytest.importorskip("fvcore.nn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = fvcore.FlopCountAnalysis(network.eval(), torch.zeros(1, *shape, device=device))
        return dict(counts.unsupported_ops_warnings(False).by_operator())


def test_closed_form() -> None:
    network = nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.ConvTranspose3d(5, 3, (1, 2, 2), stride=(1, 2, 2)))
    assert count_parameters(network) == 27 * 2 * 5 + 5 + 4 * 5 * 3 + 3
    assert count_macs(network, (2, 4, 6, 8)) == 4 * 6 * 8 * (27 * 2 * 5 + 4 * 5 * 3)


def test_cost_of_a_network_in_2d() -> None:
    assert measure_cost(nn.Conv2d(2, 5, 3, padding=1), 2, (6, 8)) == Cost(9 * 2 * 5 + 5, 6 * 8 * 9 * 2 * 5)


@pytest.mark.slow
def test_equals_fvcore(four_stages, architecture, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    network = build_unetrpp(four_stages, 2, 3, architecture, deep_supervision=False)
    macs = count_macs(network, (2, *four_stages.patch_size))
    monkeypatch.setattr(F, "scaled_dot_product_attention", visible_attention)
    operators = fvcore_macs(network, (2, *four_stages.patch_size))
    assert macs == sum(count for name, count in operators.items() if name in PRODUCTS)


@pytest.mark.slow
def test_published_macs_of_unetrpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """47.886 G at 64x128x128 in fvcore's count, which has the norms too."""
    architecture = ArchitectureConfig()
    shape = derive_network_shape((64, 128, 128), [[1, 2, 2], *[[2, 2, 2]] * 4], architecture)
    network = build_unetrpp(shape, 1, 14, architecture, deep_supervision=True)
    assert network_macs(network, shape, 1) / 1e9 == pytest.approx(47.886, rel=0.01)
    monkeypatch.setattr(F, "scaled_dot_product_attention", visible_attention)
    operators = fvcore_macs(network, (1, 64, 128, 128))
    assert sum(count for name, count in operators.items() if name in NORMS | PRODUCTS) / 1e9 == pytest.approx(
        47.886, rel=0.01
    )


@pytest.mark.slow
def test_hidden_tokens_cost_nothing(four_stages: NetworkShape, architecture: ArchitectureConfig) -> None:
    network = build_copretraining_network(four_stages, 1, architecture)
    grid = four_stages.token_grid
    few, many = torch.ones(1, *grid, dtype=torch.bool), torch.zeros(1, *grid, dtype=torch.bool)
    few[0, 0, 0, :2] = False
    masks = [crop_mask(mask, four_stages.token_size, "meta") for mask in (few, many)]
    counts = [count_macs(network, (1, *four_stages.patch_size), mask) for mask in masks]
    per_token = 4 * 12 * 192**2 + 192 * 96 + math.prod(four_stages.token_size) * 192
    tokens = math.prod(grid)
    attention = 4 * 2 * 192 * (tokens**2 - 2**2)
    assert counts[1] - counts[0] == (tokens - 2) * per_token + attention


@pytest.mark.slow
def test_counting_leaves_the_network_alone(four_stages: NetworkShape, architecture: ArchitectureConfig) -> None:
    network = build_fusion_network(four_stages, 1, 2, architecture, deep_supervision=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network_macs(network, four_stages, 1)
    for name, value in network.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name])


@pytest.mark.slow
def test_summary_line(four_stages: NetworkShape, architecture: ArchitectureConfig) -> None:
    network = build_copretraining_network(four_stages, 1, architecture)
    cost = measure_cost(network, 1, four_stages.patch_size)
    assert cost == Cost(count_parameters(network), network_macs(network, four_stages, 1))
    line = summary_line(network, four_stages, cost)
    for part in (
        "CoPretrainingNetwork",
        "patch 8x32x48",
        "stem 1x2x2",
        "96 tokens of 2x8x8",
        f"{cost.parameters / 1e6:.2f} M parameters",
        f"{cost.macs / 1e9:.2f} G MACs",
    ):
        assert part in line
    assert "\n" not in line
