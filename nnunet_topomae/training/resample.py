"""Adapts pre-trained weights to networks of another patch size, spacing, token size or number of channels.

Two rules cover every weight that depends on the plan. Both leave equal sizes exactly as they are, and both treat
constant and linear fields exactly:

- Weights that **produce** a spatial field (position embeddings, transposed convolutions) produce the same field on
  the new grid: they are interpolated.
- Weights that take a spatial field as **input** (token embedding, strided convolutions, EPA's projection) respond to
  the same underlying field as before: the new weight is the old one times the matrix that interpolates fields from
  the new grid to the old one, the transposed interpolation.

The rules are our own; no publication describes them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.types import Size3


@dataclass(frozen=True)
class NetworkSize:
    """What decides the shapes of a network's weights, besides the architecture's section.

    Attributes:
        shape: the rule's sizes.
        channels: input channels.
    """

    shape: NetworkShape
    channels: int


def resampling_matrix(old: int, new: int) -> Float[Tensor, "new old"]:
    """Matrix that interpolates values at ``old`` cell centres to ``new`` cell centres of the same interval.

    A new value is the mean, over its cell, of the piecewise linear function through the old values, which is continued
    linearly to the edges. Constant and linear sequences are reproduced exactly; equal sizes give the identity.

    Args:
        old: number of old cells.
        new: number of new cells.

    Returns:
        float64 matrix (new, old) whose rows sum to 1.

    Example:
        >>> resampling_matrix(4, 2).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
        >>> (resampling_matrix(2, 4) @ torch.tensor([0.5, 1.5], dtype=torch.float64)).tolist()  # cell centres
        [0.25, 0.75, 1.25, 1.75]
    """
    if old == new:
        return torch.eye(old, dtype=torch.float64)
    if old == 1:
        return torch.ones(new, 1, dtype=torch.float64)
    samples = max(1, math.ceil(old / new))
    points = (torch.arange(new * samples, dtype=torch.float64) + 0.5) * old / (new * samples) - 0.5
    left = points.floor().clamp(0, old - 2).long()
    weight = points - left
    matrix = torch.zeros(new * samples, old, dtype=torch.float64)
    rows = torch.arange(new * samples)
    matrix[rows, left] = 1.0 - weight
    matrix[rows, left + 1] = weight
    return matrix.view(new, samples, old).mean(dim=1)  # (new * samples, old) -> (new, old)


def resample_written(weight: Float[Tensor, "*any d h w"], size: Size3) -> Float[Tensor, "*any d2 h2 w2"]:
    """Interpolate weights that produce a field, such as a position embedding.

    Args:
        weight: (..., d, h, w).
        size: new size of the last three axes.

    Returns:
        The same field on the new grid, (..., d2, h2, w2).
    """
    matrices = [resampling_matrix(old, new) for old, new in zip(weight.shape[-3:], size, strict=True)]
    return _along_axes(weight, matrices)


def resample_reading(weight: Float[Tensor, "*any d h w"], size: Size3) -> Float[Tensor, "*any d2 h2 w2"]:
    """Resample weights that take a field as input, such as a strided convolution.

    Args:
        weight: (..., d, h, w).
        size: new size of the last three axes.

    Returns:
        Weights (..., d2, h2, w2) whose response to a field on the new grid is that of the old weights to the same
        field on the old grid.

    Example:
        >>> weight = torch.tensor([[[1.0, 3.0]]])
        >>> resample_reading(weight, (1, 1, 4)).tolist()  # the sum stays: a constant field gives the same response
        [[[0.5, 0.5, 1.5, 1.5]]]
    """
    matrices = [resampling_matrix(new, old).t() for old, new in zip(weight.shape[-3:], size, strict=True)]
    return _along_axes(weight, matrices)


def spread_channels(weight: Float[Tensor, "out c *any"], channels: int) -> Float[Tensor, "out c2 *any"]:
    """Weights for another number of input channels.

    If the numbers are equal, the weights are returned as they are. Otherwise each new channel gets the mean over the
    old ones, scaled such that the output stays the same if all input channels are equal.

    Args:
        weight: (out, c, ...).
        channels: new number of input channels.

    Returns:
        Weights (out, c2, ...) of the same type.
    """
    old = weight.shape[1]
    if old == channels:
        return weight
    mean = weight.double().mean(dim=1, keepdim=True) * (old / channels)
    repeated = mean.expand(-1, channels, *weight.shape[2:])
    return repeated.to(weight.dtype).clone()


def repeat_rows(weight: Float[Tensor, "p *any"], count: int) -> Float[Tensor, "p2 *any"]:
    """Weights for another number of projected tokens in EPA.

    Args:
        weight: (p, ...), one row per projected token.
        count: new number of rows.

    Returns:
        The first ``count`` rows; if there are too few, they are repeated in order.
    """
    return weight[torch.arange(count) % weight.shape[0]]


def source_name(name: str, coarse_to_fine: Iterable[str], old: NetworkShape, new: NetworkShape) -> str:
    """Name of a weight's counterpart in the old network, which may not exist.

    Args:
        name: name in the new network.
        coarse_to_fine: beginnings of names in lists that are numbered from the coarsest stage on; their members belong
            together from the finest one on (architectures.roles.coarse_to_fine_prefixes).
        old: shape of the network that was pre-trained.
        new: shape of the network that is fine-tuned.

    Returns:
        The name in the old network.
    """
    for prefix in coarse_to_fine:
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            return f"{prefix}{int(number) + len(old.dims) - len(new.dims)}.{rest}"
    return name


def adapt(
    rule: Resampling | None, weight: Tensor, shape: torch.Size, old: NetworkSize, new: NetworkSize
) -> Tensor | None:
    """The weight of the new network, computed from its counterpart.

    Args:
        rule: what the network declares about the weight (architectures.roles.resampling_of).
        weight: the counterpart in the old network.
        shape: shape in the new network.
        old: the network that was pre-trained.
        new: the network that is fine-tuned.

    Returns:
        The weight in its new shape; None if the shapes differ for a reason that resampling does not cover.
    """
    if rule is Resampling.TOKEN_EMBEDDING:  # may differ in meaning where the shapes are equal
        adapted = _adapt_token_embedding(weight, old, new)
    elif weight.shape == shape:
        return weight
    elif rule is Resampling.WRITES_FIELD:
        adapted = resample_written(weight, _size(shape))
    elif rule is Resampling.READS_FIELD:
        adapted = resample_reading(spread_channels(weight, shape[1]), _size(shape))
    elif rule is Resampling.READS_FIELD_ROWS:
        adapted = repeat_rows(resample_reading(weight, _size(shape)), shape[0])
    elif rule is Resampling.ROWS:
        adapted = repeat_rows(weight, shape[0])
    elif rule is Resampling.CHANNELS:
        adapted = spread_channels(weight, shape[1])
    else:
        return None
    return adapted if adapted.shape == shape else None


def _adapt_token_embedding(weight: Tensor, old: NetworkSize, new: NetworkSize) -> Tensor:
    kernel = weight.view(len(weight), old.channels, *old.shape.token_size)  # (E, C * t) -> (E, C, t0, t1, t2)
    return resample_reading(spread_channels(kernel, new.channels), new.shape.token_size).flatten(1)


def _along_axes(weight: Tensor, matrices: list[Tensor]) -> Tensor:
    depth, height, width = matrices
    resampled = torch.einsum("...dhw,ad,bh,cw->...abc", weight.double(), depth, height, width)
    return resampled.to(weight.dtype).contiguous()


def _size(shape: torch.Size) -> Size3:
    return shape[-3], shape[-2], shape[-1]
