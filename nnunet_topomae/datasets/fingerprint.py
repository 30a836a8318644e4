"""Why nnU-Net cannot compute the fingerprint of a data set, or computes one that nobody can plan with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from numpy import ndarray

from nnunet_topomae.nnunet.plan_checks import check_fingerprint


@contextmanager
def failures_name_the_image(
    raw: Path, fingerprint: Path, dataset_json: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[None]:
    """In this block, nnU-Net computes a fingerprint. Where that fails, the images are read again to find the reason.

    Args:
        raw: folder of the raw data set.
        fingerprint: the file that is written.
        dataset_json: content of its `dataset.json`.
        say: told what failed before the images are read, which takes time.

    Raises:
        ValueError: names the file and the cure, if an image or a label map is the reason; else the error of the block.
    """
    try:
        yield
        check_fingerprint(fingerprint)
    except Exception as error:  # asserts, index errors and others from nnU-Net's processes
        say(f"No fingerprint: {type(error).__name__}: {error}. Reading all images of {raw} to find the reason ...")
        reason = unusable_file(raw, dataset_json)
        if reason is None:
            raise
        written = f", delete {fingerprint}" if fingerprint.is_file() else ""
        raise ValueError(f"{reason} Correct that{written}, and plan again.") from error


def unusable_file(raw: Path, dataset_json: Mapping[str, Any]) -> str | None:
    """The first file of the training cases that nobody can plan with, and why; None if there is no such file.

    Args:
        raw: folder of the raw data set.
        dataset_json: content of its `dataset.json`.
    """
    cases: dict[str, Any] = get_filenames_of_train_images_and_targets(str(raw), dict(dataset_json))
    if not cases:
        return f"{raw / 'imagesTr'} has no image whose name ends with {dataset_json['file_ending']}."
    reader = determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False)()
    labelled = False
    for files in cases.values():
        shape: tuple[int, ...] = ()
        for file in (*files["images"], files["label"]):
            is_label = file == files["label"]
            try:
                values: ndarray = (reader.read_seg(file) if is_label else reader.read_images((file,)))[0]
            except Exception as error:  # every reader raises its own
                reason = str(error).strip().splitlines() or [type(error).__name__]
                return f"{file} cannot be read: {reason[-1]}."
            if not np.isfinite(values).all():
                return f"{file} has NaN or infinite voxels."
            if values.shape[1:] != (shape or values.shape[1:]):
                return f"{file} has {values.shape[1:]} voxels along its axes, but an image of its case has {shape}."
            shape = values.shape[1:]
            labelled = labelled or (is_label and bool((values > 0).any()))
    return None if labelled else f"no label map in {raw / 'labelsTr'} has a voxel above 0: nothing is annotated."
