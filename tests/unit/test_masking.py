from itertools import product

import pytest
import torch

from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.masking import (
    crop_mask,
    inside_mask,
    patchify,
    random_token_mask,
    token_grid,
    token_to_voxel_mask,
    unpatchify,
)

GRID, TOKEN = (2, 3, 5), (4, 2, 3)
PATCH = (8, 6, 15)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_token_grid() -> None:
    assert token_grid(PATCH, TOKEN) == GRID


@pytest.mark.parametrize("token", [(3, 2, 3), (4, 2, 0), (-4, 2, 3)])
def test_token_grid_refuses(token: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a multiple of the token size"):
        token_grid(PATCH, token)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 15), (0.1, 3), (0.75, 22), (0.97, 29)])
def test_exactly_the_ratio_is_hidden_in_every_sample(ratio: float, hidden: int, generator: torch.Generator) -> None:
    mask = random_token_mask(7, GRID, ratio, generator)
    assert mask.shape == (7, *GRID)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=(1, 2, 3)).tolist() == [hidden] * 7


def test_masks_are_reproducible_and_differ_among_samples() -> None:
    first, second = (random_token_mask(4, GRID, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(sample.flatten().tolist()) for sample in first}) == 4


def test_global_random_state_is_left_alone(generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    random_token_mask(4, GRID, 0.5, generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_token_and_every_pair_is_hidden_equally_often(generator: torch.Generator) -> None:
    hidden = random_token_mask(20000, GRID, 0.5, generator).flatten(1).double()
    n, k = 30, 15
    single = hidden.mean(dim=0)
    assert (single - k / n).abs().max() < 5 * (0.25 / 20000) ** 0.5
    pairs = (hidden.T @ hidden / 20000)[~torch.eye(n, dtype=torch.bool)]
    expected = k * (k - 1) / (n * (n - 1))
    assert (pairs - expected).abs().max() < 5 * (expected * (1 - expected) / 20000) ** 0.5


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.99, 1.0, -0.5, 1.5])
def test_something_must_be_hidden_and_something_visible(ratio: float, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} hides"):
        random_token_mask(2, GRID, ratio, generator)


def test_voxel_mask_is_the_mask_of_the_voxels_token(generator: torch.Generator) -> None:
    mask = random_token_mask(3, GRID, 0.4, generator)
    voxels = token_to_voxel_mask(mask, TOKEN)
    assert voxels.shape == (3, 1, *PATCH)
    for sample, (d, h, w) in product(range(3), product(*map(range, PATCH))):
        assert voxels[sample, 0, d, h, w] == mask[sample, d // TOKEN[0], h // TOKEN[1], w // TOKEN[2]]


def test_crop_mask_lists_what_is_visible_and_what_is_hidden(generator: torch.Generator) -> None:
    tokens = random_token_mask(3, GRID, 0.4, generator)
    mask = crop_mask(tokens, TOKEN)
    for sample in range(3):
        assert mask.visible[sample].tolist() == [n for n in range(30) if not tokens[sample].flatten()[n]]
    assert torch.equal(mask.hidden, token_to_voxel_mask(tokens, TOKEN))


def test_samples_must_show_the_same_number_of_tokens() -> None:
    tokens = torch.zeros(3, *GRID, dtype=torch.bool)
    tokens[1, 0, 0, 0] = True
    with pytest.raises(ValueError, match=r"\[30, 29, 30\]"):
        crop_mask(tokens, TOKEN)
    with pytest.raises(ValueError, match="at least one"):
        crop_mask(torch.ones(3, *GRID, dtype=torch.bool), TOKEN)


def test_inside_mask_is_that_of_every_crop() -> None:
    padded = CropLocation((-2, 1, 3), (3, 8, 9), (4, 9, 11))
    whole = CropLocation((1, 2, 3), (6, 9, 9), (6, 12, 9))
    mask = inside_mask([padded, whole, padded.flipped((0,))], torch.device("cpu"))
    assert mask is not None and mask.shape == (3, 1, 5, 7, 6) and mask.dtype == torch.bool
    for sample, location in zip(mask, (padded, whole, padded.flipped((0,))), strict=True):
        assert torch.equal(sample[0], torch.from_numpy(location.inside()))
    assert mask[0, 0, :2].sum() == 0 and mask[0, 0, 2:].all()
    assert inside_mask([whole, whole], torch.device("cpu")) is None
    assert inside_mask([], torch.device("cpu")) is None


def test_patchify_against_slices() -> None:
    volume = torch.arange(2 * 7 * 8 * 6 * 15.0).view(2, 7, *PATCH)
    tokens = patchify(volume, TOKEN)
    assert tokens.shape == (2, 30, 7 * 24)
    for number, (d, h, w) in enumerate(product(*map(range, GRID))):
        block = volume[:, :, d * 4 : d * 4 + 4, h * 2 : h * 2 + 2, w * 3 : w * 3 + 3]
        assert torch.equal(tokens[:, number], block.reshape(2, -1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_unpatchify_undoes_patchify(memory_format: torch.memory_format) -> None:
    volume = torch.randn(2, 7, *PATCH).to(memory_format=memory_format)
    assert torch.equal(unpatchify(patchify(volume, TOKEN), GRID, TOKEN), volume)


def test_patchify_works_on_slices_of_a_larger_volume() -> None:
    volume = torch.randn(2, 7, 20, 20, 20)[:, 1:4, 3:11, 2:8, 5:20]
    assert torch.equal(patchify(volume, TOKEN), patchify(volume.contiguous(), TOKEN))


def test_unpatchify_refuses_a_wrong_grid() -> None:
    with pytest.raises(RuntimeError):
        unpatchify(torch.zeros(2, 30, 48), (2, 3, 4), TOKEN)


def test_patchify_refuses_a_volume_that_is_no_multiple() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        patchify(torch.zeros(2, 1, 8, 7, 15), TOKEN)
