"""What a data set says of itself in `dataset.json`. Standard library only."""

from collections.abc import Mapping
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


def dataset_id(name: str) -> int:
    """Number of a data set, as nnU-Net's commands want it: 901 of ``Dataset901_Tiny``."""
    return int(name.partition("_")[0].removeprefix("Dataset"))


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the input channels, in order; older data sets call them modalities."""
    return list(dataset_json.get("channel_names", dataset_json.get("modality", {})).values())
