"""L_MSE: mean squared reconstruction error on hidden voxels (paper Sec. II, as in MAE)."""

from nnunet_topomae.types import Scalar, Volume, VoxelMask


def hidden_mse(reconstruction: Volume, target: Volume, hidden: VoxelMask) -> Scalar:
    """Mean squared difference over the hidden voxels of all channels, in float32.

    Args:
        reconstruction: volume (B, C, D, H, W).
        target: volume of the same shape.
        hidden: mask (B, 1, D, H, W), True = hidden.

    Raises:
        ValueError: no voxel is hidden.
    """
    count = hidden.sum() * reconstruction.shape[1]
    if not hidden.any():
        raise ValueError("the mask hides no voxel, so the reconstruction error is undefined")
    squared = (reconstruction.float() - target.float()).square()
    return (squared * hidden).sum() / count
