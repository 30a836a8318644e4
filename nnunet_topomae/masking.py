"""Token grid, random token masks and the way between tokens and voxels (paper Sec. II, "masked crop")."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.types import Size3, TokenMask, Volume, VoxelMask


class CropMask(NamedTuple):
    """What is hidden of a batch of crops, as the networks and the losses need it.

    Attributes:
        visible: raster numbers (B, V) of the visible tokens of every sample, ascending.
        hidden: voxel mask (B, 1, D, H, W), True = hidden.
    """

    visible: Int[Tensor, "B V"]
    hidden: VoxelMask


def token_grid(patch_size: Size3, token_size: Size3) -> Size3:
    """Number of tokens along each axis.

    Args:
        patch_size: nnU-Net's patch (the crop) in voxels along (D, H, W).
        token_size: size of a token in voxels along (D, H, W).

    Returns:
        Tokens along (D, H, W).

    Raises:
        ValueError: ``patch_size`` is not a multiple of ``token_size``.

    Example:
        >>> token_grid((96, 96, 96), (16, 16, 16))
        (6, 6, 6)
    """
    if any(t <= 0 for t in token_size) or any(p % t for p, t in zip(patch_size, token_size, strict=True)):
        raise ValueError(
            f"patch size {patch_size} is not a multiple of the token size {token_size}. Plan with -pl TopoMAEPlanner, "
            "or change the token size or the patch size in the plan."
        )
    return patch_size[0] // token_size[0], patch_size[1] // token_size[1], patch_size[2] // token_size[2]


def random_token_mask(batch: int, grid: Size3, mask_ratio: float, generator: Generator | Sequence[int]) -> TokenMask:
    """Hide exactly ``round(mask_ratio * tokens)`` random tokens of every sample.

    The paper (Sec. II) hides one half; hiding an equal number in each sample follows He et al. 2022 (MAE), Sec. 3.

    Args:
        batch: number of samples, each with its own mask.
        grid: tokens along (D, H, W).
        mask_ratio: fraction of hidden tokens, in (0, 1).
        generator: source of randomness; its device is the device of the result. Or a seed per
            sample, so that its mask does not depend on the others.

    Returns:
        bool tensor (B, d, h, w), True = hidden.

    Raises:
        ValueError: the ratio would hide no token or all of them.

    Example:
        >>> mask = random_token_mask(2, (2, 3, 4), 0.5, torch.Generator().manual_seed(0))
        >>> mask.shape, mask.sum(dim=(1, 2, 3)).tolist()
        (torch.Size([2, 2, 3, 4]), [12, 12])
    """
    tokens = grid[0] * grid[1] * grid[2]
    hidden = round(mask_ratio * tokens)
    if not 0 < hidden < tokens:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides {hidden} of {tokens} tokens; at least one must be hidden and one visible"
        )
    if isinstance(generator, Generator):
        noise = torch.rand(batch, tokens, generator=generator, device=generator.device)
    else:
        generators = [Generator().manual_seed(seed) for _, seed in zip(range(batch), generator, strict=True)]
        noise = torch.stack([torch.rand(tokens, generator=of_sample) for of_sample in generators])
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return (ranks < hidden).view(batch, *grid)  # (B, N) -> (B, d, h, w)


def empty_token_mask(batch: int, grid: Size3) -> TokenMask:
    """A mask that hides nothing.

    Args:
        batch: number of samples.
        grid: tokens along (D, H, W).
    """
    return torch.zeros(batch, *grid, dtype=torch.bool)


def token_to_voxel_mask(mask: TokenMask, token_size: Size3) -> VoxelMask:
    """Spread a token mask over the voxels.

    Args:
        mask: bool tensor (B, d, h, w), True = hidden.
        token_size: size (t0, t1, t2) of a token in voxels.

    Returns:
        bool tensor (B, 1, d*t0, h*t1, w*t2), True = hidden.

    Example:
        >>> token_to_voxel_mask(torch.tensor([[[[True, False]]]]), (1, 1, 3)).tolist()
        [[[[[True, True, True, False, False, False]]]]]
    """
    for axis, size in enumerate(token_size, start=1):
        mask = mask.repeat_interleave(size, dim=axis)
    return mask.unsqueeze(1)


def visible_index(token_mask: TokenMask) -> Int[Tensor, "B V"]:
    """Raster numbers of the visible tokens of every sample, ascending.

    Raises:
        ValueError: samples hide different numbers of tokens, or all of them.
    """
    visible = ~token_mask.flatten(1)  # (B, d, h, w) -> (B, N)
    counts = visible.sum(dim=1).tolist()
    if min(counts) != max(counts) or counts[0] == 0:
        raise ValueError(
            f"every sample of a batch must show the same number of tokens, at least one; got {counts}. "
            "random_token_mask makes such masks."
        )
    return visible.byte().argsort(dim=1, descending=True, stable=True)[:, : counts[0]]


def crop_mask(token_mask: TokenMask, token_size: Size3, device: torch.device | str = "cpu") -> CropMask:
    """What a token mask hides, worked out once for both networks and all losses.

    Args:
        token_mask: (B, d, h, w), True = hidden. On the CPU, nothing waits for the GPU.
        token_size: voxels of a token.
        device: device of the result.

    Raises:
        ValueError: samples hide different numbers of tokens, or all of them.

    Example:
        >>> mask = crop_mask(torch.tensor([True, False]).reshape(1, 1, 1, 2), (1, 1, 2))
        >>> mask.visible.tolist(), mask.hidden.flatten().tolist()
        ([[1]], [True, True, False, False])
    """
    visible = visible_index(token_mask).to(device, non_blocking=True)
    return CropMask(visible, token_to_voxel_mask(token_mask.to(device, non_blocking=True), token_size))


def inside_mask(locations: Sequence[CropLocation], device: torch.device) -> VoxelMask | None:
    """The voxels of a batch of equally large crops that lie in their volumes.

    Args:
        locations: places of the crops, as their arrays lie now (after flips).
        device: device of the result.

    Returns:
        bool tensor (B, 1, D, H, W), False at padded voxels; None where no crop is padded.

    Example:
        >>> location = CropLocation((0, 0, -1), (1, 1, 3), (1, 1, 9))
        >>> inside_mask([location], torch.device("cpu")).flatten().tolist()
        [False, True, True, True]
    """
    if not any(location.is_padded for location in locations):
        return None
    mask = torch.zeros(len(locations), 1, *locations[0].array_shape, dtype=torch.bool, device=device)
    for sample, location in zip(mask, locations, strict=True):
        sample[(0, *location.inner_slices())] = True
    return mask


def patchify(volume: Volume, token_size: Size3) -> Float[Tensor, "B N P"]:
    """Cut a volume into the voxels of its tokens.

    Args:
        volume: (B, C, D, H, W).
        token_size: size (t0, t1, t2) of a token in voxels.

    Returns:
        Tokens (B, N, P) with N = d*h*w in raster order and P = C*t0*t1*t2.

    Raises:
        ValueError: the token size does not divide the volume.

    Example:
        >>> volume = torch.arange(2 * 4 * 4 * 6.0).view(1, 2, 4, 4, 6)
        >>> tokens = patchify(volume, (2, 2, 3))
        >>> tokens.shape
        torch.Size([1, 8, 24])
        >>> torch.equal(unpatchify(tokens, (2, 2, 2), (2, 2, 3)), volume)
        True
    """
    batch, channels, depth, height, width = volume.shape
    grid = token_grid((depth, height, width), token_size)
    blocks = volume.view(batch, channels, grid[0], token_size[0], grid[1], token_size[1], grid[2], token_size[2])
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # (B, d, h, w, C, t0, t1, t2) -> (B, N, P)


def unpatchify(tokens: Float[Tensor, "B N P"], grid: Size3, token_size: Size3) -> Volume:
    """Put a volume together from its tokens; the inverse of `patchify`.

    Args:
        tokens: (B, N, P) with N = d*h*w in raster order and P = C*t0*t1*t2.
        grid: tokens along (d, h, w).
        token_size: size (t0, t1, t2) of a token in voxels.

    Returns:
        Volume (B, C, D, H, W) with D = d*t0, H = h*t1 and W = w*t2.
    """
    batch = tokens.shape[0]
    blocks = tokens.view(batch, *grid, -1, *token_size).permute(0, 4, 1, 5, 2, 6, 3, 7)
    size = (grid[0] * token_size[0], grid[1] * token_size[1], grid[2] * token_size[2])
    return blocks.reshape(batch, -1, *size)  # (B, C, d, t0, h, t1, w, t2) -> (B, C, D, H, W)
