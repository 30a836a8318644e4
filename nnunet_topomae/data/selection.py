"""Which images a fold's pre-training reads: the fold's training cases, and unlabelled images of other patients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_topomae.config import PretrainingConfig
from nnunet_topomae.data.cases import ImagesRead, check_patients, hash_images, record_cases
from nnunet_topomae.data.images import open_image
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.data.sources import hash_sources
from nnunet_topomae.datasets.unlabeled import read_manifest, unlabeled_folder
from nnunet_topomae.files import hash_json
from nnunet_topomae.nnunet.names import SPLITS_FILE


@dataclass(frozen=True)
class PretrainingCases:
    """What a fold's pre-training reads.

    Attributes:
        data_folder: the preprocessed data set.
        labelled: the fold's training cases, sorted.
        unlabelled: the unlabelled images, sorted.
        excluded: why an unlabelled image is not read, by case.
        sources: hash of the files that an unlabelled image was preprocessed from, by case.
    """

    data_folder: Path
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    excluded: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"pre-training reads {len(self.labelled)} training cases and {len(self.unlabelled)} unlabelled images"]
        return "\n".join([*lines, *(f"left out {case}: {reason}" for case, reason in self.excluded.items())])

    def record(self, folder: Path, continued: bool) -> ImagesRead:
        """Hash all images and write both lists into the fold's folder; for one process of a training.

        Args:
            folder: the fold's folder.
            continued: whether the training has read images before, which then stay listed.
        """
        labelled = hash_images(self.data_folder, self.labelled)
        unlabelled = hash_images(unlabeled_folder(self.data_folder), self.unlabelled)
        return ImagesRead(
            record_cases(labelled, folder / "cases_read.json", continued),
            record_cases(unlabelled, folder / "unlabeled_read.json", continued),
            {**hash_sources(self.data_folder.parent, self.labelled), **self.sources},
        )


def choose_cases(
    split: tuple[Sequence[str], Sequence[str]],
    data_folder: Path,
    plans: Mapping[str, Any],
    configuration: str,
    section: PretrainingConfig,
) -> PretrainingCases:
    """The images that a fold's pre-training may read.

    Left out is every unlabelled image that equals a validation case or shows a validation patient.

    Args:
        split: training and validation cases of the fold; fold `all` has the same in both and validates on nothing.
        data_folder: the preprocessed data set.
        plans: content of the plans file.
        configuration: name of the configuration.
        section: whether to read unlabelled images, and which patient a case belongs to.

    Raises:
        ValueError: the fold itself has a patient on both sides, or the unlabelled images were preprocessed for
            another plan.
    """
    training = split[0]
    validation = [] if set(split[0]) == set(split[1]) else list(split[1])
    patients = Patients.of_dataset(section.patients, data_folder.parent, complete=False)
    check_patients(training, validation, patients, data_folder.parent / SPLITS_FILE)
    unlabelled = read_manifest(data_folder, plans, configuration) if section.unlabeled else {}
    excluded = dict.fromkeys(patients.shared(unlabelled, validation), "its patient is validated on")
    for case, entry in unlabelled.items():
        if entry["twin"] in validation:
            excluded[case] = f"the same image as validation case {entry['twin']}"
    kept = [case for case in unlabelled if case not in excluded]
    sources = {case: hash_json(unlabelled[case]["source"]) for case in sorted(kept)}
    return PretrainingCases(
        data_folder, tuple(sorted(training)), tuple(sources), dict(sorted(excluded.items())), sources
    )


class JointDataset:
    """Images of labelled and unlabelled cases as one data set, for nnU-Net's loader.

    Args:
        labelled: the preprocessed data set, with the cases to read.
        unlabelled: names of unlabelled cases in the folder next to it.
    """

    def __init__(self, labelled: nnUNetBaseDataset, unlabelled: Iterable[str]) -> None:
        folder = unlabeled_folder(Path(labelled.source_folder))
        own = sorted(unlabelled)
        self.source_folder = labelled.source_folder
        self.identifiers = [*labelled.identifiers, *own]
        self._folders = {
            **dict.fromkeys(labelled.identifiers, Path(labelled.source_folder)),
            **dict.fromkeys(own, folder),
        }

    def load_case(self, identifier: str) -> Any:
        """Image, and nothing else: neither label map, previous segmentation nor properties."""
        return open_image(self._folders[identifier], identifier), None, None, {}

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)
