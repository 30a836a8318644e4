"""The libraries that compute persistent homology; this is the only file that names them.

Both see the volume as a cubical complex whose vertices are the voxels (V-construction, 6-neighbours in 3D) and its
super-level sets, and both return a pair of voxels for every class: the one at which it is born and the one at which
it dies. cripser is about six times faster than gudhi.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

VoxelPairs = tuple[Int[ndarray, " n"], Int[ndarray, " n"]]
"""Flat indices (C order) of the birth and the death voxels of n classes; death -1 marks the essential class."""

BACKENDS = ("cripser", "gudhi")


def resolve_backend(name: str) -> str:
    """Choose the library that computes persistent homology.

    Args:
        name: `cripser`, `gudhi`, or `auto` for the first that is installed.

    Returns:
        `cripser` or `gudhi`.

    Raises:
        ValueError: unknown name.
        RuntimeError: the library is not installed.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown persistent homology backend {name!r}; allowed: auto, {', '.join(BACKENDS)}")
    for candidate in BACKENDS if name == "auto" else (name,):
        if find_spec(candidate) is not None:
            return candidate
    wanted = " or ".join(BACKENDS) if name == "auto" else name
    raise RuntimeError(f"persistent homology needs {wanted}, which is not installed: pip install cripser")


def voxel_pairs(volume: Float[ndarray, "D H W"], dimensions: Sequence[int], backend: str) -> list[VoxelPairs]:
    """Birth and death voxels of the super-level-set persistence of ``volume``.

    Classes of zero persistence are left out, except the essential component.

    Args:
        volume: float64, C-contiguous, finite values.
        dimensions: homology dimensions out of 0, 1, 2.
        backend: a name that `resolve_backend` returned.

    Returns:
        One entry per dimension: flat indices of birth and death voxels.
    """
    compute = {"cripser": _cripser_pairs, "gudhi": _gudhi_pairs}[backend]
    return compute(volume, dimensions)


def _cripser_pairs(volume: Float[ndarray, "D H W"], dimensions: Sequence[int]) -> list[VoxelPairs]:
    import cripser

    # Rows: dimension, birth, death, birth voxel (3), death voxel (3); the essential class dies at voxel (-1, -1, -1).
    rows = cripser.computePH(-volume, maxdim=max(dimensions))
    pairs = []
    for dimension in dimensions:
        voxels = rows[rows[:, 0] == dimension, 3:9].astype(np.int64)
        strides = np.array([volume.shape[1] * volume.shape[2], volume.shape[2], 1])
        births, deaths = voxels[:, :3] @ strides, voxels[:, 3:] @ strides
        pairs.append((births, np.where(voxels[:, 3] < 0, -1, deaths)))
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
