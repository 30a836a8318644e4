"""Dimension 0: components are born at maxima and die where two of them meet."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.gradient import Gradient, Grid
from nnunet_topomae.topology.homology.lower_stars import lower_stars
from nnunet_topomae.topology.homology.meetings import CELL_BITS, find_meetings, merge


class Components(NamedTuple):
    """Pairs of dimension 0, in voxels of the grid.

    Attributes:
        births: voxel at which each component begins.
        deaths: voxel at which it meets an older one.
        dead_edges: of every voxel of the grid, the edges that are paired with a vertex, as bits. They bound no loop.
        loops: number of critical edges that are left; each closes a loop.
    """

    births: Int[ndarray, " n"]
    deaths: Int[ndarray, " n"]
    dead_edges: UInt[ndarray, " m"]
    loops: int


def pair_components(grid: Grid, gradient: Gradient) -> Components:
    """Merge components along the critical edges; the first component never dies.

    Uses up ``gradient.below`` and adds to ``gradient.dead_edges``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
    """
    ends = np.stack([np.zeros_like(grid.step), grid.step], axis=1).reshape(-1)
    met = find_meetings(grid, gradient, lower_stars().critical_edges, gradient.below, ends)
    voxels = met.cells >> CELL_BITS
    ended, at = merge(met, grid.rank[voxels], grid.rank[met.roots])
    edges = met.cells[at] & ((1 << CELL_BITS) - 1)
    np.bitwise_or.at(gradient.dead_edges, voxels[at], (1 << edges).astype(np.uint8))
    return Components(met.roots[ended], voxels[at], gradient.dead_edges, met.critical - len(at))
