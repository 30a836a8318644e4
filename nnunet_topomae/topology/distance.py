"""The 2-Wasserstein distance of two persistence diagrams and its gradient (paper Sec. II-A)."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nnunet_topomae.topology.matching import Matching, wasserstein_matching


def wasserstein_distance(first: Any, second: Any, tolerance: float = 0.0) -> Any:
    """2-Wasserstein distance of two persistence diagrams: the square root of the optimal matching's cost.

    W2(D, D')^2 = min over matchings of sum over pairs of max(|birth - birth'|, |death - death'|)^2
    + sum over all other points of ((birth - death) / 2)^2.

    With tensors the distance is differentiable: the optimal matching is kept and its cost differentiated. That is the
    gradient wherever the optimal matching is unique, which is almost everywhere. At distance 0 it is set to 0.

    Args:
        first: (n, 2) points (birth, death) as an array, a list or a tensor on any device, or a `PersistenceDiagram`;
            see `wasserstein_matching`.
        second: (m, 2) points, likewise.
        tolerance: relative gap of the squared distance at which the matching may stop; 0 is exact.

    Returns:
        The distance in the units of the points: a tensor if one of the diagrams is a tensor, else a float.

    Raises:
        ValueError: bad points or a bad tolerance.

    References:
        Cohen-Steiner, Edelsbrunner, Harer and Mileyko, Lipschitz functions have L_p-stable persistence, 2010.
        Leygonie, Oudot and Tillmann, A framework for differential calculus on persistence barcodes, 2022.

    Example:
        >>> wasserstein_distance([[4.0, 0.0]], [[4.5, 0.0]])
        0.5
        >>> points = torch.tensor([[4.0, 0.0]], requires_grad=True)
        >>> wasserstein_distance(points, [[4.5, 0.0]]).backward()
        >>> points.grad.tolist()  # a later birth of the point would bring it closer
        [[-1.0, 0.0]]
    """
    matching = wasserstein_matching(first, second, tolerance)
    like = next((points for points in (first, second) if isinstance(points, Tensor)), None)
    if like is None:
        return float(np.sqrt(matching.cost))
    ends = [
        given if isinstance(given, Tensor) else torch.from_numpy(points).to(like)
        for given, points in zip((first, second), matching.points, strict=True)
    ]
    return _Distance.apply(*ends, matching)


def matching_gradient(
    first: Float[ndarray, "n 2"], second: Float[ndarray, "m 2"], pairs: Int[ndarray, "k 2"]
) -> Float[ndarray, "m 2"]:
    """Gradient of a matching's cost with respect to the points of the second diagram, pairs held fixed.

    For a point (b, d) that goes to the diagonal, d cost / d (b, d) = ((b - d) / 2, (d - b) / 2). For a pair of (b', d')
    and (b, d) it is (2 (b - b'), 0) where the births differ by as much as the deaths or more, else (0, 2 (d - d')).

    Args:
        first: points (n, 2) of the first diagram.
        second: points (m, 2) of the second diagram.
        pairs: indices (k, 2) into both diagrams, as in `Matching.pairs`.

    Returns:
        Derivatives (m, 2) with respect to birth and death.

    References:
        Leygonie, Oudot and Tillmann, A framework for differential calculus on persistence barcodes, 2022.

    Example:
        >>> first, second = np.array([[4.0, 0.0]]), np.array([[4.5, 0.0], [1.0, 0.5]])
        >>> matching_gradient(first, second, np.array([[0, 0]])).tolist()  # the second point goes to the diagonal
        [[1.0, 0.0], [0.25, -0.25]]
    """
    half = (second[:, 0] - second[:, 1]) / 2
    gradient = np.stack([half, -half], axis=1)
    matched_first, matched = pairs[:, 0], pairs[:, 1]
    difference = second[matched] - first[matched_first]
    larger = (np.abs(difference[:, 1]) > np.abs(difference[:, 0])).astype(np.int64)
    rows = np.arange(len(pairs))
    gradient[matched] = 0.0
    gradient[matched, larger] = 2.0 * difference[rows, larger]
    return gradient


class _Distance(torch.autograd.Function):
    """Square root of a matching's cost, as a function of both diagrams' points."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, matching: Matching) -> Tensor:
        ctx.matching, ctx.like = matching, (first, second)
        like = first if first.is_floating_point() else second
        return like.new_tensor(np.sqrt(matching.cost))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        matching: Matching = ctx.matching
        first, second = matching.points
        factor = 0.0 if matching.cost == 0.0 else 0.5 / np.sqrt(matching.cost)
        slopes = (
            matching_gradient(second, first, matching.pairs[:, ::-1]) if ctx.needs_input_grad[0] else None,
            matching_gradient(first, second, matching.pairs) if ctx.needs_input_grad[1] else None,
        )
        found = [
            None if slope is None else upstream * torch.from_numpy(factor * slope).to(tensor).reshape(tensor.shape)
            for slope, tensor in zip(slopes, ctx.like, strict=True)
        ]
        return found[0], found[1], None
