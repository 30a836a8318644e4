import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_topomae.architectures.keypoint_head import KeyPointHead


def pool_by_hand(features: Tensor, pooled: tuple[int, ...]) -> Tensor:
    """Average over the cells that overlap each bin, axis by axis."""
    for axis, bins in enumerate(pooled, start=2):
        size = features.shape[axis]
        slices = [(n * size // bins, -(-(n + 1) * size // bins)) for n in range(bins)]
        features = torch.stack([features.narrow(axis, a, b - a).mean(axis) for a, b in slices], dim=axis)
    return features


@pytest.mark.parametrize(("grid", "pooled"), [((3, 5, 9), (3, 4, 4)), ((2, 1, 4), (2, 1, 4))])
def test_formula(grid: tuple[int, int, int], pooled: tuple[int, int, int]) -> None:
    head = KeyPointHead(6, grid)
    features = torch.randn(2, 6, *grid)
    hidden = F.gelu(F.conv3d(features, head.convolution[0].weight, head.convolution[0].bias, padding=1))
    hidden = pool_by_hand(hidden, pooled).reshape(2, -1)
    first, second = head.mlp[0], head.mlp[2]
    assert first.out_features == 256
    expected = torch.tanh(F.gelu(hidden @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    points = head(features)
    assert points.shape == (2, 9, 3)
    torch.testing.assert_close(points, expected.reshape(2, 9, 3), rtol=1e-4, atol=1e-5)


def test_points_are_float32_inside_the_unit_cube() -> None:
    head = KeyPointHead(6, (3, 4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        points = head(100 * torch.randn(2, 6, 3, 4, 5))
    assert points.dtype == torch.float32
    assert points.abs().max() <= 1


def test_sees_where_features_are() -> None:
    head = KeyPointHead(1, (4, 6, 8))
    features = torch.zeros(2, 1, 4, 6, 8)
    features[0, 0, 0, 0, 0] = features[1, 0, 3, 5, 7] = 5
    a, b = head(features)
    assert not torch.allclose(a, b, atol=1e-3)
