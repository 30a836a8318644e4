"""Preprocessed images without what nnU-Net keeps next to them: no labels, no properties."""

import sys
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunet_topomae.data.cases import image_file


def open_image(folder: Path, case: str) -> Any:
    """The image (C, D, H, W) of a case, read from disk only where it is indexed.

    nnU-Net's own classes also open the label map and the properties, which are a pickle: reading that runs whatever it
    holds.

    Args:
        folder: preprocessed images of one configuration.
        case: its name, without an ending.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: the file is damaged, or not an image of four axes; names the file and the cure.
    """
    file = image_file(folder, case)
    try:
        image = _open(file)
    except Exception as error:  # blosc2 and numpy raise many kinds
        raise ValueError(f"{file} cannot be read ({_first_line(error)}). {_CURE}") from error
    if len(image.shape) != 4:
        raise ValueError(f"{file} has the shape {tuple(image.shape)}; an image is (C, D, H, W). {_CURE}")
    return image


def not_finite(case: str, where: str = "") -> str:
    """The error of an image with NaN or infinity.

    Args:
        case: its name.
        where: in the image, with a space in front; nothing if that is not known.
    """
    return (
        f"case {case} holds NaN or infinite voxels{where}. Correct its image in nnUNet_raw and preprocess again with "
        "nnUNetv2_preprocess."
    )


_CURE = "Delete it and preprocess again with nnUNetv2_preprocess."


def _open(file: Path) -> Any:
    if file.suffix == ".npz":
        return np.load(file, allow_pickle=False)["data"]
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    # As nnU-Net opens it; Windows cannot map files into memory.
    mapped = {} if sys.platform == "win32" else {"mmap_mode": "r"}
    return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **mapped)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
