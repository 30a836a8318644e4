"""What a fresh Python process sees: imports, nnU-Net's class search and the device.

Run as ``python -m nnunet_topomae.doctor.probe``, so that a library that fails, or crashes, while it is imported does
not take the doctor with it. Everything is reported as one line of JSON.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from nnunet_topomae import _hook

LIBRARIES = ("torch", "torchvision", "timm", "nnunetv2", "cripser", "gudhi", "numba")


def probe() -> dict[str, Any]:
    """All findings, as JSON values."""
    return {
        "libraries": {name: _attempt(importlib.import_module, name)["error"] for name in LIBRARIES},
        "search": _attempt(_search_state),
        "classes": {name: _attempt(_look_up, name) for name in _hook.CLASSES},
        "device": _attempt(_device),
    }


def _attempt(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The JSON value that ``function`` returns, or the error it raises."""
    try:
        value = function(*arguments)
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        return {"value": None, "error": f"{type(error).__name__}: {first_line}"}
    return {"value": value if isinstance(value, str | dict) else None, "error": None}


def _search_state() -> str:
    """Whether the hook is in nnU-Net's class search: active, inactive, or absent where there is nothing to wrap."""
    importlib.import_module("torch")
    search = importlib.import_module(_hook.SEARCH_MODULE)
    if not hasattr(search, _hook.SEARCH_FUNCTION):
        return "absent"
    return "active" if _hook.answers(search) else "inactive"


def _look_up(name: str) -> str:
    """The module of the class that nnU-Net's own lookup returns for ``name``."""
    place, _ = _hook.CLASSES[name]
    if place == _hook.TRAINERS_PLACE:
        found = importlib.import_module("nnunetv2.utilities.find_objects").recursive_find_trainer_class_by_name(name)
    else:
        folder = str(next(iter(importlib.import_module(place).__path__)))
        search = importlib.import_module(_hook.SEARCH_MODULE).recursive_find_python_class
        found = search(folder, name, current_module=place)
        if found is None:
            raise LookupError(f"nnU-Net does not find {name} in {folder}")
    return str(found.__module__)


def _device() -> dict[str, Any]:
    """The device that training would use, and its memory in bytes where it has its own."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return {"type": "cuda", "name": torch.cuda.get_device_name(), "free": free, "total": total}
    return {"type": "mps" if torch.backends.mps.is_available() else "cpu"}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        findings = probe()
    print(json.dumps(findings))
