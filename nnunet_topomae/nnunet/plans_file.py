"""nnU-Net's plans files: reading and writing them. Standard library only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_topomae.files import read_json, write_json
from nnunet_topomae.nnunet.names import check_name


def read_plans(path: Path) -> dict[str, Any]:
    """A plans file.

    Raises:
        FileNotFoundError: it does not exist; names the plans that do.
        ValueError: it is not JSON, or holds no configurations.
    """
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*lans*.json"))
        raise FileNotFoundError(f"no plans {path}; plans of this data set: {', '.join(found) or 'none, plan it first'}")
    plans = read_json(path)
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict) or not plans["configurations"]:
        raise ValueError(f"{path} has no configurations. Restore the file, or plan again.")
    return plans


def write_plans(plans: Mapping[str, Any], folder: Path) -> Path:
    """Write plans under their name; the same content may be written again.

    Args:
        plans: content of the file; `plans_name` gives it its name.
        folder: of the preprocessed data set.

    Returns:
        The file.

    Raises:
        FileExistsError: other plans of that name exist.
        ValueError: the name could leave the folder.
    """
    path = folder / f"{check_name(plans['plans_name'], 'plans_name')}.json"
    if path.is_file() and read_json(path) != json.loads(json.dumps(plans)):
        raise FileExistsError(f"{path} exists with other content. Choose another --name, or delete it.")
    write_json(path, plans, indent=4)
    return path
