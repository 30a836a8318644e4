"""The decorator of all compiled functions, and whether they can be compiled here.

Compiled code is cached on disk next to the source. Since it contains the functions that it calls, a change in any file
of a package renews all kernels of that package.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

numba: Any = import_module("numba") if find_spec("numba") else None

COMPILED: bool = numba is not None and not numba.config.DISABLE_JIT


@cache
def _hash_of_sources(package: str) -> str:
    """SHA-256 of all files of a package."""
    digest = sha256()
    for module in iter_modules(import_module(package).__path__):
        loader: Any = getattr(find_spec(f"{package}.{module.name}"), "loader", None)
        digest.update(loader.get_data(loader.path))
    return digest.hexdigest()


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
    compiled: Function = numba.njit(nogil=True, **_options())(plain)
    with suppress(RuntimeError):  # no folder for the cache can be written
        compiled._cache = _new_cache(plain)  # type: ignore[attr-defined]
    return compiled


def inner_kernel(function: Function) -> Function:
    """Let kernels call ``function``, which is compiled and cached with them; called from Python, it is plain Python.

    It is compiled without an entry from Python, and once for all that call it: numba would compile a function of
    `numba.extending.register_jitable` again for kernels that call it themselves.

    Args:
        function: the function in plain Python, to which the rules of `kernel` apply.

    Returns:
        The same function.
    """
    if not COMPILED:
        return function
    plain: Any = inspect.unwrap(function)
    plain.compiled = numba.njit(no_cpython_wrapper=True, **_options())(plain)
    plain._numba_type_ = plain.compiled._numba_type_  # what numba compiles in its place; holds no reference to it
    return cast(Function, plain)


def _options() -> dict[str, Any]:
    options: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True}  # nobody calls kernels from C
    if hasattr(import_module("numba.core.options").DefaultOptions, "_nrt"):
        options["_nrt"] = False
    return options


def _new_cache(function: Function) -> Any:
    """A cache of compiled code whose keys depend on all files of the function's package; numba looks at one only.

    Before it loads code, numba's own cache imports all that numba can compile, and scipy with it. Compiled code needs
    none of that, and loads in a quarter of the time without. numba imports it anyway when it compiles.
    """
    sources = _hash_of_sources(function.__module__.rpartition(".")[0])

    class PackageCache(import_module("numba.core.caching").FunctionCache):  # type: ignore[misc]
        def _index_key(self, signature: Any, codegen: Any) -> Any:
            return (*super()._index_key(signature, codegen), sources)

        def load_overload(self, signature: Any, target_context: Any) -> Any:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(signature, target_context)

    return PackageCache(function)
