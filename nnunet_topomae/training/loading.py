"""Reading checkpoints: nothing in the file is run, and a damaged file is one clear line."""

import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch

from nnunet_topomae.files import hash_file

TRUST_VARIABLE = "NNUNET_TOPOMAE_TRUSTED_CHECKPOINT"

# What nnU-Net's own trainers put into a checkpoint besides tensors and plain values: numbers and arrays of their log.
_NUMPY_TYPES: list[Any] = [
    np.ndarray,
    np.dtype,
    np.float64(0).__reduce__()[0],
    np.zeros(0).__reduce__()[0],
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
]

_REFUSED = re.compile(r"(?:GLOBAL|class) ([\w.]+)")
_CURE = "Copy it again from where it came, or train again: `--c` continues from the newest checkpoint that is whole."


class DamagedCheckpointError(ValueError):
    """A checkpoint file that is empty, cut off, or no checkpoint."""


class UntrustedCheckpointError(ValueError):
    """A checkpoint file that would run code."""


def load_checkpoint_file(file: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint, on the CPU. Only tensors, plain values and numpy's numbers are read.

    A file with anything else is a pickle that runs code while it is read. It is refused, unless the environment
    variable ``NNUNET_TOPOMAE_TRUSTED_CHECKPOINT`` names its SHA-256: the trust is in this one file.

    Args:
        file: the checkpoint.
        mmap: leave the tensors on the disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: it is empty, cut off, or no checkpoint.
        UntrustedCheckpointError: it would run code.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    if reason := _damage(file):
        raise DamagedCheckpointError(f"{file} {reason}. {_CURE}")
    try:
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        checkpoint = _load_trusted(file, refused[1] if refused else "objects that are no data")
    except Exception as error:
        raise DamagedCheckpointError(f"{file} is no checkpoint ({type(error).__name__}: {error}). {_CURE}") from error
    if not isinstance(checkpoint, dict):
        raise DamagedCheckpointError(f"{file} holds a {type(checkpoint).__name__}, no checkpoint. {_CURE}")
    return checkpoint


def _damage(file: Path) -> str:
    """What is wrong with the file, which is a ZIP archive with checksums; empty if nothing is."""
    if file.stat().st_size == 0:
        return "is empty"
    if not is_zipfile(file):
        return "is cut off, or no checkpoint"
    try:
        with ZipFile(file) as archive:
            return "is damaged" if archive.testzip() is not None else ""
    except (BadZipFile, EOFError, NotImplementedError, ValueError):
        return "is damaged"


def _load_trusted(file: Path, refused: str) -> Any:
    """Run what the file wants to run, if the user has said that this file may.

    Raises:
        UntrustedCheckpointError: the user has not.
    """
    digest = hash_file(file)
    if os.environ.get(TRUST_VARIABLE) == digest:
        return torch.load(file, map_location="cpu", weights_only=False)
    raise UntrustedCheckpointError(
        f"{file} is refused: reading it runs code ({refused}), which checkpoints of this package never "
        f"need. If you trust whoever made this file as much as a program that you run: {TRUST_VARIABLE}={digest}"
    )
