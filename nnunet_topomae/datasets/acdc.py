"""The ACDC download: cine MR of the heart, labelled at end of diastole and end of systole.

Slices are short-axis planes, whose direction in the patient differs from heart to heart; so nothing is re-oriented,
and the slice axis stays the first one of the array.
"""

import re
from pathlib import Path

from nnunet_topomae.datasets.conversion import Download, RawCase

LABELS = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}
PATIENT = r"(patient\d+)"
REFERENCE = "https://humanheart-project.creatis.insa-lyon.fr/database/"
PHASES = ("ED", "ES")


def find_acdc(source: Path, with_test: bool = True) -> Download:
    """Both labelled frames of every patient; 4D files are left alone.

    Args:
        source: the unpacked download: the folder with `training` and `testing`, one above it, or the one with the
            folders `patientXXX`.
        with_test: also take `testing`.

    Raises:
        FileNotFoundError: no folders `patientXXX`; a frame named in Info.cfg or its label map is missing.
        ValueError: Info.cfg does not name both phases, or a labelled frame is none of them.
    """
    training = _folder_of_patients(source, "training")
    cases = [case for folder in _patients(training) for case in _frames(folder, True)]
    testing = training.parent / "testing"
    if with_test and training.name == "training" and testing.is_dir():
        cases += [case for folder in _patients(testing) for case in _frames(folder, False)]
    return Download(
        root=training.parent,
        channel_names=("cineMR",),
        labels=LABELS,
        label_values={value: value for value in LABELS.values()},
        cases=tuple(cases),
        reference=REFERENCE,
        patient=PATIENT,
        orientation=None,
    )


def _folder_of_patients(source: Path, name: str) -> Path:
    for folder in (source, source / name, source / "database" / name, source / "ACDC" / "database" / name):
        if folder.is_dir() and _patients(folder):
            return folder.resolve()
    raise FileNotFoundError(f"no folders patient001, patient002, ... in {source} or its folder {name}")


def _patients(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"patient\d+", path.name))


def _frames(folder: Path, training: bool) -> list[RawCase]:
    """The frames of one patient that Info.cfg names."""
    cases = []
    for phase, frame in _read_phases(folder / "Info.cfg").items():
        name = f"{folder.name}_frame{frame:02d}"
        image, label = _existing(folder, name), _existing(folder, f"{name}_gt")
        if image is None:
            raise FileNotFoundError(f"{folder / name}.nii.gz is missing: frame {frame} is {phase} in Info.cfg")
        if label is None and training:
            raise FileNotFoundError(f"{folder / name}_gt.nii.gz is missing: the label map of frame {frame}, {phase}")
        cases.append(RawCase(name, (image,), label, training))
    taken = {path for case in cases for path in (*case.images, case.label)}
    for path in sorted(folder.glob(f"{folder.name}_frame*")):
        if path not in taken and not path.name.startswith("."):
            raise ValueError(f"{path} is neither frame that Info.cfg names. Correct Info.cfg, or move the file away.")
    return cases


def _existing(folder: Path, stem: str) -> Path | None:
    return next((path for ending in (".nii.gz", ".nii") if (path := folder / f"{stem}{ending}").is_file()), None)


def _read_phases(path: Path) -> dict[str, int]:
    """Frame of each phase, from lines `ED: 1` and `ES: 12`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it names the frames of end of diastole and of systole")
    entries = dict(re.findall(r"^\s*(\w+)\s*:\s*(\S+)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE))
    if not all(entries.get(phase, "").isdigit() for phase in PHASES):
        raise ValueError(f"{path} must have the lines 'ED: FRAME' and 'ES: FRAME'")
    return {phase: int(entries[phase]) for phase in PHASES}
