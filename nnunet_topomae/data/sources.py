"""Hashes of the images in nnUNet_raw: they tell copies of a case, whatever plan they were preprocessed with."""

import os
from collections.abc import Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from nnunet_topomae.files import hash_file, hash_json, read_json, write_json
from nnunet_topomae.nnunet.names import DATASET_FILE

CACHE_FILE = "source_hashes.json"


def hash_sources(dataset: Path, cases: Iterable[str]) -> dict[str, str]:
    """Hash of the image files that every case was preprocessed from, by case; empty where they are not on this machine.

    A copy of a case under another name, or in another data set, has the same hash. Files are hashed once, as long as
    their sizes and times stay.

    Args:
        dataset: the preprocessed data set; the raw one of this name in nnUNet_raw holds the files.
        cases: their names; those without files in nnUNet_raw are left out.
    """
    raw = Path(os.environ.get("nnUNet_raw", "")) / dataset.name  # noqa: SIM112
    if not os.environ.get("nnUNet_raw") or not (raw / DATASET_FILE).is_file():  # noqa: SIM112
        return {}
    description = read_json(raw / DATASET_FILE)
    known = _read_cache(dataset / CACHE_FILE)
    found: dict[str, dict[str, Any]] = {}
    for case in sorted(set(cases)):
        images = _images(raw, description, case)
        if images and all(image.is_file() for image in images):
            stamp = [[str(image), image.stat().st_size, image.stat().st_mtime_ns] for image in images]
            entry = known.get(case)
            if not isinstance(entry, dict) or entry.get("files") != stamp:
                entry = {"files": stamp, "hash": hash_json([hash_file(image) for image in images])}
            found[case] = entry
    if any(known.get(case) != entry for case, entry in found.items()):
        with suppress(OSError):  # without the cache, they are hashed again next time
            write_json(dataset / CACHE_FILE, {**known, **found})
    return {case: entry["hash"] for case, entry in found.items()}


def _images(raw: Path, description: dict[str, Any], case: str) -> list[Path]:
    """Where nnU-Net reads the images of a case. Its own listing starts a pool of processes."""
    if listed := description.get("dataset"):
        return [raw / os.path.expandvars(image) for image in listed.get(case, {}).get("images", ())]
    pattern = f"{escape(case)}_[0-9][0-9][0-9][0-9]{escape(str(description.get('file_ending')))}"
    return sorted((raw / "imagesTr").glob(pattern))


def _read_cache(file: Path) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        read = read_json(file)
        return read if isinstance(read, dict) else {}
    return {}
