"""Tasks of the Medical Segmentation Decathlon, which describe themselves in dataset.json."""

import re
from pathlib import Path
from typing import Any

from nnunet_topomae.datasets.conversion import Download, RawCase
from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.names import DATASET_FILE

REFERENCE = "http://medicaldecathlon.com"
LARGEST_LABEL = 255  # label maps are written with eight bits


def task_of(source: Path) -> tuple[int, str]:
    """Number and name of a task, from its folder's name.

    Raises:
        ValueError: the folder is not named `Task09_Spleen` or the like.
    """
    found = re.fullmatch(r"Task(\d\d)_(\w+)", source.resolve().name)
    if found is None:
        raise ValueError(f"{source} is not named as the download names it, for example Task09_Spleen")
    return int(found.group(1)), found.group(2)


def find_msd(source: Path, with_test: bool = True) -> Download:
    """The cases that the task's dataset.json lists; 4D images become one file per channel.

    Args:
        source: folder of the task, such as `Task09_Spleen`.
        with_test: also take its test images, which have no labels.

    Raises:
        FileNotFoundError: dataset.json or a file that it lists is missing.
        ValueError: dataset.json lacks an entry, or a file of the folder is not listed.
    """
    file = source / DATASET_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; name the unpacked folder of the task, for example Task09_Spleen")
    described = _read_description(file)
    root = source.resolve()
    cases = [_case(root, entry["image"], entry["label"]) for entry in described["training"]]
    if with_test:
        cases += [_case(root, image, None) for image in described.get("test", ())]
    _check_all_listed(root, cases, with_test)
    values = {int(value): name for value, name in described["labels"].items()}
    return Download(
        root=root,
        channel_names=tuple(described["modality"][str(index)] for index in range(len(described["modality"]))),
        labels={name: value for value, name in sorted(values.items())},
        label_values={value: value for value in values},
        cases=tuple(cases),
        reference=REFERENCE,
    )


def _read_description(file: Path) -> dict[str, Any]:
    """Content of the task's dataset.json.

    Raises:
        ValueError: it is not as the tasks of the decathlon have it; names the file and the entry.
    """
    described = read_json(file)
    rules = {
        "modality": ({"0": "CT"}, lambda value: _is_table(value) and set(value) == set(map(str, range(len(value))))),
        "labels": ({"0": "background", "1": "spleen"}, _are_labels),
        "training": ([{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}], _are_cases),
        "test": (["./imagesTs/b.nii.gz"], lambda value: isinstance(value, list) and all(map(_is_text, value))),
    }
    if not isinstance(described, dict):
        raise ValueError(f"{file} must be a table, got {type(described).__name__}")
    for key, (example, holds) in rules.items():
        if key not in described and key != "test":
            raise ValueError(f"{file} has no entry {key!r}")
        if not holds(described.get(key, [])):
            raise ValueError(f"{file}: entry {key!r} is not as in this example: {example}")
    return described


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(map(_is_text, value.values()))


def _are_labels(value: Any) -> bool:
    return _is_table(value) and all(number.isdecimal() and int(number) <= LARGEST_LABEL for number in value)


def _are_cases(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and _is_text(entry.get("image")) and _is_text(entry.get("label")) for entry in value
    )


def _case(root: Path, image: str, label: str | None) -> RawCase:
    paths = [root / image, *([root / label] if label else [])]
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} is listed in dataset.json but lies outside {root}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is listed in dataset.json but missing. Unpack the download again.")
    name = re.sub(r"\.nii(\.gz)?$", "", paths[0].name)
    return RawCase(name, (paths[0],), paths[1] if label else None, training=label is not None)


def _check_all_listed(root: Path, cases: list[RawCase], with_test: bool) -> None:
    listed = {path.resolve() for case in cases for path in (*case.images, *([case.label] if case.label else []))}
    folders = ("imagesTr", "labelsTr", "imagesTs") if with_test else ("imagesTr", "labelsTr")
    for folder in folders:
        for path in sorted((root / folder).glob("*.nii*")):
            if not path.name.startswith(".") and path.resolve() not in listed:
                raise ValueError(f"{path} is not listed in dataset.json. List it, or move it out of the folder.")
