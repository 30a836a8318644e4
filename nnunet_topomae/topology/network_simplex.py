"""Exact matching without compiled kernels: numpy finds the candidate pairs, POT's network simplex matches them.

Its memory grows with the number of candidate pairs (about 80 bytes each) and its time faster than that. For the
diagrams of a converged reconstruction that is 0.2 s and 40 MB at 48^3, 2 s and 250 MB at 64^3, 40 s and 3 GB at 96^3.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

# A point of persistence 2s is matched within sqrt(2) s at most; the slack covers rounding.
_WINDOW_SLACK = 1.0 + 1e-9


class Solution(NamedTuple):
    """A matching of two sets of points in rotated coordinates, with the potentials that certify it.

    Attributes:
        partners: for every first point the index of its second point, -1 for the diagonal.
        first_potentials: dual variables of the first points.
        second_potentials: dual variables of the second points.
    """

    partners: Int[ndarray, " n"]
    first_potentials: Float[ndarray, " n"]
    second_potentials: Float[ndarray, " m"]


def candidate_pairs(
    first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"]
) -> tuple[Int[ndarray, " k"], Int[ndarray, " k"], Float[ndarray, " k"]]:
    """All pairs that are cheaper than sending both of their points to the diagonal.

    Args:
        first: columns midpoint m and half persistence s > 0.
        second: likewise.

    Returns:
        Indices into first and second, and the squared distances (|dm| + |ds|)^2.
    """
    octaves = np.floor(np.log2(second[:, 1])).astype(np.int64)
    found = []
    for octave in np.unique(octaves):
        members = np.flatnonzero(octaves == octave)
        members = members[np.argsort(second[members, 0], kind="stable")]
        # sqrt(s^2 + t^2) - |s - t| is largest where t is closest to s.
        closest = np.clip(first[:, 1], 2.0**octave, 2.0 ** (octave + 1))
        window = (np.hypot(first[:, 1], closest) - np.abs(first[:, 1] - closest)) * _WINDOW_SLACK
        start = np.searchsorted(second[members, 0], first[:, 0] - window, side="left")
        stop = np.searchsorted(second[members, 0], first[:, 0] + window, side="right")
        counts = stop - start
        rows = np.repeat(np.arange(len(first)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = members[np.repeat(start, counts) + offsets]
        costs = np.abs(first[rows] - second[columns]).sum(axis=1) ** 2
        useful = costs < first[rows, 1] ** 2 + second[columns, 1] ** 2
        found.append((rows[useful], columns[useful], costs[useful]))
    rows, columns, costs = (np.concatenate(part) for part in zip(*found, strict=True))
    return rows, columns, costs


def match(first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"]) -> Solution:
    """Optimal matching of two non-empty sets of points with positive persistence.

    The diagonal is one more node on either side that takes any number of points.

    Args:
        first: columns midpoint m and half persistence s > 0.
        second: likewise.

    Raises:
        RuntimeError: the solver did not reach the optimum.
    """
    from ot.lp.emd_wrap import emd_c_sparse

    n, m = len(first), len(second)
    rows, columns, costs = candidate_pairs(first, second)
    first_diagonal, second_diagonal = first[:, 1] ** 2, second[:, 1] ** 2
    sources = np.concatenate([rows, np.arange(n), np.full(m, n), [n]]).astype(np.uint64)
    targets = np.concatenate([columns, np.full(n, m), np.arange(m), [m]]).astype(np.uint64)
    weights = np.concatenate([costs, first_diagonal, second_diagonal, [0.0]])
    supply, demand = np.append(np.ones(n), float(m)), np.append(np.ones(m), float(n))
    flow_from, flow_to, flow, _, alpha, beta, code = emd_c_sparse(supply, demand, sources, targets, weights, 2**62)
    if code != 1:
        raise RuntimeError(f"the network simplex ended with code {code} on diagrams of {n} and {m} points")
    partners = np.full(n, -1, dtype=np.int64)
    pairs = (flow > 0.5) & (flow_from < n) & (flow_to < m)
    partners[flow_from[pairs].astype(np.int64)] = flow_to[pairs].astype(np.int64)
    # Rounding may leave potentials slightly infeasible: lower the second ones, then take the largest first ones.
    second_potentials = np.minimum(beta[:m] + alpha[n], second_diagonal)
    first_potentials = first_diagonal.copy()
    np.minimum.at(first_potentials, rows, costs - second_potentials[columns])
    return Solution(partners, first_potentials, second_potentials)
