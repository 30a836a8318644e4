"""Failures that a user can do something about: one line instead of a traceback."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from nnunet_topomae.nnunet.names import FINGERPRINT_FILE

RESULTS_VARIABLE = "nnUNet_results"
DEBUG_VARIABLE = "NNUNET_TOPOMAE_DEBUG"
_OURS = "nnunet_topomae."


def is_expected(error: BaseException) -> bool:
    """Whether this package raised the error itself, with a message that says what to do.

    Args:
        error: one that nobody has caught.
    """
    if not isinstance(error, ValueError | TypeError | OSError | RuntimeError) or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith(_OURS)


def show_expected_failures_in_one_line() -> None:
    """End this process with one line for expected failures; ``NNUNET_TOPOMAE_DEBUG=1`` shows the traceback.

    For nnU-Net's commands, which show every error with a traceback. An excepthook of somebody else stays.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


@contextmanager
def results_can_be_written() -> Iterator[None]:
    """In this block, nnU-Net makes the folder of a training, or writes to it.

    Raises:
        OSError: it cannot be made or written to; says which, and the cure.
    """
    try:
        yield
    except OSError as error:
        if is_expected(error):
            raise
        folder = os.environ.get(RESULTS_VARIABLE)
        raise OSError(
            f"the results of this training cannot be written: {error}. Correct the permissions below {folder}, make "
            "room, or set nnUNet_results to another folder."
        ) from error


@contextmanager
def preprocessed_files_are_there() -> Iterator[None]:
    """In this block, nnU-Net copies files of the preprocessed data set.

    Raises:
        FileNotFoundError: one is missing; says which, and the cure.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None or Path(error.filename).name != FINGERPRINT_FILE:
            raise
        raise FileNotFoundError(
            f"{error.filename} is missing, and nnU-Net keeps a copy with each training. Make it again: "
            "nnUNetv2_extract_fingerprint -d ID"
        ) from error


def _show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if is_expected(error) and os.environ.get(DEBUG_VARIABLE, "0") in ("", "0"):
        sys.stderr.write(f"error: {error}\n({DEBUG_VARIABLE}=1 shows where it was raised.)\n")
    else:
        sys.__excepthook__(kind, error, where)
