"""A folder of DICOM slices as one image, or the reason why it is none."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
from jaxtyping import Float
from numpy import ndarray

# Rounding of positions in DICOM headers, as a share of the distance between slices, and of direction cosines.
UNEVEN = 0.1
TURNED = 1e-3


class Slice(NamedTuple):
    """What a slice's header says.

    Attributes:
        path: the file.
        size: voxels (x, y).
        spacing: mm (x, y).
        position: of the first voxel, LPS in mm.
        axes: direction of rows, columns and the normal, as columns of a matrix.
        components: values per voxel; 3 for RGB.
    """

    path: Path
    size: tuple[int, int]
    spacing: tuple[float, float]
    position: Float[ndarray, "3"]
    axes: Float[ndarray, "3 3"]
    components: int


def find_series(folder: Path) -> list[Path]:
    """Slices of the only DICOM series of a folder, in order along the normal of the slices.

    Raises:
        ValueError: no series, or several; colour images; slices of different grids or directions, two at one place,
            one missing, or a tilted gantry. Names the folder, the slices and the cure.
    """
    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        what = f"{len(series)} DICOM series ({', '.join(series[:3])})" if series else "no DICOM series"
        raise ValueError(f"{folder} holds {what}; each sub-folder must hold exactly one. Sort or remove it.")
    files = [Path(name) for name in SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])]
    if len(files) == 1:  # a volume in one file, whose geometry the reader checks
        _check_grey([_read_header(files[0])], folder)
        return files
    slices = [_read_header(file) for file in files]
    _check_grey(slices, folder)
    _check_alike(slices, folder)
    normal = slices[0].axes[:, 2]
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    _check_steps(ordered, folder)
    return [one.path for one in ordered]


def read_series(files: list[Path]) -> SimpleITK.Image:
    """The image of a series.

    Args:
        files: from :func:`find_series`.
    """
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    image: SimpleITK.Image = reader.Execute()
    return image


def _read_header(file: Path) -> Slice:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    size, spacing = reader.GetSize(), reader.GetSpacing()
    return Slice(
        file,
        (size[0], size[1]),
        (spacing[0], spacing[1]),
        np.array(reader.GetOrigin()[:3]),
        np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3],
        reader.GetNumberOfComponents(),
    )


def _check_grey(slices: list[Slice], folder: Path) -> None:
    if colour := next((one for one in slices if one.components != 1), None):
        raise ValueError(
            f"{folder}: {colour.path.name} is a colour image ({colour.components} values per voxel), such as a "
            "screenshot or a fused image, which has no intensities. Remove the series."
        )


def _check_alike(slices: list[Slice], folder: Path) -> None:
    first = slices[0]
    for other in slices[1:]:
        same_grid = other.size == first.size and np.allclose(other.spacing, first.spacing, rtol=1e-3)
        if not same_grid:
            what = "another size or voxel spacing"
        elif not np.allclose(other.axes, first.axes, atol=TURNED):
            what = "another direction"
        else:
            continue
        raise ValueError(
            f"{folder}: {other.path.name} has {what} than {first.path.name}, although both belong to one series. "
            "Move scouts and other views to folders of their own, or remove them."
        )


def _check_steps(slices: list[Slice], folder: Path) -> None:
    """Refuse slices that are not evenly spaced along their normal.

    Args:
        slices: in the order of their places.
        folder: of the slices, for errors.
    """
    normal = slices[0].axes[:, 2]
    steps = np.diff([one.position for one in slices], axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    if (twice := int(np.argmin(along))) >= 0 and along[twice] <= UNEVEN * max(usual, 1e-6):
        one, other = slices[twice].path.name, slices[twice + 1].path.name
        raise ValueError(
            f"{folder}: {one} and {other} lie at the same place. Several phases, echoes or reconstructions need a "
            "folder each; remove copies."
        )
    for index, step in enumerate(along):
        if abs(step - usual) > UNEVEN * usual:
            one, other = slices[index].path.name, slices[index + 1].path.name
            raise ValueError(
                f"{folder}: {one} and {other} are {step:.2f} mm apart, the other slices {usual:.2f} mm. Slices are "
                "missing or unevenly spaced. Complete the series, or resample it to one distance."
            )
    tilt = np.degrees(np.arctan2(np.linalg.norm(steps - np.outer(along, normal), axis=1), along)).max()
    if np.tan(np.radians(tilt)) * usual > UNEVEN * usual:
        raise ValueError(
            f"{folder}: the slices are shifted against each other, as with a gantry that is tilted by {tilt:.1f} "
            "degrees, so they do not form a box of voxels. Convert the series to NIfTI with a program that corrects "
            "the tilt, such as dcm2niix, and use the corrected image."
        )
