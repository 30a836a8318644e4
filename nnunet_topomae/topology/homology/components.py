"""Dimension 0: components are born at maxima and die where two of them meet."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.gradient import Gradient, Grid, find, ranks_of
from nnunet_topomae.topology.homology.lower_stars import LowerStars, lower_stars
from nnunet_topomae.topology.homology.order import U
from nnunet_topomae.topology.solver.kernels import kernel


class Components(NamedTuple):
    """Pairs of dimension 0, in voxels of the grid.

    Attributes:
        births: voxel at which each component begins.
        deaths: voxel at which it meets an older one.
        dead_edges: of every voxel of the grid, the edges that are paired with a vertex, as bits. They bound no loop.
    """

    births: Int[ndarray, " n"]
    deaths: Int[ndarray, " n"]
    dead_edges: UInt[ndarray, " m"]


def pair_components(grid: Grid, gradient: Gradient) -> Components:
    """Merge components along the critical edges; the first component never dies.

    Uses up ``gradient.below`` and adds to ``gradient.dead_edges``.

    Args:
        grid: the volume with its margin.
        gradient: its discrete gradient.
    """
    stars = lower_stars()
    ranks = ranks_of(grid, gradient, stars.critical_edges)
    room = 6 * len(ranks)
    found = Components(np.empty(room, np.int32), np.empty(room, np.int32), gradient.dead_edges)
    count = _merge(grid, stars, gradient, ranks, found)
    return Components(found.births[:count], found.deaths[:count], found.dead_edges)


@kernel
def _merge(grid: Grid, stars: LowerStars, gradient: Gradient, ranks: ndarray, found: Components) -> int:
    count, below, rank = 0, gradient.below, grid.rank
    for at in ranks:
        voxel = grid.order[U(at)]
        dead = 0
        critical, edge = stars.critical_edges[U(gradient.star[U(voxel)])], 0
        while critical:
            if critical & 1:
                older, younger = find(below, voxel), find(below, voxel + grid.step[edge])
                if older != younger:
                    if rank[older] > rank[younger]:
                        older, younger = younger, older
                    below[younger] = older
                    found.births[count], found.deaths[count] = younger, voxel
                    dead |= 1 << edge
                    count += 1
            critical >>= 1
            edge += 1
        found.dead_edges[U(voxel)] |= dead
    return count
