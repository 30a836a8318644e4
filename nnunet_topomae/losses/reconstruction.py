"""L_MSE: mean squared reconstruction error on hidden voxels (paper Sec. II, as in MAE)."""

from nnunet_topomae.types import Scalar, Volume, VoxelMask


def hidden_mse(reconstruction: Volume, target: Volume, hidden: VoxelMask, inside: VoxelMask | None = None) -> Scalar:
    """Mean squared difference over the batch's hidden voxels that lie in their volumes, all channels, in float32.

    Padding is nothing to rebuild, so hidden voxels outside the volume do not count; where no others are hidden in the
    whole batch, the result is 0.

    Args:
        reconstruction: volume (B, C, D, H, W).
        target: volume of the same shape.
        hidden: mask (B, 1, D, H, W), True = hidden.
        inside: mask (B, 1, D, H, W), False at padded voxels; None where nothing is padded.

    Raises:
        ValueError: no voxel is hidden.
    """
    if not hidden.any():
        raise ValueError("the mask hides no voxel, so the reconstruction error is undefined")
    counted = hidden if inside is None else hidden & inside
    count = (counted.sum() * reconstruction.shape[1]).clamp(min=1)
    squared = (reconstruction.float() - target.float()).square()
    return (squared * counted).sum() / count
