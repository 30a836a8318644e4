"""Reconstruction errors: L_MSE on hidden voxels (paper Sec. II, as in MAE), and VectorPOSE's on all voxels."""

from nnunet_topomae.types import Scalar, Volume, VoxelMask


def hidden_mse(reconstruction: Volume, target: Volume, hidden: VoxelMask, inside: VoxelMask | None = None) -> Scalar:
    """L_MSE: mean squared difference over hidden voxels inside the volume, in float32 (paper Sec. II; He et al. 2022).

    There is nothing to reconstruct in padding, so hidden voxels outside the volume do not count. If no other voxel is
    hidden in the whole batch, the result and its gradient are 0. Nobody looks whether any is, because that would wait
    for the GPU in every step.

    Args:
        reconstruction: volume (B, C, D, H, W), in normalised intensities.
        target: volume of the same shape.
        hidden: mask (B, 1, D, H, W), True = hidden.
        inside: mask (B, 1, D, H, W), False at padded voxels; None where nothing is padded.

    Returns:
        A scalar: the mean over all counted voxels and channels of the batch, 0 if there are none.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 2, 2, 2)
        >>> hidden = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
        >>> hidden[..., 0] = True
        >>> reconstruction = torch.full_like(target, 3.0)
        >>> hidden_mse(reconstruction, target, hidden).item()  # visible voxels do not count
        9.0
    """
    counted = hidden if inside is None else hidden & inside
    count = (counted.sum() * reconstruction.shape[1]).clamp(min=1)
    squared = (reconstruction.float() - target.float()).square()
    return (squared * counted).sum() / count


def inside_l1(output: Volume, target: Volume, inside: VoxelMask | None = None) -> Scalar:
    """Mean absolute difference over the voxels inside the volume, in float32 (Zhang et al. 2022).

    Args:
        output: volume (B, C, D, H, W).
        target: volume of the same shape.
        inside: mask (B, 1, D, H, W), False at padded voxels; None where nothing is padded.

    Returns:
        A scalar: the mean over all counted voxels and channels of the batch, 0 if there are none.

    Example:
        >>> import torch
        >>> output = torch.arange(1.0, 5.0).reshape(1, 1, 1, 1, 4)
        >>> float(inside_l1(output, torch.zeros_like(output), output < 3))
        1.5
    """
    errors = (output.float() - target.float()).abs()
    if inside is None:
        return errors.mean()
    return (errors * inside).sum() / (inside.sum() * output.shape[1]).clamp(min=1)
