"""Folds of a data set: nnU-Net's five, by patient, and a published split as a sixth one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.nnunet.names import PATIENTS_FILE, SPLITS_FILE

FOLDS = 5
PUBLISHED_FOLD = FOLDS
PUBLISHED_FILE = "published_split.json"
EVERY_CASE = "^(.+)$"


@dataclass(frozen=True)
class PublishedSplit:
    """The split that a paper reports on: lists of patients, or the shares that it states.

    Attributes:
        source: `paper` as published, `derived` from what is published, `ours` where only the shares are known.
        reason: one line.
        patient: regular expression with one group that finds the patient in a case's name.
        train: patients to train on.
        validation: patients that the paper chose settings on.
        test: patients that the paper reports on.
        shares: of training, validation and test, in place of lists.
        seed: of the random order that is cut into the shares.
    """

    source: Literal["paper", "derived", "ours"]
    reason: str
    patient: str = EVERY_CASE
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    shares: tuple[float, float, float] | None = None
    seed: int = 0

    def apply(self, cases: Sequence[str]) -> dict[str, list[str]]:
        """Cases of `train`, `validation` and `test`.

        Raises:
            ValueError: a case belongs to none of the lists, a list names a patient who is not there, or the shares
                leave nobody to test on.
        """
        patients = group_by_patient(cases, self.patient)
        lists = self._shared_out(sorted(patients)) if self.shares else self._listed()
        named = {patient for part in lists.values() for patient in part}
        if unknown := sorted(set(patients) ^ named):
            raise ValueError(
                f"the published split does not fit these cases: {', '.join(unknown[:5])} "
                f"{'and more ' if len(unknown) > 5 else ''}are only in one of the two"
            )
        parts = {part: sorted(case for name in names for case in patients[name]) for part, names in lists.items()}
        if not parts["train"] or not parts["test"]:
            raise ValueError(f"{len(patients)} patients are too few for the published split: it would test on none")
        return parts

    def fits(self, cases: Sequence[str]) -> bool:
        """Whether the split can be applied to these cases."""
        try:
            self.apply(cases)
        except ValueError:
            return False
        return True

    def _listed(self) -> dict[str, Sequence[str]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def _shared_out(self, patients: Sequence[str]) -> dict[str, Sequence[str]]:
        assert self.shares is not None
        order = [patients[index] for index in np.random.default_rng(self.seed).permutation(len(patients))]
        first, second = (round(sum(self.shares[: n + 1]) * len(patients)) for n in range(2))
        return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def group_by_patient(cases: Sequence[str], patient: str) -> dict[str, list[str]]:
    """Cases of every patient.

    Args:
        cases: names.
        patient: regular expression with one group, searched in the name.

    Raises:
        ValueError: the expression does not find a patient in a name.
    """
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        found = re.search(patient, case)
        if found is None:
            raise ValueError(f"{patient!r} finds no patient in the case name {case}")
        groups.setdefault(found.group(1), []).append(case)
    return groups


def make_splits(
    cases: Sequence[str], patient: str = EVERY_CASE, published: PublishedSplit | None = None
) -> list[dict[str, list[str]]]:
    """nnU-Net's five folds over patients, then, if there is one, the published split as fold 5.

    If every case is a patient of its own, the five folds are those that nnU-Net itself makes. Fold 5 trains on the
    published training cases. Its `val` list holds the published TEST cases, because papers report on them and nnU-Net
    selects nothing by them. The published validation cases are in neither list.

    Args:
        cases: names of the labelled cases.
        patient: regular expression with one group that finds the patient in a case's name.
        published: the published split, if there is one.

    Returns:
        A list of folds in the format of `splits_final.json`.

    Raises:
        ValueError: fewer than five patients, or the published split does not fit.
    """
    groups = group_by_patient(cases, patient)
    if len(groups) < FOLDS:
        raise ValueError(f"{FOLDS} folds need at least {FOLDS} patients, there are {len(groups)}")
    # Brings in scikit-learn, which the processes that convert images can do without.
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    folds = generate_crossval_split(sorted(groups), n_splits=FOLDS)
    splits = [
        {part: sorted(case for name in fold[part] for case in groups[str(name)]) for part in ("train", "val")}
        for fold in folds
    ]
    if published is not None:
        parts = published.apply(cases)
        splits.append({"train": parts["train"], "val": parts["test"]})
    return splits


def describe_published(published: PublishedSplit, cases: Sequence[str]) -> Mapping[str, Any]:
    """What `published_split.json` says in addition to `splits_final.json`.

    Args:
        published: the published split.
        cases: names of the labelled cases.

    Raises:
        ValueError: the split does not fit these cases.
    """
    return {
        "fold": PUBLISHED_FOLD,
        "source": published.source,
        "reason": published.reason,
        "note": "fold 5 has the test cases for val; the validation cases are in neither of its lists",
        **published.apply(cases),
    }


def describe_patients(cases: Sequence[str], patient: str) -> dict[str, str]:
    """From case to patient; empty where every case is a patient of its own.

    Args:
        cases: names.
        patient: regular expression with one group that finds the patient in a case's name.

    Raises:
        ValueError: the expression does not find a patient in a name.
    """
    groups = group_by_patient(cases, patient)
    if len(groups) == len(cases):
        return {}
    return {case: name for name, of_patient in groups.items() for case in of_patient}


def read_folds(file: Path) -> list[dict[str, list[str]]]:
    """The folds in a `splits_final.json`.

    Raises:
        ValueError: it is no list of folds; names the file.
    """
    folds = read_json(file)
    if not isinstance(folds, list) or not all(isinstance(f, dict) and {"train", "val"} <= set(f) for f in folds):
        raise ValueError(f"{file} is not a list of folds, each with the case names of 'train' and 'val'")
    return folds


def check_folds_agree(raw: Path, preprocessed: Path) -> None:
    """Refuse two files of folds that disagree, of which nnU-Net would take the preprocessed one or stop.

    Args:
        raw: folder of the raw data set.
        preprocessed: folder of the preprocessed one.

    Raises:
        ValueError: a fold of the raw data set is another one in the preprocessed data set.
    """
    files = raw / SPLITS_FILE, preprocessed / SPLITS_FILE
    if not all(file.is_file() for file in files):
        return
    wanted, found = (read_folds(file) for file in files)
    for number, fold in enumerate(wanted):
        if number >= len(found) or not _same(fold, found[number]):
            raise ValueError(
                f"fold {number} of {files[0]} is not that of {files[1]}. Trainings so far have used the second file. "
                "Remove it to go on with the first one, which makes these trainings unusable, or remove the first one."
            )


def add_published(
    folds: Sequence[dict[str, list[str]]], cases: Sequence[str], published: PublishedSplit, file: Path
) -> list[dict[str, list[str]]]:
    """Existing folds, with the published split as fold 5.

    Args:
        folds: the existing ones.
        cases: names of the training cases.
        published: the published split.
        file: where the folds are from, for errors.

    Raises:
        ValueError: there are fewer than five folds, fold 5 is another one, or the split does not fit the cases.
    """
    parts = published.apply(cases)
    wanted = {"train": parts["train"], "val": parts["test"]}
    cure = f"Move the file away, and folds 0 to {PUBLISHED_FOLD} are made; or plan without --preset to keep it."
    if len(folds) < FOLDS:
        raise ValueError(f"{file} has {len(folds)} folds, so the published split cannot be fold 5. {cure}")
    if len(folds) > FOLDS and not _same(folds[PUBLISHED_FOLD], wanted):
        raise ValueError(f"fold {PUBLISHED_FOLD} of {file} is not the published split. {cure}")
    return [*folds[:FOLDS], wanted, *folds[FOLDS + 1 :]]


def _same(fold: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> bool:
    return all(set(fold[part]) == set(other[part]) for part in ("train", "val"))


def place_published(folder: Path, cases: Sequence[str], published: PublishedSplit | None) -> str:
    """Write nnU-Net's five folds and the published one, or add it to the folds that there are.

    Args:
        folder: the preprocessed data set.
        cases: names of the training cases.
        published: the split; None if there is none.

    Returns:
        What was done, as a sentence for the user.

    Raises:
        ValueError: the folds that there are have no place for it.
    """
    if published is None:
        return "no split is published for this data set: nnU-Net's five folds apply"
    file = folder / SPLITS_FILE
    try:
        description = describe_published(published, cases)
        splits = make_splits(cases, published.patient, published)
    except ValueError as error:
        return f"the published split is not written ({error}): nnU-Net's five folds apply"
    done = "written: folds 0 to 4 as nnU-Net makes them, 5 as published"
    if file.is_file():
        folds = read_folds(file)
        splits = add_published(folds, cases, published, file)
        done = "has the published split as fold 5" if len(folds) > FOLDS else "got the published split as fold 5"
        if mixed := _mixed_folds(folds[:FOLDS], published.patient):
            done += f"; folds {', '.join(mixed)} have scans of one patient on both sides, and training refuses them"
    if patients := describe_patients(cases, published.patient):
        write_json(folder / PATIENTS_FILE, patients)
    write_json(folder / PUBLISHED_FILE, description, indent=4)
    write_json(file, splits, indent=4)
    return f"{file} {done}"


def _mixed_folds(folds: Sequence[Mapping[str, Sequence[str]]], patient: str) -> list[str]:
    """Numbers of the folds with a patient on both sides."""
    return [
        str(number)
        for number, fold in enumerate(folds)
        if set(group_by_patient(fold["train"], patient)) & set(group_by_patient(fold["val"], patient))
    ]
