"""Images of a download, also those whose header ITK refuses."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from jaxtyping import Float
from numpy import ndarray

# What ITK says of a header whose axes are not at right angles.
_REFUSED = "orthonormal direction cosines"


def read_image(path: Path, fix_direction: bool = False) -> SimpleITK.Image:
    """Read an image.

    Args:
        path: the file.
        fix_direction: give a NIfTI file whose axes are not at right angles the closest axes that are. Voxels, their
            spacing and the origin stay; other voxels than the first one move in space.

    Raises:
        ValueError: unreadable, or the axes are not at right angles and that was not to be fixed.
    """
    try:
        return SimpleITK.ReadImage(path)
    except RuntimeError as error:
        if _REFUSED not in str(error):
            raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
        if fix_direction:
            return _read_skewed(path)
        raise ValueError(
            f"{path} has axes that are not at right angles, and nnU-Net's default reader refuses it. Convert with "
            "--fix-direction to take the closest axes at right angles: voxels and label maps stay as they are. Or make "
            'the data set by hand with "overwrite_image_reader_writer": "NibabelIO" in dataset.json, a reader of '
            "nnU-Net that ignores the axes."
        ) from error


def _read_skewed(path: Path) -> SimpleITK.Image:
    read: Any = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(read.affine, np.float64)[:3]  # from RAS to LPS, as ITK has it
    spacing = np.linalg.norm(affine[:, :3], axis=0)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:, :3]) < 3:
        raise ValueError(f"{path} has no three axes in its header: {read.affine.tolist()}. Repair or remove it.")
    voxels = np.asanyarray(read.dataobj)
    if voxels.dtype.names:
        raise ValueError(f"{path} is a colour image, which has no intensities. Remove it.")
    image = SimpleITK.GetImageFromArray(voxels.T, isVector=False)
    direction = np.eye(voxels.ndim)
    direction[:3, :3] = closest_rotation(affine[:, :3] / spacing)
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing([*spacing.tolist(), *[1.0] * (voxels.ndim - 3)])
    image.SetOrigin([*affine[:, 3].tolist(), *[0.0] * (voxels.ndim - 3)])
    return image


def closest_rotation(axes: Float[ndarray, "3 3"]) -> Float[ndarray, "3 3"]:
    """The axes at right angles, as columns, that differ least from others in the sum of squares (Procrustes).

    Args:
        axes: columns of length 1, which span the space.
    """
    left, _, right = np.linalg.svd(axes)
    return np.asarray(left @ right)
