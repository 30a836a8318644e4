"""Folders of DICOM slices, right and wrong, written by SimpleITK."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_topomae.datasets.dicom import find_series, read_series

SAGITTAL = ("0", "1", "0", "0", "0", "-1")
SIZE = (6, 7)  # rows, columns


def write_slice(
    folder: Path,
    number: int,
    position: Sequence[float],
    series: str = "1.2.3.4",
    orientation: Sequence[str] = ("1", "0", "0", "0", "1", "0"),
    size: tuple[int, int] = SIZE,
    colour: bool = False,
) -> Path:
    """Slice NUMBER, whose voxels all have its number."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.full((1, *size, 3) if colour else (1, *size), number, np.uint8 if colour else np.int16)
    image = sitk.GetImageFromArray(array, isVector=colour)
    image.SetSpacing((0.5, 0.75, 2.0))
    tags = {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        "0008|0018": f"{series}.{number}",
        "0008|0060": "CT",
        "0020|000d": "1.2.3",
        "0020|000e": series,
        "0020|0013": str(number),
        "0020|0032": "\\".join(f"{value:.4f}" for value in position),
        "0020|0037": "\\".join(orientation),
        "0028|0030": "0.75\\0.5",
        "0018|0050": "2.0",
    }
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    path = folder / f"slice{number:02d}.dcm"
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


def write_series(folder: Path, skip: Sequence[int] = (), tilt: float = 0.0) -> Path:
    """Six axial slices, 2 mm apart; with a tilt, each is shifted along the columns."""
    for number in (index for index in range(6) if index not in skip):
        write_slice(folder, number, (-10.0, 5.0 + tilt * number, 30.0 + 2.0 * number))
    return folder


def test_slices_come_in_the_order_of_their_places(tmp_path: Path) -> None:
    for number in (3, 0, 2, 1):
        write_slice(tmp_path, number, (-10.0, 5.0, 30.0 - 2.0 * number))  # numbered from head to feet
    files = find_series(tmp_path)
    assert [file.stem for file in files] == ["slice03", "slice02", "slice01", "slice00"]
    image = read_series(files)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[:, 0, 0], [3, 2, 1, 0])
    np.testing.assert_allclose(image.GetSpacing(), (0.5, 0.75, 2.0))
    np.testing.assert_allclose(image.GetOrigin(), (-10.0, 5.0, 24.0))


def test_oblique_slices_are_no_tilt(tmp_path: Path) -> None:
    """The stack follows the normal of its slices, which is no axis of the body."""
    turned = ("1", "0", "0", "0", "0.8", "0.6")
    for number in range(4):
        write_slice(tmp_path, number, (0.0, -0.6 * 2 * number, 0.8 * 2 * number), orientation=turned)
    image = read_series(find_series(tmp_path))
    np.testing.assert_allclose(image.GetSpacing()[2], 2.0, atol=1e-3)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3))[:, 2], (0, -0.6, 0.8), atol=1e-6)


def test_a_missing_slice(tmp_path: Path) -> None:
    write_series(tmp_path, skip=(3,))
    with pytest.raises(ValueError, match=r"slice02.dcm and slice04.dcm are 4.00 mm apart, the other slices 2.00 mm"):
        find_series(tmp_path)


def test_a_tilted_gantry(tmp_path: Path) -> None:
    write_series(tmp_path / "straight", tilt=0.01)  # rounding
    assert len(find_series(tmp_path / "straight")) == 6
    write_series(tmp_path / "tilted", tilt=2.0 * np.tan(np.radians(15)))
    with pytest.raises(ValueError, match=r"tilted by 15.0 degrees.*dcm2niix"):
        find_series(tmp_path / "tilted")


def test_two_phases_in_one_series(tmp_path: Path) -> None:
    write_series(tmp_path)
    for number in range(6):
        write_slice(tmp_path, 10 + number, (-10.0, 5.0, 30.0 + 2.0 * number))
    with pytest.raises(ValueError, match=r"slice\d\d.dcm and slice\d\d.dcm lie at the same place"):
        find_series(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"orientation": SAGITTAL}, "another direction"),
        ({"size": (6, 9)}, "another size"),
        ({"series": "1.2.3.5"}, "2 DICOM series"),
        ({"colour": True}, "colour image"),
    ],
)
def test_something_else_among_the_slices(tmp_path: Path, other: dict[str, object], message: str) -> None:
    write_series(tmp_path)
    write_slice(tmp_path, 20, (-10.0, 5.0, 60.0), **other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        find_series(tmp_path)


def test_colour_images(tmp_path: Path) -> None:
    for number in range(3):
        write_slice(tmp_path, number, (0.0, 0.0, 2.0 * number), colour=True)
    with pytest.raises(ValueError, match=r"slice00.dcm is a colour image \(3 values per voxel\)"):
        find_series(tmp_path)
