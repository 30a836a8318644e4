"""What computes persistent homology: our own engine, or a library; this is the only file that names the libraries.

All of them see the volume as a cubical complex whose vertices are the voxels (V-construction, 6-neighbours in 3D) and
its super-level sets, and return a pair of voxels for every class: the one at which it is born and the one at which it
dies. The points (birth, death) are the same. Where several voxels have the same value, the voxels of a pair may differ
between backends. `native` is the fastest, cripser comes next, gudhi is about six times slower than cripser.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.homology.pairs import persistence_pairs
from nnunet_topomae.topology.solver.kernels import COMPILED
from nnunet_topomae.topology.workers import in_turn, shared_pool

VoxelPairs = tuple[Int[ndarray, " n"], Int[ndarray, " n"]]
"""Flat indices (C order) of the birth and the death voxels of n classes; death -1 marks the essential class."""

LIBRARIES = ("cripser", "gudhi")
BACKENDS = ("native", *LIBRARIES)
# Smaller volumes are not worth a second thread.
PARALLEL_VOXELS = 32**3
CRIPSER_FLOOR = "0.0.37"
# In a row of cripser, deaths from here on stand for "never".
_INFINITE = 1e300


def resolve_backend(name: str) -> str:
    """Choose what computes persistent homology.

    Args:
        name: a backend, or `auto` for `native`; where numba is absent `auto` takes the first installed library.

    Returns:
        `native`, `cripser` or `gudhi`.

    Raises:
        ValueError: unknown name.
        RuntimeError: the library is not installed, or a cripser whose answers are wrong is.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown persistent homology backend {name!r}; allowed: auto, {', '.join(BACKENDS)}")
    if name == "native" or (name == "auto" and COMPILED):
        return "native"
    for candidate in LIBRARIES if name == "auto" else (name,):
        if find_spec(candidate) is not None:
            try:
                return _usable(candidate)
            except RuntimeError:
                if name != "auto":
                    raise
    if name == "auto":
        return "native"  # without numba: slow, but right
    raise RuntimeError(f"persistent homology with {name} needs the package {name}: pip install {name}")


def voxel_pairs(
    volume: Float[ndarray, "D H W"], dimensions: Sequence[int], backend: str, threads: int = 1
) -> list[VoxelPairs]:
    """Birth and death voxels of the super-level-set persistence of ``volume``.

    Classes of zero persistence are left out, except the essential component.

    Args:
        volume: float32 or float64, C-contiguous, finite values.
        dimensions: homology dimensions out of 0, 1, 2.
        backend: a name that `resolve_backend` returned.
        threads: as of a `WorkerPool`; `native` uses two at most, the libraries one.

    Returns:
        One entry per dimension: flat indices of birth and death voxels.
    """
    if backend == "native":
        pool = shared_pool(threads)
        alone = threads == 1 or volume.size < PARALLEL_VOXELS
        return persistence_pairs(volume, dimensions, in_turn if alone else pool.both)
    compute = {"cripser": _cripser_pairs, "gudhi": _gudhi_pairs}[backend]
    return compute(volume.astype(np.float64), dimensions)


def _cripser_pairs(volume: Float[ndarray, "D H W"], dimensions: Sequence[int]) -> list[VoxelPairs]:
    return _read_cripser(_cripser(), volume, dimensions)


def _usable(library: str) -> str:
    """The same name.

    Raises:
        RuntimeError: a cripser whose answers are wrong.
    """
    if library == "cripser":
        _cripser()
    return library


@cache
def _cripser() -> Any:
    """cripser, once it has answered a volume of four voxels correctly: its rows differ between versions."""
    import cripser

    # Two maxima, 3 and 2, that meet at the minimum, 0, which is not the first voxel.
    volume = np.array([1.0, 3.0, 0.0, 2.0]).reshape(1, 1, 4)
    births, deaths = _read_cripser(cripser, volume, (0,))[0]
    if set(zip(births.tolist(), deaths.tolist(), strict=True)) != {(1, -1), (3, 2)}:
        try:
            installed = version("cripser")
        except PackageNotFoundError:
            installed = "of an unknown version"
        raise RuntimeError(
            f"cripser {installed} gives wrong components for a volume of four voxels; "
            f'run: pip install "cripser>={CRIPSER_FLOOR}", or use backend = native'
        )
    return cripser


def _read_cripser(cripser: Any, volume: Float[ndarray, "D H W"], dimensions: Sequence[int]) -> list[VoxelPairs]:
    # Rows: dimension, birth, death, birth voxel (3), death voxel (3). The death voxel of the class that never dies
    # depends on cripser's version.
    rows = cripser.computePH(-volume, maxdim=max(dimensions))
    strides = np.array([volume.shape[1] * volume.shape[2], volume.shape[2], 1])
    pairs = []
    for dimension in dimensions:
        chosen = rows[rows[:, 0] == dimension]
        births, deaths = (chosen[:, columns].astype(np.int64) @ strides for columns in (slice(3, 6), slice(6, 9)))
        pairs.append((births, np.where(chosen[:, 2] >= _INFINITE, -1, deaths)))
    return pairs


def _gudhi_pairs(volume: Float[ndarray, "D H W"], dimensions: Sequence[int]) -> list[VoxelPairs]:
    import gudhi

    cubes = gudhi.CubicalComplex(vertices=-volume)
    cubes.compute_persistence(min_persistence=0.0)
    finite, essential = cubes.vertices_of_persistence_pairs()
    pairs = []
    for dimension in dimensions:
        ends = [finite[dimension]] if dimension < len(finite) else []
        if dimension < len(essential):
            ends.append(np.stack([essential[dimension], np.full_like(essential[dimension], -1)], axis=1))
        flat = np.concatenate([np.reshape(end, (-1, 2)) for end in ends] or [np.zeros((0, 2))]).astype(np.int64)
        pairs.append((_to_c_order(flat[:, 0], volume.shape), _to_c_order(flat[:, 1], volume.shape)))
    return pairs


def _to_c_order(index: Int[ndarray, " n"], shape: tuple[int, ...]) -> Int[ndarray, " n"]:
    """Flat indices in C order from flat indices in Fortran order, which gudhi uses; -1 stays."""
    converted = np.ravel_multi_index(np.unravel_index(np.maximum(index, 0), shape, order="F"), shape)
    return np.where(index < 0, -1, converted)
