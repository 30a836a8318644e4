"""Checks a matching from its definition, without the solver."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nnunet_topomae.topology.matching import Matching

# Pairs that are looked at together, so that memory stays small.
_BLOCK = 4_000_000


def verify(matching: Matching) -> float:
    """Check a matching, and prove how good it is, by looking at every pair of points.

    The check trusts nothing but the points and the potentials v of the second diagram. With v_j at most the cost of the
    diagonal, every potential u_i = min(diagonal_i, min_j (cost_ij - v_j)) is feasible, so the sum of all u_i and v_j is
    a lower bound of every matching's cost (weak duality). The time grows with n * m: about a second for 10,000 points
    on either side.

    Args:
        matching: as from `wasserstein_matching`.

    Returns:
        The proven relative gap: the optimum is at least ``(1 - gap) * matching.cost``. For an optimal matching it is
        rounding only, of either sign.

    Raises:
        ValueError: a point is matched twice or does not exist, or the cost is not that of the pairs.

    References:
        Kuhn, The Hungarian method for the assignment problem, 1955 (the bound).

    Example:
        >>> from nnunet_topomae.topology import wasserstein_matching
        >>> matching = wasserstein_matching([[4.0, 0.0], [1.0, 0.8]], [[4.5, 0.0]])
        >>> abs(verify(matching)) < 1e-12
        True
    """
    first, second = matching.points
    diagonals = [((points[:, 0] - points[:, 1]) / 2) ** 2 for points in (first, second)]
    cost = _cost_of_pairs(matching, *diagonals)
    if abs(cost - matching.cost) > 1e-12 * cost:
        raise ValueError(f"the pairs cost {cost!r}, but the matching says {matching.cost!r}")
    bound = float((least := np.minimum(matching.potentials[1], diagonals[1])).sum())
    rows = max(1, _BLOCK // max(1, len(second)))
    for start in range(0, len(first), rows):
        part = first[start : start + rows]
        reduced = np.abs(part[:, None] - second[None]).max(axis=2) ** 2 - least
        bound += float(np.minimum(diagonals[0][start : start + rows], reduced.min(axis=1, initial=np.inf)).sum())
    return 0.0 if cost == 0.0 else (cost - bound) / cost


def _cost_of_pairs(
    matching: Matching, first_diagonal: Float[ndarray, " n"], second_diagonal: Float[ndarray, " m"]
) -> float:
    """Sum of the squared distances of the pairs, and of the other points to the diagonal."""
    rows, columns = matching.pairs.T
    for name, index, size in (("first", rows, len(first_diagonal)), ("second", columns, len(second_diagonal))):
        if len(np.unique(index)) != len(index) or (len(index) and not 0 <= index.min() <= index.max() < size):
            raise ValueError(f"the pairs use points of the {name} diagram twice, or points that it does not have")
    first, second = matching.points
    paired = np.abs(first[rows] - second[columns]).max(axis=1, initial=0.0) ** 2
    alone = np.delete(first_diagonal, rows), np.delete(second_diagonal, columns)
    return float(paired.sum() + alone[0].sum() + alone[1].sum())
