"""What a data set says of itself in `dataset.json`. Standard library only."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_json
from nnunet_topomae.nnunet.names import DATASET_FILE


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Content of a data set's `dataset.json`.

    Args:
        folder: the data set's folder, raw or preprocessed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or no table.
    """
    file = folder / DATASET_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; is {folder} a data set of nnU-Net?")
    description = read_json(file)
    if not isinstance(description, dict):
        raise ValueError(f"{file} must be a table, got {type(description).__name__}")
    return description


def check_dataset_json(description: Mapping[str, Any], where: Path) -> None:
    """Refuse a description that nnU-Net cannot plan with.

    Args:
        description: content of a raw data set's `dataset.json`.
        where: the file, for errors.

    Raises:
        ValueError: names the file, the key, its value and what is allowed.
    """
    channels = "channel_names" if "channel_names" in description else "modality"
    for key, (holds, words) in {channels: _CHANNELS, **_RULES}.items():
        if not holds(description.get(key)):
            raise ValueError(f"{where}: {key} = {description.get(key)!r} must be {words}. Correct the file.")
    labels, order = description["labels"], description.get("regions_class_order")
    _check_values(labels, where)
    foreground = [value for name, value in labels.items() if name != "ignore" and value not in (0, "0", [0])]
    if any(isinstance(value, list) and len(value) > 1 for value in foreground) and not (
        isinstance(order, list) and len(order) == len(foreground)
    ):
        raise ValueError(
            f"{where}: regions_class_order = {order!r} must be a list of {len(foreground)} labels, one per region, "
            "because some labels are regions of several values. Correct the file."
        )


def _check_values(labels: Mapping[str, Any], where: Path) -> None:
    """nnU-Net's networks have one output per value, so there must be no gaps; the ignore label is the highest."""
    values = {name: _values(value) for name, value in labels.items()}
    ignored = values.pop("ignore", [])
    known = sorted({number for numbers in values.values() for number in numbers})
    if known != list(range(len(known))):
        raise ValueError(
            f"{where}: labels = {dict(labels)!r} must be 0, 1, 2 and so on without gaps. Correct the file "
            "and the label maps."
        )
    if any(number <= known[-1] for number in ignored):
        raise ValueError(f"{where}: labels = {dict(labels)!r}: ignore must be the highest value. Correct the file.")


def _values(value: Any) -> list[int]:
    """The whole numbers of a label or region that :func:`_is_label` has accepted."""
    return [int(str(item).removesuffix(".0")) for item in (value if isinstance(value, list) else [value])]


def _is_label(value: Any) -> bool:
    """A value, or several for a region; nnU-Net also reads digits in quotes."""
    if isinstance(value, list):
        return len(value) > 0 and all(not isinstance(item, list) and _is_label(item) for item in value)
    return str(value).removesuffix(".0").isdecimal()


_CHANNELS = (
    lambda value: isinstance(value, dict) and len(value) > 0,  # nnU-Net goes by their order
    'a table of names by the number of the channel, {"0": "CT"}',
)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (
        lambda value: (
            isinstance(value, dict) and value.get("background") in (0, "0") and all(map(_is_label, value.values()))
        ),
        'a table of values by name, {"background": 0, "spleen": 1}',
    ),
    "file_ending": (lambda value: isinstance(value, str) and value[:1] == ".", 'the ending of the files, ".nii.gz"'),
}


def dataset_id(name: str) -> int:
    """Number of a data set, as nnU-Net's commands want it: 901 of ``Dataset901_Tiny``."""
    return int(name.partition("_")[0].removeprefix("Dataset"))


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the input channels, in order; older data sets call them modalities."""
    return list(dataset_json.get("channel_names", dataset_json.get("modality", {})).values())
