"""Persistence diagrams of volumes (paper Sec. II-A)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nnunet_topomae.topology.backends import resolve_backend, voxel_pairs


@dataclass(frozen=True, eq=False)
class PersistenceDiagram:
    """The diagram of one homology dimension: a point (birth, death) for every class.

    For a class of the super-level sets ``{x: I(x) >= t}`` of a volume I, which fall with t,

        birth = I(birth voxel) = highest t with the class,    death = I(death voxel) = highest t at which it is gone.

    Attributes:
        points: float64 (n, 2), columns birth and death, in the units of the volume; birth >= death for super-level
            sets, birth <= death for sub-level sets.
        birth_voxels: int32 (n,), flat index (C order) of the voxel whose value is the birth.
        death_voxels: int32 (n,), flat index of the voxel whose value is the death.

    References:
        Edelsbrunner, Letscher and Zomorodian, Topological persistence and simplification, 2002.

    Example:
        >>> components = persistence_diagrams([1.0, 0.0, 3.0])[0]
        >>> len(components), components.points.shape
        (2, (2, 2))
        >>> components.death_voxels.tolist()  # both at the valley
        [1, 1]
    """

    points: Float[ndarray, "n 2"]
    birth_voxels: Int[ndarray, " n"]
    death_voxels: Int[ndarray, " n"]

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, eq=False)
class PersistenceDiagrams:
    """The persistence diagrams of one volume; ``diagrams[k]`` is the one of homology dimension k.

    Attributes:
        volume_shape: shape of the volume that the voxel indices refer to.
        dimensions: homology dimensions that were computed.
        entries: one diagram for each of ``dimensions``, in their order.

    References:
        Edelsbrunner, Letscher and Zomorodian, Topological persistence and simplification, 2002.

    Example:
        >>> diagrams = persistence_diagrams([[1.0, 0.0, 3.0]], dimensions=(0, 1))
        >>> diagrams.volume_shape, diagrams.dimensions, [len(diagram) for diagram in diagrams]
        ((1, 3), (0, 1), [2, 0])
        >>> len(diagrams[0])
        2
    """

    volume_shape: tuple[int, ...]
    dimensions: tuple[int, ...]
    entries: tuple[PersistenceDiagram, ...]

    def __iter__(self) -> Iterator[PersistenceDiagram]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, dimension: int) -> PersistenceDiagram:
        if dimension not in self.dimensions:
            raise ValueError(f"homology dimension {dimension} was not computed; present: {self.dimensions}")
        return self.entries[self.dimensions.index(dimension)]


def persistence_diagrams(
    volume: Any,
    dimensions: Sequence[int] = (0, 1, 2),
    backend: str = "auto",
    level_sets: str = "super",
    threads: int = 1,
) -> PersistenceDiagrams:
    """Persistence diagrams of the super-level or sub-level sets of a volume or an image.

    The voxels are the vertices of a cubical complex (V-construction, Kaji et al. 2020). The level falls, so a class is
    born at a high value and dies at a lower one. One class never dies: the first component, called the essential class.
    Its death is set to the minimum of the volume, the level at which the complex is complete, so all points are finite
    (paper Sec. II-A is silent). With sub-level sets the level rises: low values come first, and the essential class
    ends at the maximum. Classes of zero persistence are left out, except the essential class.

    Args:
        volume: array or tensor of shape (D, H, W), (H, W) or (W,), any real or integer type, on any device.
        dimensions: homology dimensions: 0 components, 1 loops, 2 voids.
        backend: `native`, `cripser`, `gudhi`, or `auto` for the fastest.
        level_sets: `super` (bright structures) or `sub` (dark ones).
        threads: 1, or another number as of `TopologicalLoss`; `native` divides a volume between two threads where two
            are free. The diagrams do not depend on it.

    Returns:
        The diagrams, with values in float64 and the voxels that hold them. A constant volume has the single point
        (value, value) in dimension 0.

    Raises:
        TypeError: the values are not real numbers.
        ValueError: NaN or infinite values, an empty volume, other than one to three axes, unknown dimensions or
            `level_sets`, negative threads.
        RuntimeError: the backend is not installed.

    References:
        Kaji, Sudo and Ahara, Cubical Ripser: software for computing persistent homology of image and volume data, 2020.
        Guillou, Vidal and Tierny, Discrete Morse Sandwich: fast computation of persistence diagrams, 2023.

    Example:
        >>> diagrams = persistence_diagrams([1.0, 0.0, 3.0])  # two peaks and a valley
        >>> diagrams[0].points.tolist()  # birth, death
        [[1.0, 0.0], [3.0, 0.0]]
        >>> diagrams[0].birth_voxels.tolist()
        [0, 2]
        >>> ring = [[1.0, 1.0, 1.0], [1.0, 0.2, 1.0], [1.0, 1.0, 1.0]]  # a 2D image with one loop
        >>> persistence_diagrams(ring)[1].points.tolist()
        [[1.0, 0.2]]
        >>> persistence_diagrams([1.0, 0.0, 3.0], level_sets="sub")[0].points.tolist()
        [[0.0, 3.0]]
    """
    values = _as_real_array(volume)
    wanted = check_dimensions(dimensions)
    falls = check_level_sets(level_sets) == "super"
    kind = values.dtype if values.dtype == np.float32 else np.float64
    padded = np.ascontiguousarray(values, dtype=kind).reshape((1,) * (3 - values.ndim) + values.shape)
    flat = padded.reshape(-1)  # (D, H, W) -> (D*H*W,)
    falling = padded if falls else -padded
    last = int(falling.argmin())
    entries = []
    for births, deaths in voxel_pairs(falling, wanted, resolve_backend(backend), threads):
        deaths = np.where(deaths < 0, last, deaths)
        points = np.stack([flat[births], flat[deaths]], axis=1).astype(np.float64)
        entries.append(PersistenceDiagram(points, births.astype(np.int32), deaths.astype(np.int32)))
    return PersistenceDiagrams(tuple(values.shape), wanted, tuple(entries))


def check_dimensions(dimensions: Sequence[int]) -> tuple[int, ...]:
    """Check homology dimensions.

    Args:
        dimensions: out of 0, 1, 2.

    Returns:
        The same as a tuple.

    Raises:
        ValueError: none, repeated, or others than 0, 1 and 2.
    """
    wanted = tuple(int(dimension) for dimension in dimensions)
    if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= {0, 1, 2}:
        raise ValueError(f"homology dimensions must be distinct and out of 0, 1, 2, got {wanted}")
    return wanted


def check_level_sets(level_sets: str) -> str:
    """Check a choice of level sets.

    Args:
        level_sets: `super` or `sub`.

    Returns:
        The same.

    Raises:
        ValueError: anything else.
    """
    if level_sets not in ("super", "sub"):
        raise ValueError(f"unknown level sets {level_sets!r}; allowed: super, sub")
    return level_sets


def _as_real_array(volume: Any) -> ndarray:
    """``volume`` as a finite numpy array of one to three axes."""
    if isinstance(volume, Tensor):
        exact = torch.float32 if volume.dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float64
        volume = volume.detach().to("cpu", exact if volume.is_floating_point() else volume.dtype).numpy()
    values = np.asarray(volume)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"persistence diagrams need real numbers, got values of type {values.dtype}")
    if not 1 <= values.ndim <= 3 or values.size == 0:
        raise ValueError(
            f"persistence diagrams need one volume of shape (D, H, W), (H, W) or (W,), got {values.shape}; "
            "loop over batch and channels"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise ValueError(f"{count} of {values.size} values are NaN or infinite; persistence is undefined for them")
    return values
