"""L_rec-consis and L_spa-consis: the two networks should agree (paper Sec. II-C).

Both terms train both networks: neither side is detached.
"""

from nnunet_topomae.losses.reconstruction import hidden_mse
from nnunet_topomae.losses.spatial import key_point_mse
from nnunet_topomae.types import KeyPoints, Scalar, Volume, VoxelMask


def reconstruction_consistency(
    vit: Volume, unetrpp: Volume, hidden: VoxelMask, inside: VoxelMask | None = None
) -> Scalar:
    """Mean squared difference of the two reconstructions over hidden voxels; padded ones (not ``inside``) left out."""
    return hidden_mse(vit, unetrpp, hidden, inside)


def spatial_consistency(vit: KeyPoints, unetrpp: KeyPoints) -> Scalar:
    """Mean squared difference of the two networks' key points."""
    return key_point_mse(vit, unetrpp)
