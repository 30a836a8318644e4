"""Exact 2-Wasserstein matching of persistence diagrams, with a certificate of optimality (paper Sec. II-A).

In the coordinates m = (birth + death) / 2 and s = (birth - death) / 2 the L-infinity distance of two points is
|dm| + |ds|, and the squared distance of a point to the diagonal is s^2. The matching minimises the sum of squared
distances; its linear-programming dual assigns a potential to every point such that no pair costs less than the sum
of its potentials and no point's potential exceeds its diagonal cost. The sum of all potentials is therefore a lower
bound of every matching's cost, and the two meet at the optimum.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nnunet_topomae.topology.solver import assignment, network_simplex
from nnunet_topomae.topology.solver.kernels import COMPILED
from nnunet_topomae.topology.solver.network_simplex import Solution, matching_cost

# Work allowed for one matching and for each of its points, in visits of tree leaves (about 0.1 microseconds each). Most
# volumes need about 200 per point; CT whose air was clipped to one value has needed more than 2,000.
BASE_BUDGET = 2_000_000
POINT_BUDGET = 10_000
# Diagrams of this many possible pairs of distinct points or fewer are matched by masses, if points repeat a lot.
MERGED_PAIRS = 4_000_000
_POT_INSTALLED = find_spec("ot") is not None

LARGEST_VALUE = 1e150

Points = Float[ndarray, "n 2"]


@dataclass(frozen=True, eq=False)
class Matching:
    """A matching of two persistence diagrams and the proof of how good it is.

    Attributes:
        cost: sum of the squared L-infinity distances over matched pairs and over unmatched points and the diagonal:
            the SQUARED 2-Wasserstein distance when the matching is optimal.
        lower_bound: sum of the potentials; no matching costs less.
        pairs: int64 (k, 2), indices into the first and the second diagram. All other points go to the diagonal.
        potentials: dual variables of the points of the first and of the second diagram.
        points: both diagrams, float64 (n, 2) and (m, 2).

    The potentials u and v are feasible: ``u_i + v_j <= cost of the pair (i, j)``, and neither is above its point's cost
    to the diagonal. So ``lower_bound = sum(u) + sum(v)`` is at most the cost of every matching, and

        gap = (cost - lower_bound) / cost

    is at least the relative excess of this one.

    References:
        Kuhn, The Hungarian method for the assignment problem, 1955.

    Example:
        >>> matching = wasserstein_matching([[4.0, 0.0]], [[4.5, 0.0], [1.0, 0.5]])
        >>> matching.pairs.tolist()
        [[0, 0]]
        >>> tuple(len(potentials) for potentials in matching.potentials)
        (1, 2)
        >>> matching.lower_bound <= matching.cost
        True
    """

    cost: float
    lower_bound: float
    pairs: Int[ndarray, "k 2"]
    potentials: tuple[Float[ndarray, " n"], Float[ndarray, " m"]]
    points: tuple[Float[ndarray, "n 2"], Float[ndarray, "m 2"]]

    @property
    def gap(self) -> float:
        """Relative distance between cost and lower bound; rounding only for an optimal matching."""
        return 0.0 if self.cost == 0.0 else (self.cost - self.lower_bound) / self.cost


def wasserstein_matching(first: Any, second: Any, tolerance: float = 0.0) -> Matching:
    """Optimal matching of two persistence diagrams for the 2-Wasserstein distance with L-infinity ground metric.

    It minimises (paper Sec. II-A)

        sum over pairs of max(|birth - birth'|, |death - death'|)^2
        + sum over all other points of ((birth - death) / 2)^2,

    where the second sum is the cost of matching a point with the diagonal. The solver is a forward and reverse auction
    (Bertsekas et al. 1993) followed by shortest augmenting paths (Jonker and Volgenant 1987).

    The work is bounded in proportion to the number of points. If an input reaches the bound, the matching is valid but
    maybe not optimal, and `Matching.gap` bounds the excess.

    Args:
        first: (n, 2) finite points (birth, death) as an array, list or tensor, or a `PersistenceDiagram`; either all
            births are at least the deaths (super-level sets) or all are at most the deaths (sub-level sets).
        second: (m, 2), likewise; n and m may be 0.
        tolerance: stop as soon as `Matching.gap` is at most this; 0 goes on to the optimum.

    Returns:
        The matching, its cost (the squared distance) and the dual certificate.

    Raises:
        ValueError: wrong shape, NaN, infinite or huge points (make essential classes finite first), points on both
            sides of the diagonal, or a tolerance that is negative or not below 1.

    References:
        Bertsekas, Castanon and Tsaknakis, Reverse auction and the solution of inequality constrained assignment
        problems, 1993. Jonker and Volgenant, A shortest augmenting path algorithm for dense and sparse linear
        assignment problems, 1987.

    Example:
        >>> matching = wasserstein_matching([[4.0, 0.0], [1.0, 0.8]], [[4.5, 0.0]])
        >>> matching.pairs.tolist()  # the short-lived point goes to the diagonal
        [[0, 0]]
        >>> round(matching.cost, 6)  # 0.5 ** 2 + 0.1 ** 2
        0.26
        >>> matching.gap < 1e-12
        True
    """
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance = {tolerance!r} must be at least 0 and below 1")
    given = _as_points(first, "first"), _as_points(second, "second")
    rotated = _rotate(*given)
    kept = [np.flatnonzero(points[:, 1] ** 2 > 0.0) for points in rotated]
    n, m = len(rotated[0]), len(rotated[1])
    potentials = np.zeros(n), np.zeros(m)
    partners = np.full(n, -1, dtype=np.int64)
    inner = [np.ascontiguousarray(points[keep]) for points, keep in zip(rotated, kept, strict=True)]
    solution = _solve(inner[0], inner[1], tolerance)
    potentials[0][kept[0]], potentials[1][kept[1]] = solution.first_potentials, solution.second_potentials
    matched = solution.partners >= 0
    partners[kept[0][matched]] = kept[1][solution.partners[matched]]
    rows = np.flatnonzero(partners >= 0)
    pairs = np.stack([rows, partners[rows]], axis=1)
    cost = matching_cost(rotated[0], rotated[1], partners)
    return Matching(cost, min(cost, float(potentials[0].sum() + potentials[1].sum())), pairs, potentials, given)


def _as_points(points: Any, name: str) -> Points:
    """``points`` as a float64 array (n, 2) of finite values."""
    if isinstance(points, Tensor):
        points = points.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(getattr(points, "points", points), dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"the {name} diagram must be an array (n, 2) of births and deaths, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"the {name} diagram has NaN or infinite points; give essential classes a finite death, "
            "as persistence_diagrams does"
        )
    if np.abs(array).max() > LARGEST_VALUE:
        raise ValueError(f"the {name} diagram has values beyond {LARGEST_VALUE:g}, whose squares overflow; rescale it")
    return array


def _rotate(first: Points, second: Float[ndarray, "m 2"]) -> tuple[Points, Float[ndarray, "m 2"]]:
    """Both diagrams in coordinates (m, s) with s >= 0."""
    values = np.concatenate([first.ravel(), second.ravel()])
    # Only differences matter, and midpoints of values far from 0 would lose digits.
    centre = (values.min() + values.max()) / 2 if values.size else 0.0
    rotated = [
        np.stack([((p[:, 0] - centre) + (p[:, 1] - centre)) / 2, (p[:, 0] - p[:, 1]) / 2], axis=1)
        for p in (first, second)
    ]
    halves = np.concatenate([rotated[0][:, 1], rotated[1][:, 1]])
    if (halves < 0).any():
        if (halves > 0).any():
            raise ValueError("births must be all at least or all at most the deaths, in both diagrams alike")
        for points in rotated:
            points[:, 1] *= -1.0
    return rotated[0], rotated[1]


def _solve(first: Points, second: Float[ndarray, "m 2"], tolerance: float) -> Solution:
    """Match points of positive persistence in rotated coordinates."""
    if len(first) == 0 or len(second) == 0:
        return Solution(np.full(len(first), -1, dtype=np.int64), first[:, 1] ** 2, second[:, 1] ** 2)
    if not COMPILED or (_POT_INSTALLED and _repetitive(first, second)):
        return network_simplex.match(first, second)
    return assignment.match(first, second, BASE_BUDGET + POINT_BUDGET * (len(first) + len(second)), tolerance)


def _repetitive(first: Points, second: Float[ndarray, "m 2"]) -> bool:
    """Whether most points repeat others and the distinct ones are few enough for a list of pairs."""
    distinct = [len(np.unique(points[:, 0] + 1j * points[:, 1])) for points in (first, second)]
    return 2 * sum(distinct) <= len(first) + len(second) and distinct[0] * distinct[1] <= MERGED_PAIRS
