"""From a download to an nnU-Net data set: every case checked, everything written at once or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from nnunet_topomae.datasets.reading import read_image
from nnunet_topomae.datasets.splits import (
    EVERY_CASE,
    FOLDS,
    PUBLISHED_FILE,
    PublishedSplit,
    describe_patients,
    describe_published,
    group_by_patient,
    make_splits,
)
from nnunet_topomae.files import hash_file, read_json, write_json
from nnunet_topomae.nnunet.names import DATASET_FILE, PATIENTS_FILE, SPLITS_FILE

RECORD = "conversion.json"
ENDING = ".nii.gz"
# A label grid may lie this far off its image's, in voxels: rounding in the header, not another grid.
LARGEST_SHIFT = 0.5
SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RawCase:
    """Files of one case in a download.

    Attributes:
        name: identifier of the case in the data set.
        images: one file per channel, or a single 4D file with all of them.
        label: the label map, None for an image without one.
        training: belongs to imagesTr and labelsTr, else to imagesTs and labelsTs.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    training: bool = True


@dataclass(frozen=True)
class Download:
    """What a converter found, and how it becomes a data set.

    Attributes:
        root: folder of the download; the record names files relative to it.
        channel_names: as in dataset.json.
        labels: labels of the data set by name, background included.
        label_values: every label value that may occur in the download, with the value that it becomes.
        cases: training and test cases.
        reference: where the data come from.
        patient: regular expression with one group that finds the patient in a case's name.
        orientation: axes to which images are flipped and permuted, None to leave them as they are.
    """

    root: Path
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]
    label_values: Mapping[int, int]
    cases: tuple[RawCase, ...]
    reference: str
    patient: str = EVERY_CASE
    orientation: str | None = "LPS"


@dataclass(frozen=True)
class Target:
    """Where the data set goes.

    Attributes:
        folder: `nnUNet_raw/DatasetXXX_NAME`.
        published: split to write as fold 5.
        image_geometry: give label maps the geometry of their image, whatever their own header says.
        fix_direction: read NIfTI files whose axes are not at right angles with the closest axes that are.
    """

    folder: Path
    published: PublishedSplit | None = None
    image_geometry: bool = False
    fix_direction: bool = False


def convert(download: Download, target: Target, processes: int = 1) -> Iterator[str]:
    """Convert a download.

    Nothing appears under the target's name before the last case is written and checked. A download that is already
    converted, file by file, yields nothing and changes nothing.

    Args:
        download: what a converter found.
        target: where the data set goes.
        processes: number of cases that are converted at the same time.

    Yields:
        The name of each case that is done.

    Raises:
        FileExistsError: the target exists and was made from something else.
        ValueError: a case is not what it must be; names the file.
    """
    if not [case for case in download.cases if case.training]:
        raise ValueError(f"no training case found in {download.root}")
    record = _record(download, target)
    if target.folder.exists():
        _check_same(target.folder, record)
        return
    splits = _splits(download, target.published)
    target.folder.parent.mkdir(parents=True, exist_ok=True)
    # nnU-Net looks for names that begin with "Dataset", so that it does not see this one.
    folder = Path(tempfile.mkdtemp(prefix=".converting_", dir=target.folder.parent))
    try:
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir()
        yield from _each(partial(convert_case, download, replace(target, folder=folder)), download.cases, processes)
        write_json(folder / DATASET_FILE, dataset_json(download))
        for file, content in splits.items():
            write_json(folder / file, content)
        write_json(folder / RECORD, record)
        folder.chmod(0o755)
        folder.replace(target.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _each(work: Callable[[RawCase], None], cases: Sequence[RawCase], processes: int) -> Iterator[str]:
    """Work on all cases; names of those that are done."""
    if processes == 1:
        for case in cases:
            work(case)
            yield case.name
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, case): case.name for case in cases}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def convert_case(download: Download, target: Target, case: RawCase) -> None:
    """Check one case and write its images and its label map.

    Args:
        download: labels, channels and orientation.
        target: data set to write into, and how to read headers.
        case: the case.

    Raises:
        ValueError: unreadable, wrong number of channels, geometry that does not match, or unknown label values.
    """
    suffix = "Tr" if case.training else "Ts"
    images = target.folder / f"images{suffix}"
    images.mkdir(exist_ok=True)
    channels = _read_channels(case, len(download.channel_names), target.fix_direction)
    for index, channel in enumerate(channels):
        if index and not _same_grid(channel, channels[0]):
            raise ValueError(f"channel {index} of case {case.name} is not on the grid of channel 0: {case.images}")
        path = images / f"{case.name}_{index:04d}{ENDING}"
        oriented = _orient(channel, download.orientation)
        as_it_is = len(case.images) == len(channels) and not target.fix_direction
        if as_it_is and _is_as_wanted(case.images[index], channel, oriented):
            shutil.copyfile(case.images[index], path)
        else:
            SimpleITK.WriteImage(oriented, path, useCompression=True)
    if case.label is not None:
        labels = target.folder / f"labels{suffix}"
        labels.mkdir(exist_ok=True)
        label = _read_label(case.label, channels[0], download.label_values, target)
        SimpleITK.WriteImage(_orient(label, download.orientation), labels / f"{case.name}{ENDING}", useCompression=True)


