"""L_rec-consis and L_spa-consis: the two networks should agree (paper Sec. II-C).

Both terms train both networks: neither side is detached.
"""

import torch

from nnunet_topomae.losses.reconstruction import hidden_mse
from nnunet_topomae.losses.spatial import key_point_mse, vector_l1
from nnunet_topomae.types import KeyPoints, Scalar, Vectors, VectorTargets, Volume, VoxelMask


def reconstruction_consistency(
    vit: Volume, partner: Volume, hidden: VoxelMask, inside: VoxelMask | None = None
) -> Scalar:
    """L_rec-consis: mean squared difference of the two reconstructions over hidden voxels (paper Sec. II-C).

    Args:
        vit: reconstruction of the ViT (B, C, D, H, W), in normalised intensities.
        partner: reconstruction of its partner, of the same shape.
        hidden: mask (B, 1, D, H, W), True = hidden.
        inside: mask (B, 1, D, H, W), False at padded voxels, which are left out; None where nothing is padded.

    Returns:
        A scalar, at least 0; 0 if no voxel counts.
    """
    return hidden_mse(vit, partner, hidden, inside)


def spatial_consistency(vit: KeyPoints, partner: KeyPoints) -> Scalar:
    """L_spa-consis: mean squared difference of the two networks' key points (paper Sec. II-C).

    Args:
        vit: key points (B, 9, 3) of the ViT, in [-1, 1].
        partner: key points (B, 9, 3) of its partner.

    Returns:
        A scalar, at least 0.
    """
    return key_point_mse(vit, partner)


def vector_consistency(vit: Vectors, partner: Vectors, target: VectorTargets) -> Scalar:
    """The same for vectors; our addition, as VectorPOSE trains one network.

    Args:
        vit: vectors (B, 9, 3) of the ViT, see vectors.to_spherical.
        partner: vectors (B, 9, 3) of its partner.
        target: says how much the angles count (B, 9, 4).

    Returns:
        A scalar, at least 0.
    """
    return vector_l1(vit, torch.cat([partner, target[..., 3:].to(partner)], dim=-1))
