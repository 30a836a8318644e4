"""Files that are whole or not there, JSON, and hashes. Standard library only."""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":
    import fcntl

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when the block has ended without an error.

    Readers see the old file or the new one, never half of one, even after a power cut. Several processes may write the
    same file at once; the last one wins. The half-written file is locked, so that one without a lock is known to be
    left over from a process that was killed.

    Args:
        path: the file; its folder must exist.

    Yields:
        A binary file, open for writing, in the same folder.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; names the file, which stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        try:
            with temporary.open("xb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # of another file, in the block
            raise
        reason = error.strerror or error
        raise OSError(f"cannot write {path}: {reason}. Its folder must exist, be writable and have room.") from error


def _lock(file: BinaryIO) -> None:
    """Hold a lock until the file is closed or the process ends, where the file system has locks."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Args:
        path: a file of this name is replaced; its folder must exist.
        text: the whole content.
    """
    with write_whole(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write a JSON value, whole or not at all.

    Args:
        path: a file of this name is replaced; its folder must exist.
        value: made of dicts, lists, strings, numbers, booleans and None.
        indent: spaces per level.

    Raises:
        TypeError: the value is no JSON value.
    """
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; empty where there is no such file.

    Raises:
        ValueError: it is not JSON, or no table; names the file.
    """
    if not path.is_file():
        return {}
    read = read_json(path)
    if not isinstance(read, dict):
        raise ValueError(f"{path} must be a table, but holds {str(read)[:40]}. Restore or delete it.")
    return read


def strict_json(value: Any) -> Any:
    """Copy of a JSON value with NaN and infinities as null, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, as 64 hexadecimal digits; independent of key order and white space."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
