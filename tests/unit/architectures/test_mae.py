import torch
from torch import Tensor

from nnunet_topomae.architectures.mae import MAEDecoder
from nnunet_topomae.architectures.vit import VIT_PRESETS
from nnunet_topomae.masking import random_token_mask, visible_index

GRID, TOKEN = (2, 3, 4), (4, 8, 6)


def rebuild_by_hand(decoder: MAEDecoder, tokens: Tensor, mask: Tensor) -> Tensor:
    """Place tokens and voxels with loops."""
    volumes = []
    for sample, hidden in zip(tokens, mask.flatten(1), strict=True):
        visible = iter(decoder.embedding(sample))
        sequence = torch.stack([decoder.mask_token[0, 0] if h else next(visible) for h in hidden])
        sequence = (sequence + decoder.positions)[None]
        for block in decoder.blocks:
            sequence = block(sequence)
        voxels = decoder.prediction(decoder.norm(sequence))[0]
        volume = torch.zeros(2, 8, 24, 24)
        for n, token in enumerate(voxels):
            d, h, w = n // 12, n // 4 % 3, n % 4
            block_of_voxels = token.view(2, *TOKEN)
            volume[:, d * 4 : d * 4 + 4, h * 8 : h * 8 + 8, w * 6 : w * 6 + 6] = block_of_voxels
        volumes.append(volume)
    return torch.stack(volumes)


def test_reconstruction_equals_loops(generator: torch.Generator) -> None:
    decoder = MAEDecoder(GRID, TOKEN, 2, VIT_PRESETS["tiny"]).eval()
    mask = random_token_mask(3, GRID, 0.6, generator)
    tokens = torch.randn(3, 10, 192, generator=generator)
    with torch.no_grad():
        rebuilt = decoder(tokens, visible_index(mask))
        torch.testing.assert_close(rebuilt, rebuild_by_hand(decoder, tokens, mask), rtol=1e-4, atol=1e-5)


def test_reconstruction_is_float32_under_autocast(generator: torch.Generator) -> None:
    decoder = MAEDecoder(GRID, TOKEN, 1, VIT_PRESETS["tiny"])
    mask = random_token_mask(1, GRID, 0.5, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction = decoder(torch.randn(1, 12, 192), visible_index(mask))
    assert reconstruction.dtype == torch.float32
    assert len(reconstruction.detach().unique()) > 4000


def test_position_embedding_is_not_saved() -> None:
    """It depends on the grid, and weights must load into a network of another patch size."""
    assert not [name for name in MAEDecoder(GRID, TOKEN, 1, VIT_PRESETS["tiny"]).state_dict() if "positions" in name]