def dataset_json(download: Download) -> dict[str, Any]:
    """dataset.json of the data set."""
    return {
        "channel_names": {str(index): name for index, name in enumerate(download.channel_names)},
        "labels": dict(download.labels),
        "numTraining": sum(case.training for case in download.cases),
        "file_ending": ENDING,
        "reference": download.reference,
        "converted_by": "nnunet-topomae convert",
    }


def _read_channels(case: RawCase, count: int, fix_direction: bool) -> list[SimpleITK.Image]:
    images = [read_image(path, fix_direction) for path in case.images]
    if len(images) == 1 and images[0].GetDimension() == 4:
        size = images[0].GetSize()
        images = [SimpleITK.Extract(images[0], (*size[:3], 0), (0, 0, 0, index)) for index in range(size[3])]
    if any(image.GetDimension() != 3 for image in images):
        raise ValueError(f"{case.images[0]} has {images[0].GetDimension()} dimensions, not 3")
    if len(images) != count:
        raise ValueError(f"{case.images[0]} has {len(images)} channels, the data set has {count}")
    return images


def _read_label(path: Path, image: SimpleITK.Image, allowed: Mapping[int, int], target: Target) -> SimpleITK.Image:
    read = read_image(path, target.fix_direction)
    if read.GetSize() != image.GetSize():
        raise ValueError(f"{path} has {read.GetSize()} voxels, its image {image.GetSize()} (x, y, z)")
    if not target.image_geometry and not _same_grid(read, image):
        raise ValueError(
            f"{path} does not lie on the grid of its image: spacing {read.GetSpacing()} and origin {read.GetOrigin()}, "
            f"the image's {image.GetSpacing()} and {image.GetOrigin()}, directions {read.GetDirection()} and "
            f"{image.GetDirection()}. If the voxels do belong together, convert with --image-geometry."
        )
    values = SimpleITK.GetArrayFromImage(read)
    unknown = sorted({float(value) for value in np.unique(values)} - {float(value) for value in allowed})
    if unknown:
        raise ValueError(f"{path} has label values {unknown[:5]}; allowed are {sorted(allowed)}")
    table = np.zeros(max(allowed) + 1, dtype=np.uint8)
    for value, becomes in allowed.items():
        table[value] = becomes
    label = SimpleITK.GetImageFromArray(table[values.astype(np.int64)])
    label.CopyInformation(image)
    return label


def _same_grid(one: SimpleITK.Image, other: SimpleITK.Image) -> bool:
    """Same size and spacing, and no corner of the volumes further apart than the tolerance."""
    if one.GetSize() != other.GetSize():
        return False
    spacing = np.asarray(other.GetSpacing())
    if not np.allclose(one.GetSpacing(), spacing, rtol=SPACING_TOLERANCE):
        return False
    corners = [[float(index) for index in corner] for corner in product(*((0, size - 1) for size in one.GetSize()))]
    shifts = [
        np.subtract(
            other.TransformPhysicalPointToContinuousIndex(one.TransformContinuousIndexToPhysicalPoint(corner)), corner
        )
        for corner in corners
    ]
    return bool(np.abs(shifts).max() <= LARGEST_SHIFT)


def _orient(image: SimpleITK.Image, orientation: str | None) -> SimpleITK.Image:
    return image if orientation is None else SimpleITK.DICOMOrient(image, orientation)


def _is_as_wanted(path: Path, read: SimpleITK.Image, oriented: SimpleITK.Image) -> bool:
    return path.name.endswith(ENDING) and read.GetDirection() == oriented.GetDirection()


def _splits(download: Download, published: PublishedSplit | None) -> dict[str, Any]:
    """Files of patients and folds; none of folds where nnU-Net makes the same ones, or where patients are too few."""
    names = [case.name for case in download.cases if case.training]
    patients = describe_patients(names, download.patient)
    files: dict[str, Any] = {PATIENTS_FILE: patients} if patients else {}
    if published is None and (download.patient == EVERY_CASE or len(group_by_patient(names, download.patient)) < FOLDS):
        return files
    files[SPLITS_FILE] = make_splits(names, download.patient, published)
    if published is not None:
        files[PUBLISHED_FILE] = describe_published(published, names)
    return files


def _record(download: Download, target: Target) -> dict[str, Any]:
    """What the data set is made from: enough to tell whether it would be made the same again."""
    return {
        "files": {str(path.relative_to(download.root)): hash_file(path) for path in _files(download.cases)},
        "dataset": dataset_json(download),
        "label_values": {str(value): becomes for value, becomes in download.label_values.items()},
        "orientation": download.orientation,
        "image_geometry": target.image_geometry,
        **({"fix_direction": True} if target.fix_direction else {}),
    }


def _files(cases: Sequence[RawCase]) -> list[Path]:
    return [path for case in cases for path in (*case.images, *([case.label] if case.label else []))]


def _check_same(folder: Path, record: Mapping[str, Any]) -> None:
    file = folder / RECORD
    before = read_json(file) if file.is_file() else {}
    if before == json.loads(json.dumps(record)):
        return
    files, new = before.get("files", {}), record["files"]
    changed = sorted(name for name in files.keys() | new.keys() if files.get(name) != new.get(name))
    reason = f"{len(changed)} files differ, for example {changed[0]}" if changed else "other settings"
    raise FileExistsError(
        f"{folder} exists and was not made from this download ({reason}). Choose another id with -d, or delete it."
    )
