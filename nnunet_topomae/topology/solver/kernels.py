"""The decorator of all compiled functions, and whether they can be compiled here.

Compiled code is cached beside the source and renewed when that file changes. A kernel's cache does not know the files
of the kernels it calls: while developing, delete ``__pycache__/*.nb?`` after a change.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

numba: Any = import_module("numba") if find_spec("numba") else None

COMPILED: bool = numba is not None and not numba.config.DISABLE_JIT


def kernel(function: Function) -> Function:
    """Compile ``function`` with numba: without the interpreter lock, cached on disk where that is possible.

    Kernels get their arrays in named tuples and must not allocate any: without numba's memory management
    (`_nrt=False`) reading an array out of a tuple costs no reference count, which saves a third of the time.
    Without numba, or with NUMBA_DISABLE_JIT=1, the function stays as it is.

    Args:
        function: the function in plain Python.

    Returns:
        The compiled function, with the same arguments.
    """
    if not COMPILED:
        return function
    plain = inspect.unwrap(function)  # numba cannot compile the wrapper of a run-time type checker
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if hasattr(import_module("numba.core.options").DefaultOptions, "_nrt"):
        options["_nrt"] = False
    try:
        compiled: Function = numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # no folder for the cache can be written
        compiled = numba.njit(**options)(plain)
    return compiled
