"""The topological loss of the paper (Sec. II-A) with its exact gradient, computed in CPU threads."""

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_topomae.topology.backends import resolve_backend
from nnunet_topomae.topology.diagrams import PersistenceDiagrams, check_dimensions
from nnunet_topomae.topology.pending import (
    ChannelTerm,
    HostCopy,
    PendingLoss,
    diagrams_of,
    match_dimension,
    sum_dimensions,
)
from nnunet_topomae.topology.regions import TopologyRegion
from nnunet_topomae.topology.workers import shared_pool
from nnunet_topomae.types import Scalar

Origins = Sequence[int] | Sequence[Sequence[int]] | Tensor | None
Targets = Sequence[Sequence[PersistenceDiagrams]] | None


class TopologicalLoss(nn.Module):
    """L_topo = sqrt( sum_k W2(D_k, D'_k)^2 ), averaged over batch and channels (paper Sec. II-A).

    D_k is the k-th persistence diagram of the input, D'_k that of the reconstruction, and W2 the 2-Wasserstein
    distance. The gradient is exact. It goes to the voxels at which a class of the reconstruction is born or dies; the
    input gets none. If both have the same diagrams, the loss and its gradient are 0.

    Diagrams and matchings are computed in float64 in threads of the CPU; tensors on other devices are copied.

    Args:
        region: part of the volume that is compared: `full`, `crop` or `pool`, see `TopologyRegion`.
        region_size: edge of the region in voxels, for `crop` and `pool`.
        dimensions: homology dimensions in the sum: 0 components, 1 loops, 2 voids.
        normalisation: `paper` the distance itself, `per_voxel` divided by the square root of the region's voxels.
        backend: what computes persistent homology: `auto`, `native`, `cripser` or `gudhi`.
        threads: number of threads; 0 takes the number of cores, at most 8. All losses of a process with the same number
            share their threads.
        tolerance: relative gap at which a matching may stop, see `wasserstein_matching`; 0 is exact.

    Raises:
        ValueError: a value that is not allowed.

    Example:
        >>> volume = torch.zeros(1, 1, 3, 3, 3)
        >>> volume[..., 1, 1, 1] = 1.0  # one bright voxel: a component with birth 1 and death 0
        >>> reconstruction = (0.5 * volume).requires_grad_()
        >>> loss = TopologicalLoss(region="full")
        >>> pending = loss.start(volume, reconstruction)  # returns at once
        >>> value = pending.result()  # waits; same as loss(volume, reconstruction)
        >>> value.item()
        0.5
        >>> value.backward()
        >>> reconstruction.grad[..., 1, 1, 1].item()
        -1.0
    """

    def __init__(
        self,
        region: str = "full",
        region_size: int = 48,
        dimensions: Sequence[int] = (0, 1, 2),
        normalisation: str = "paper",
        backend: str = "auto",
        threads: int = 0,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"tolerance = {tolerance!r} must be at least 0 and below 1")
        if normalisation not in ("paper", "per_voxel"):
            raise ValueError(f"unknown normalisation {normalisation!r}; allowed: paper, per_voxel")
        self.region = TopologyRegion(region, region_size)
        self.dimensions = check_dimensions(dimensions)
        self.normalisation = normalisation
        self.backend = resolve_backend(backend)
        self.tolerance = tolerance
        self.pool = shared_pool(threads)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"region={self.region.policy!r}, region_size={self.region.size}, dimensions={self.dimensions}, "
            f"normalisation={self.normalisation!r}, backend={self.backend!r}, tolerance={self.tolerance:g}"
        )

    def forward(
        self,
        input: Tensor,
        reconstruction: Tensor,
        *,
        target_diagrams: Targets = None,
        region_origin: Origins = None,
    ) -> Scalar:
        """The loss of a batch; the arguments are those of `start`."""
        started = self.start(input, reconstruction, target_diagrams=target_diagrams, region_origin=region_origin)
        return started.result()

    def start(
        self,
        input: Tensor | None,
        reconstruction: Tensor,
        *,
        target_diagrams: Targets = None,
        region_origin: Origins = None,
    ) -> PendingLoss:
        """Start the computation in threads and return at once.

        Args:
            input: (B, C, D, H, W), (C, D, H, W) or (D, H, W), any real type; may be None with `target_diagrams`.
            reconstruction: same shape, float32 or float64.
            target_diagrams: diagrams of the input's region, ``target_diagrams[b][c]``, computed before, for example
                in the loader's workers. They save the input's persistent homology.
            region_origin: lowest voxel (D, H, W) of the region of policy `crop`, one for the batch or one for each
                sample; by default the region is centred.

        Raises:
            TypeError: a reconstruction that is no tensor, or of another type: half precision destroys the gradient's
                direction.
            ValueError: shapes that do not fit each other. Bad values are reported by :meth:`PendingLoss.result`.
        """
        if not isinstance(reconstruction, Tensor):
            raise TypeError(f"the reconstruction must be a tensor, got {type(reconstruction).__name__}")
        if reconstruction.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"the reconstruction must be float32 or float64, got {reconstruction.dtype}; "
                "run the reconstruction head outside autocast"
            )
        regions = self._regions(_as_batch(reconstruction, "reconstruction"), region_origin)
        if input is not None and input.shape != reconstruction.shape:
            raise ValueError(f"input {tuple(input.shape)} and reconstruction {tuple(reconstruction.shape)} differ")
        if target_diagrams is None:
            if input is None:
                raise ValueError("give the input or its target_diagrams")
            with torch.no_grad():
                targets = self._diagrams(self._regions(_as_batch(input, "input"), region_origin))
        else:
            targets = self._ready(target_diagrams, regions)
        terms = [
            self._term(target, diagrams) for target, diagrams in zip(targets, self._diagrams(regions), strict=True)
        ]
        scale = 1.0 if self.normalisation == "paper" else prod(regions.shape[2:]) ** -0.5
        return PendingLoss(regions, terms, scale)

    def _regions(self, volume: Tensor, origins: Origins) -> Tensor:
        """Regions of a batch, (B, C, D, H, W) -> (B, C, d, h, w)."""
        if self.region.policy == "pool" and not volume.is_floating_point():
            volume = volume.to(torch.float64)
        if origins is None or torch.as_tensor(origins).ndim == 1:
            return self.region.extract(volume, None if origins is None else torch.as_tensor(origins).tolist())
        rows = torch.as_tensor(origins).tolist()
        if len(rows) != volume.shape[0]:
            raise ValueError(f"{len(rows)} region origins for a batch of {volume.shape[0]}")
        return torch.cat([self.region.extract(volume[i : i + 1], row) for i, row in enumerate(rows)])

    def _diagrams(self, regions: Tensor) -> list["Future[PersistenceDiagrams]"]:
        """Start the persistent homology of every channel of every sample."""
        copy = HostCopy(regions)
        return [
            self.pool.submit(diagrams_of, copy, index, self.dimensions, self.backend)
            for index in np.ndindex(*regions.shape[:2])
        ]

    def _ready(self, given: Sequence[Sequence[PersistenceDiagrams]], regions: Tensor) -> list["Future[Any]"]:
        """Futures of diagrams that are known already."""
        batch, channels = regions.shape[:2]
        if len(given) != batch or any(len(sample) != channels for sample in given):
            sizes = [len(sample) for sample in given]
            raise ValueError(f"target_diagrams hold {sizes} channels for a batch of {batch} with {channels} channels")
        ready: list[Future[Any]] = []
        for diagrams in (one for sample in given for one in sample):
            if diagrams.volume_shape != tuple(regions.shape[2:]):
                raise ValueError(
                    f"target diagrams of a volume {diagrams.volume_shape} for a region {tuple(regions.shape[2:])}; "
                    "compute them on the same region"
                )
            ready.append(Future())
            ready[-1].set_result(diagrams)
        return ready

    def _term(self, target: "Future[Any]", diagrams: "Future[Any]") -> "Future[ChannelTerm]":
        """Chain the matchings of one channel behind its diagrams and the sum behind the matchings."""
        matchings = [
            self.pool.when_all([target, diagrams], partial(match_dimension, dimension, self.tolerance))
            for dimension in self.dimensions
        ]
        return self.pool.when_all([diagrams, *matchings], sum_dimensions)


def _as_batch(volume: Tensor, name: str) -> Tensor:
    """(D, H, W) or (C, D, H, W) -> (B, C, D, H, W)."""
    if not 3 <= volume.ndim <= 5 or volume.numel() == 0:
        raise ValueError(
            f"the {name} must have shape (B, C, D, H, W), (C, D, H, W) or (D, H, W), got {tuple(volume.shape)}"
        )
    return volume[(None,) * (5 - volume.ndim)]
