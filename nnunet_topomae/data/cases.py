"""Which cases a fold may read, and the manifest that proves what a training has read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_topomae.data.patients import Patients
from nnunet_topomae.files import hash_file, hash_json, read_json, write_json
from nnunet_topomae.nnunet.dataset import dataset_id
from nnunet_topomae.nnunet.names import INTENSITY_SOURCE

MIN_CASES_FOR_FOLDS = 5
# Behind a name in `sources` of images of another data set: this hash is of the raw files, the other of the image.
RAW_FILES = ", raw"
_IMAGE_SUFFIXES = (".b2nd", ".npy", ".npz")


@dataclass(frozen=True)
class ImagesRead:
    """SHA-256 of the preprocessed images that a training has read, by case.

    Attributes:
        cases: training cases of the fold.
        unlabeled: unlabelled images.
        sources: of both, the files that they were preprocessed from, where these are known (data/sources.py).
        unlisted: checkpoints that the training started from and that do not list their images, by file name.
    """

    cases: dict[str, str] = field(default_factory=dict)
    unlabeled: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        """A case that has this content, by hash; of whatever kind."""
        return {digest: case for part in (self.cases, self.unlabeled, self.sources) for case, digest in part.items()}


def check_preprocessed(folder: Path, dataset: str, plans: str, configuration: str) -> None:
    """Refuse to train without preprocessed images.

    Args:
        folder: where the preprocessed images of the configuration are.
        dataset: name of the data set.
        plans: name of the plans.
        configuration: name of the configuration.

    Raises:
        FileNotFoundError: there is none, with the command that makes them.
    """
    if folder.is_dir() and any(path.suffix in _IMAGE_SUFFIXES for path in folder.iterdir()):
        return
    raise FileNotFoundError(
        f"no preprocessed images of {dataset} for configuration {configuration} of {plans} in {folder}.\n"
        f"Run first: nnUNetv2_preprocess -d {dataset_id(dataset)} -plans_name {plans} -c {configuration}"
    )


def check_fold(identifiers: Iterable[str], fold: int | str, splits_file: Path) -> None:
    """Refuse a fold that nobody has made: nnU-Net would train on a random split in its place.

    Args:
        identifiers: cases of the data set.
        fold: nnU-Net's: a number, or `all`.
        splits_file: `splits_final.json` of the data set; where there is none, nnU-Net makes five folds.

    Raises:
        ValueError: the fold is not in the file; or there is no file, and the fold is not one of nnU-Net's five or the
            cases are too few for them.
    """
    if fold == "all":
        return
    count = len(list(identifiers))
    if splits_file.is_file():
        folds = len(read_json(splits_file))
        where = f"{splits_file} has {folds} folds"
    else:
        folds = MIN_CASES_FOR_FOLDS
        where = f"there is no {splits_file}, so nnU-Net makes {folds} folds"
        if count < MIN_CASES_FOR_FOLDS:
            raise ValueError(
                f"the data set has {count} cases, too few for nnU-Net's {MIN_CASES_FOR_FOLDS} automatic folds. "
                f"Train with fold 'all', or write your own folds to {splits_file}."
            )
    if not 0 <= int(fold) < folds:
        raise ValueError(
            f"fold {fold} does not exist: {where}, and the first is fold 0. nnU-Net would take a random split. For "
            "the published split of a preset, which is fold 5, run `nnunet-topomae plan -d ID --preset NAME`."
        )


def check_patients(training: Iterable[str], validation: Iterable[str], patients: Patients, splits_file: Path) -> None:
    """Refuse a fold with a patient on both sides.

    Args:
        training: training cases of the fold.
        validation: validation cases; none for fold `all`.
        patients: whom the cases belong to.
        splits_file: where the folds are written.

    Raises:
        ValueError: a patient is on both sides, or the patient of a case is not known.
    """
    if both := patients.shared(training, validation):
        raise ValueError(
            f"this fold validates on patients of whom it trains on other scans ({', '.join(both[:5])}). Write folds "
            f"that keep a patient's cases together to {splits_file}."
        )


def image_file(folder: Path, case: str) -> Path:
    """The preprocessed image of a case.

    Args:
        folder: preprocessed images of one configuration.
        case: its name, without an ending.

    Raises:
        FileNotFoundError: there is none, with the command that makes it.
    """
    for suffix in _IMAGE_SUFFIXES:
        path = folder / f"{case}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"no preprocessed image of case {case} in {folder}; run nnUNetv2_preprocess for this plan")


def hash_images(folder: Path, cases: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every case's preprocessed image file, by case, sorted.

    Args:
        folder: preprocessed images of one configuration.
        cases: their names, without endings.

    Raises:
        FileNotFoundError: a case has no image in the folder.
    """
    return {case: hash_file(image_file(folder, case)) for case in sorted(cases)}


def record_cases(hashes: Mapping[str, str], file: Path, continued: bool) -> dict[str, str]:
    """Write the cases that a training reads to ``file``, and return all that it has ever read.

    Several processes may write at once: readers find what one of them has written, whole.

    Args:
        hashes: from :func:`hash_images`.
        file: JSON file in the fold's folder.
        continued: keep the cases of the earlier part of the training, which other splits may have chosen.
    """
    earlier = read_json(file) if continued and file.is_file() else {}
    cases = dict(sorted({**earlier, **hashes}.items()))
    write_json(file, cases)
    return cases


def intensity_statistics(normalization_schemes: Iterable[str], properties: Mapping[str, Mapping[str, Any]]) -> str:
    """What normalisation knows of images besides the one it normalises, for the manifest.

    Args:
        normalization_schemes: one per channel.
        properties: the plan's intensity properties of every channel, by the channel's number.
    """
    of_ct = [properties[str(c)] for c, scheme in enumerate(normalization_schemes) if scheme == "CTNormalization"]
    if of_ct and all(INTENSITY_SOURCE in channel for channel in of_ct):
        return "; ".join(sorted({str(channel[INTENSITY_SOURCE]) for channel in of_ct}))
    if of_ct:
        return (
            "from labels: nnU-Net's CTNormalization clips and scales by intensities of labelled foreground voxels in "
            "all cases of the data set, validation cases included"
        )
    return "of each image alone"


def hash_json_file(path: Path) -> str | None:
    """SHA-256 of a JSON file's content, or None where there is no file."""
    return hash_json(read_json(path)) if path.is_file() else None
