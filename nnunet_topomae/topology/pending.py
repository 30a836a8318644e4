"""The steps of the topological loss that run in threads, and the tensor that comes out of them."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from nnunet_topomae.topology.diagrams import PersistenceDiagrams, persistence_diagrams
from nnunet_topomae.topology.distance import matching_gradient
from nnunet_topomae.topology.matching import wasserstein_matching
from nnunet_topomae.types import Scalar


class DimensionTerm(NamedTuple):
    """Squared distance in one homology dimension, and its gradient with respect to the reconstruction's points.

    Attributes:
        dimension: homology dimension.
        cost: squared 2-Wasserstein distance.
        gradient: derivative of ``cost`` with respect to birth and death of every point (n, 2).
        gap: largest possible relative excess of ``cost``; rounding only for an exact matching.
    """

    dimension: int
    cost: float
    gradient: Float[ndarray, "n 2"]
    gap: float


class ChannelTerm(NamedTuple):
    """Loss of one channel of one sample, and its gradient with respect to the voxels of the region.

    Attributes:
        value: the loss.
        gradient: array of the region's shape.
        gap: the largest of its dimensions.
    """

    value: float
    gradient: Float[ndarray, "..."]
    gap: float


class HostCopy:
    """The values of a tensor in CPU memory; a copy from a GPU is awaited by the thread that reads it."""

    def __init__(self, tensor: Tensor) -> None:
        values = tensor.detach()
        self._event: Any = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.cpu().clone()

    def read(self, index: tuple[int, ...]) -> Tensor:
        """The entry ``index`` of the leading axes, once it has arrived.

        Args:
            index: such as (sample, channel).
        """
        if self._event is not None:
            self._event.synchronize()
        return self._values[index]


def diagrams_of(
    copy: HostCopy, index: tuple[int, ...], dimensions: tuple[int, ...], backend: str, level_sets: str, threads: int
) -> PersistenceDiagrams:
    """Persistence diagrams of one channel of one sample.

    Args:
        copy: regions (B, C, d, h, w).
        index: sample and channel.
        dimensions: homology dimensions.
        backend: library for persistent homology.
        level_sets: `super` or `sub`.
        threads: as of `persistence_diagrams`.

    Returns:
        The diagrams.
    """
    return persistence_diagrams(copy.read(index), dimensions, backend, level_sets, threads)


def match_dimension(
    dimension: int, tolerance: float, target: PersistenceDiagrams, diagrams: PersistenceDiagrams
) -> DimensionTerm:
    """Squared distance of the diagrams of one dimension, and its gradient.

    Args:
        dimension: homology dimension.
        tolerance: relative gap at which the matching may stop.
        target: diagrams of the input.
        diagrams: diagrams of the reconstruction.

    Returns:
        The distance and its gradient with respect to the reconstruction's points.
    """
    first, second = target[dimension].points, diagrams[dimension].points
    matching = wasserstein_matching(first, second, tolerance)
    return DimensionTerm(dimension, matching.cost, matching_gradient(first, second, matching.pairs), matching.gap)


def sum_dimensions(diagrams: PersistenceDiagrams, *terms: DimensionTerm) -> ChannelTerm:
    """L = sqrt(sum_k cost_k) and dL/dI' = sum_k dcost_k/dI' / (2 L); at L = 0 the subgradient 0 (paper Sec. II-A).

    Args:
        diagrams: diagrams of the reconstruction, which say which voxel gives each birth and death.
        terms: one per homology dimension.

    Returns:
        The loss of the channel and its gradient with respect to the voxels.
    """
    value = float(np.sqrt(sum(term.cost for term in terms)))
    size = int(np.prod(diagrams.volume_shape))
    if value == 0.0:
        return ChannelTerm(value, np.zeros(diagrams.volume_shape), 0.0)
    entries = [diagrams[term.dimension] for term in terms]
    voxels = np.concatenate([index for entry in entries for index in (entry.birth_voxels, entry.death_voxels)])
    slopes = np.concatenate([term.gradient[:, end] for term in terms for end in (0, 1)])
    gradient = np.bincount(voxels, weights=slopes, minlength=size) / (2.0 * value)
    gap = max(term.gap for term in terms)
    return ChannelTerm(value, gradient.reshape(diagrams.volume_shape), gap)  # (d*h*w,) -> (d, h, w)


class PendingLoss:
    """A topological loss that is being computed; `TopologicalLoss.start` returns one.

    Its `result` is ``mean over b, c of scale * sqrt(sum_k W2(D_k, D'_k)^2)`` for the regions (B, C, d, h, w), where
    ``scale`` is 1 or, with ``normalisation="per_voxel"``, ``(d * h * w) ** -0.5``.

    References:
        Waibel, Atwell, Meier, Marr and Rieck, Capturing shape information with multi-scale topological loss terms for
        3D reconstruction, 2022.

    Example:
        >>> from nnunet_topomae.topology import TopologicalLoss
        >>> made = torch.tensor([[[1.0, 0.0, 3.0]]], requires_grad=True)
        >>> pending = TopologicalLoss().start(made, torch.tensor([[[0.0, 0.0, 3.0]]]))
        >>> pending.result().backward()  # waits; one peak of height 1 is too many
        >>> pending.done(), pending.gap < 1e-12
        (True, True)
        >>> made.grad.sign().tolist()
        [[[1.0, -1.0, 0.0]]]
    """

    def __init__(self, regions: Tensor, terms: Sequence["Future[ChannelTerm]"], scale: float) -> None:
        self._regions = regions
        self._terms = terms
        self._scale = scale

    def done(self) -> bool:
        """Whether `result` would return without waiting."""
        return all(term.done() for term in self._terms)

    @property
    def gap(self) -> float:
        """Proven bound of the relative excess of the squared distances; waits for the threads.

        It is rounding only where all matchings are exact. Otherwise the tolerance or the bound of the work stopped one,
        and the loss is at most a factor of 1 / sqrt(1 - gap) too large.
        """
        return max(term.result().gap for term in self._terms)

    def result(self, timeout: float | None = None) -> Scalar:
        """Wait for the threads and return the loss, differentiable by the reconstruction.

        Args:
            timeout: seconds to wait at most; the threads go on after them. None waits for ever.

        Raises:
            ValueError: NaN or infinite values in the input or the reconstruction.
            TimeoutError: the threads need longer.
        """
        end = None if timeout is None else time.monotonic() + timeout
        terms = [term.result(None if end is None else max(0.0, end - time.monotonic())) for term in self._terms]
        scale = self._scale / len(terms)
        value = scale * sum(term.value for term in terms)
        gradient = np.stack([scale * term.gradient for term in terms]).reshape(self._regions.shape)  # (B*C, d, h, w)
        moved = torch.from_numpy(gradient).to(self._regions.dtype).to(self._regions.device, non_blocking=True)
        result: Tensor = _KnownGradient.apply(self._regions, value, moved)
        return result


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient was computed elsewhere."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor, value: float, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return regions.new_full((), value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
