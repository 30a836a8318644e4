"""What decides a job's result, by content: files, code and versions. Quick where nothing has changed."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnunet_topomae
from nnunet_topomae.files import hash_file, hash_json, read_json, write_json
from nnunet_topomae.nnunet.names import DATASET_FILE, PATIENTS_FILE, SPLITS_FILE

CACHE = "hashes.json"
# nnU-Net's folders of held-out cases.
HELD_OUT = ("imagesTs", "labelsTs")
# Code that each stage runs, as modules and folders of the package. Reports and the benchmark itself change no result.
_NETWORKS = (
    *("architectures", "config", "datasets/splits.py", "geometry.py", "masking.py", "nnunet", "plans"),
    *("training/failures.py", "types.py", "vectors.py"),
)
# No supervised training computes a loss of pre-training; some ask which of its terms have a weight.
_TRAINING = (*_NETWORKS, "data", "losses/weights.py", "trainers", "training")
CODE: Mapping[str, Sequence[str]] = {
    "plan": _NETWORKS,
    # In the place of `plan` where a preset plans: by our command, not by nnU-Net's.
    "preset": (*_NETWORKS, "commands/plan.py", "datasets/fingerprint.py", "datasets/intensities.py"),
    "pretrain": (*_TRAINING, "datasets/unlabeled.py", "losses", "topology"),
    "train": _TRAINING,
    "predict": _TRAINING,
    "score": ("evaluation/metrics.py", "evaluation/surface.py", "nnunet/scoring.py"),
    # What a score needs in addition to count Betti numbers.
    "betti": ("geometry.py", "topology", "types.py"),
}


class ContentHashes:
    """SHA-256 of files. A file is read again only if its size, time or inode has changed.

    Args:
        folder: keeps `hashes.json` between runs.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / CACHE
        self.known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):  # it can be made again
            read = read_json(self.file)
            self.known = read if isinstance(read, dict) else {}
        self.changed = False

    def of(self, path: Path) -> str:
        """Hash of a file's content."""
        found = path.stat()
        state = [found.st_size, found.st_mtime_ns, found.st_ino]
        name = str(path.absolute())
        known = self.known.get(name)
        if isinstance(known, list) and known[:3] == state:
            return str(known[3])
        self.known[name] = [*state, hash_file(path)]
        self.changed = True
        return str(self.known[name][3])

    def of_folder(self, folder: Path) -> dict[str, str]:
        """Hash of every file of a folder, by the folder's and its own name."""
        return {f"{folder.name}/{path.name}": self.of(path) for path in sorted(folder.glob("*")) if path.is_file()}

    def save(self) -> None:
        """Keep what was computed; a folder that cannot be written to costs time only."""
        if self.changed:
            with suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.file, self.known)


def digest(value: Any) -> str:
    """Short hash of a JSON value, for the name of a folder."""
    return hash_json(value)[:16]


@cache
def code_state(stage: str, by: str) -> str:
    """What stands for the code of a stage.

    Args:
        stage: of a job, or another key of :data:`CODE`.
        by: `source`, the text of its modules, or `version`, the version of the package.
    """
    if by == "version":
        return nnunet_topomae.__version__
    found = hashlib.sha256()
    for name, path in sorted(_modules(CODE[stage])):
        found.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _modules(parts: Iterable[str]) -> list[tuple[str, Path]]:
    """Files of modules and folders, by their names in the package."""
    package = Path(nnunet_topomae.__file__).parent
    files = []
    for part in parts:
        # In a checkout, two of the folders stand next to the package.
        place = next(path for path in (package / part, package.parent / part) if path.exists())
        paths = [place] if place.is_file() else [*place.rglob("*.py"), *place.rglob("*.json")]
        files += [(f"{part}/{path.relative_to(place).as_posix()}", path) for path in paths]
    return files


@cache
def library_versions(*names: str) -> dict[str, str]:
    """Versions of packages, without what names a build, such as `+cu128`."""
    return {name: version(name).partition("+")[0] for name in names}


def held_out_fingerprint(folder: Path, hashes: ContentHashes) -> str:
    """Fingerprint of held-out images or labels.

    Args:
        folder: one of :data:`HELD_OUT` of the raw data set.
        hashes: of files.

    Raises:
        FileNotFoundError: there are none.
    """
    listing = hashes.of_folder(folder)
    if not listing:
        raise FileNotFoundError(f"{folder} holds no files, but held_out = true asks for {' and '.join(HELD_OUT)}")
    return digest(listing)


def data_fingerprint(folder: Path, hashes: ContentHashes) -> str:
    """Hash of dataset.json, the splits, the patients, and the contents of all training images and label maps.

    Args:
        folder: the data set in nnUNet_raw.
        hashes: of files.
    """
    listing = {
        name: value for part in ("imagesTr", "labelsTr") for name, value in hashes.of_folder(folder / part).items()
    }
    small = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in (DATASET_FILE, SPLITS_FILE, PATIENTS_FILE)
        if (folder / name).is_file()
    }
    return digest([listing, small])


def hash_named(key: str, name: str, hashes: ContentHashes) -> str:
    """Hash of a file that a setting names.

    Args:
        key: of the setting, for the error.
        name: its value.
        hashes: of files.

    Raises:
        FileNotFoundError: there is none.
    """
    file = Path(name)
    if not file.is_file():
        raise FileNotFoundError(f"{key} = {name!r} is not a file")
    return hashes.of(file)
