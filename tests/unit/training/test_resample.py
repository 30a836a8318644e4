"""Adapted weights must treat constant and linear fields as the original ones did."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, conv_transpose3d

from nnunet_topomae.architectures.build import build_copretraining_network, build_fusion_network
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.masking import patchify
from nnunet_topomae.training.resample import (
    NetworkSize,
    repeat_rows,
    resample_reading,
    resample_written,
    resampling_matrix,
    source_name,
    spread_channels,
)
from nnunet_topomae.training.transfer import Parts, transfer_resampled, transferred_parts, without_aliases

TINY = ArchitectureConfig(vit="tiny", dims=(8, 16, 32, 64), depth=1)
SIZES = [(2, 2), (1, 4), (4, 1), (2, 4), (4, 2), (3, 5), (5, 3), (7, 2), (2, 7)]
GRIDS = [((2, 4, 3), (4, 4, 5)), ((4, 5, 6), (2, 5, 3)), ((1, 8, 8), (2, 4, 16)), ((3, 2, 4), (3, 2, 4))]


def _field(grid: tuple[int, int, int], slopes: tuple[float, float, float]) -> Tensor:
    """1 plus a linear field of the position in the crop, -1 to 1 along every axis."""
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1 for n in grid]
    coordinates = torch.meshgrid(*axes, indexing="ij")
    return 1.0 + sum(slope * axis for slope, axis in zip(slopes, coordinates, strict=True))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_matrix_keeps_constants_and_lines(old: int, new: int) -> None:
    matrix = resampling_matrix(old, new)
    assert matrix.shape == (new, old)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new, dtype=torch.float64))
    if old > 1:
        centres = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (old, new)]
        torch.testing.assert_close(matrix @ centres[0], centres[1])


def test_matrix_by_hand() -> None:
    expected = torch.tensor([[1.25, -0.25], [0.75, 0.25], [0.25, 0.75], [-0.25, 1.25]], dtype=torch.float64)
    torch.testing.assert_close(resampling_matrix(2, 4), expected)
    halves = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(resampling_matrix(4, 2), halves)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_written_fields_stay_what_they_are(old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    slopes = tuple(0.3 * axis if min(old[axis], new[axis]) > 1 else 0.0 for axis in range(3))
    field = torch.stack([_field(old, slopes), 2 * _field(old, slopes)])  # (C, d, h, w)
    expected = torch.stack([_field(new, slopes), 2 * _field(new, slopes)])
    torch.testing.assert_close(resample_written(field, new), expected)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_readers_answer_linear_fields_as_before(old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    slopes = tuple(0.3 * axis if min(old[axis], new[axis]) > 1 else 0.0 for axis in range(3))
    weight = torch.randn(5, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = torch.einsum("pdhw,dhw->p", weight, _field(old, slopes))
    after = torch.einsum("pdhw,dhw->p", resample_reading(weight, new), _field(new, slopes))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_equal_channels_get_the_old_answer(channels: int) -> None:
    weight = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = conv3d(image.expand(-1, 2, -1, -1, -1), weight)
    after = conv3d(image.expand(-1, channels, -1, -1, -1), spread_channels(weight, channels))
    torch.testing.assert_close(after, before)
    assert spread_channels(weight, 2) is weight


def test_strided_and_transposed_convolutions() -> None:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(4, 1, 2, 4, 3, dtype=torch.float64, generator=generator)
    field = _field((2, 4, 3), (0.2, -0.4, 0.1)), _field((4, 2, 6), (0.2, -0.4, 0.1))
    before = conv3d(field[0][None, None], down, stride=(2, 4, 3))
    after = conv3d(field[1][None, None], resample_reading(down, (4, 2, 6)), stride=(4, 2, 6))
    torch.testing.assert_close(after, before)
    up = _field((2, 4, 3), (0.2, -0.4, 0.1)).expand(1, 1, -1, -1, -1)
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    written = conv_transpose3d(one, resample_written(up, (4, 2, 6)), stride=(4, 2, 6))
    torch.testing.assert_close(written[0, 0], field[1])


def test_rows_are_repeated_in_turn() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert repeat_rows(rows, 2).tolist() == [[0, 1], [2, 3]]
    assert repeat_rows(rows, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]


def _size(patch: tuple[int, int, int], strides: list[list[int]], channels: int) -> NetworkSize:
    return NetworkSize(derive_network_shape(patch, [[1, 1, 1], *strides], TINY), channels)


ISOTROPIC = _size((16, 32, 24), [[2, 2, 2]] * 3, 2)
THIN = _size((8, 64, 64), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 1)
LARGER = _size((32, 32, 48), [[2, 2, 2]] * 3, 3)


# As the networks declare it (architectures.roles.coarse_to_fine_prefixes).
STEPS = ("decoder.steps.",)


def _both(network: torch.nn.Module) -> Parts:
    return transferred_parts(network, "both")


def _networks(old: NetworkSize, new: NetworkSize) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    pretrained = build_copretraining_network(old.shape, old.channels, TINY)
    return pretrained, build_fusion_network(new.shape, new.channels, 3, TINY, deep_supervision=True)


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(ISOTROPIC, LARGER), (ISOTROPIC, THIN), (THIN, ISOTROPIC), (LARGER, THIN)])
def test_every_weight_is_copied_resampled_or_fresh(old: NetworkSize, new: NetworkSize) -> None:
    pretrained, network = _networks(old, new)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = pretrained.state_dict()
    result = transfer_resampled(weights, network, old, new, _both(network))
    own = network.state_dict()
    once = set(without_aliases(own))
    assert set(result.matched) | set(result.missing) == once and not set(result.matched) & set(result.missing)
    assert all(torch.equal(own[name], before[name]) for name in result.missing)
    for name in result.matched:
        if name not in result.adapted:
            assert torch.equal(own[name], weights[source_name(name, STEPS, old.shape, new.shape)]), name
    stages = min(len(old.shape.dims), len(new.shape.dims))
    kept = [name for name in once if name.startswith("encoder.stages.") and int(name.split(".")[2]) < stages]
    assert set(kept) <= set(result.matched)
    assert any(name.startswith("encoder.downsampling.0") for name in result.adapted)
    assert f"{len(result.adapted)} of them resampled" in str(result)
    network(torch.randn(1, new.channels, *new.shape.patch_size))


def test_the_same_plan_is_copied_to_the_last_bit() -> None:
    pretrained, network = _networks(ISOTROPIC, ISOTROPIC)
    weights = pretrained.state_dict()
    result = transfer_resampled(weights, network, ISOTROPIC, ISOTROPIC, _both(network))
    assert result.adapted == {}
    assert all(torch.equal(network.state_dict()[name], weights[name]) for name in result.matched)


def test_tokens_of_a_constant_image_are_those_of_the_old_network() -> None:
    pretrained, network = _networks(ISOTROPIC, LARGER)
    transfer_resampled(pretrained.state_dict(), network, ISOTROPIC, LARGER, _both(network))
    tokens = []
    for model, size in ((pretrained, ISOTROPIC), (network, LARGER)):
        image = torch.full((1, size.channels, *size.shape.patch_size), 0.7)
        tokens.append(model.vit_encoder.patch_embedding(patchify(image, size.shape.token_size))[0, 0])
    torch.testing.assert_close(tokens[1], tokens[0], rtol=1e-4, atol=1e-5)


def test_decoder_steps_belong_together_from_the_finest_on() -> None:
    three = NetworkShape((16, 32, 24), ((2, 2, 2),) * 3, (8, 16, 32), (4, 4, 4), 2)
    four = NetworkShape((16, 32, 32), ((2, 2, 2),) * 4, (8, 16, 32, 64), (4, 4, 4, 2), 2)
    assert source_name("decoder.steps.3.upsampling.weight", STEPS, three, four) == "decoder.steps.2.upsampling.weight"
    assert source_name("decoder.steps.0.upsampling.weight", STEPS, three, four) == "decoder.steps.-1.upsampling.weight"
    assert source_name("decoder.steps.0.refinement.x", STEPS, four, three) == "decoder.steps.1.refinement.x"
    assert source_name("encoder.stages.1.x", STEPS, four, three) == "encoder.stages.1.x"


def test_another_architecture_is_refused_and_nothing_is_loaded() -> None:
    pretrained, _ = _networks(ISOTROPIC, LARGER)
    other = ArchitectureConfig(vit="tiny", dims=(12, 16, 32, 64), depth=1)
    shape = derive_network_shape((32, 32, 48), [[1, 1, 1], *[[2, 2, 2]] * 3], other)
    network = build_fusion_network(shape, 3, 3, other, deep_supervision=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="cannot be adapted"):
        transfer_resampled(pretrained.state_dict(), network, ISOTROPIC, NetworkSize(shape, 3), _both(network))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
