"""Persistence pairs of a volume."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.homology.components import pair_components
from nnunet_topomae.topology.homology.gradient import make_gradient, make_grid
from nnunet_topomae.topology.homology.loops import MAX_VOXELS, pair_loops
from nnunet_topomae.topology.homology.voids import pair_voids
from nnunet_topomae.topology.workers import Both, in_turn

Pairs = tuple[Int[ndarray, " n"], Int[ndarray, " n"]]
Values = Float[ndarray, " voxels"]
NEVER = -1


def persistence_pairs(
    volume: Float[ndarray, "D H W"], dimensions: Sequence[int] = (0, 1, 2), both: Both = in_turn
) -> list[Pairs]:
    """Voxels at which the classes of the super-level sets are born and die, one entry per dimension.

    Voxels of equal value enter in the order of memory. Classes of zero persistence are left out. The component that
    never dies has the death `NEVER`.

    Args:
        volume: float32 or float64, C-contiguous, finite values.
        dimensions: homology dimensions: 0 components, 1 loops, 2 voids.
        both: runs two functions, in two threads for example; the result does not depend on it.

    Returns:
        Flat indices (C order) of the voxels of birth and of death.

    Raises:
        ValueError: a volume of more than about 2.7e8 voxels.
    """
    if np.prod([size + 2 for size in volume.shape]) > MAX_VOXELS:
        raise ValueError(f"persistent homology of {volume.shape} voxels needs more than {MAX_VOXELS} places; crop it")
    grid, first = make_grid(volume)
    gradient = make_gradient(grid, both)
    found: dict[int, Pairs] = {}
    if max(dimensions) > 0:
        components, voids = both(partial(pair_components, grid, gradient), partial(pair_voids, grid, gradient))
        found[2] = (voids.births, voids.deaths)
        if 1 in dimensions:
            found[1] = pair_loops(grid, gradient, components, voids, both)
    else:
        components = pair_components(grid, gradient)
    found[0] = (components.births, components.deaths)
    pairs = {
        dimension: _lasting(volume.reshape(-1), *(_from_grid(volume.shape, voxels) for voxels in ends))
        for dimension, ends in found.items()
    }
    births, deaths = pairs[0]
    pairs[0] = np.append(births, _from_grid(volume.shape, first)), np.append(deaths, NEVER)
    return [pairs[dimension] for dimension in dimensions]


def _from_grid(shape: tuple[int, int, int], voxels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Flat index in the volume of voxels of the grid."""
    _, height, width = shape
    row, x = np.divmod(voxels.astype(np.int32), width + 2)
    z, y = np.divmod(row, height + 2)
    return (((z - 1) * height + y - 1) * width + x - 1).astype(np.int32)


def _lasting(values: Values, births: Int[ndarray, " m"], deaths: Int[ndarray, " m"]) -> Pairs:
    """The pairs with different values."""
    kept = values[births] != values[deaths]
    return births[kept], deaths[kept]
