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
from nnunet_topomae.topology.diagrams import PersistenceDiagrams, check_dimensions, check_level_sets
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
Target = Tensor | Sequence[Sequence[PersistenceDiagrams]]


class TopologicalLoss(nn.Module):
    """L_topo = sqrt( sum_k W2(D_k, D'_k)^2 ), averaged over batch and channels (paper Sec. II-A).

    D_k is the k-th persistence diagram of the input (the target), D'_k that of the reconstruction, and W2 the
    2-Wasserstein distance. The gradient is exact. It goes to the voxels at which a class of the reconstruction is born
    or dies; the target gets none. If both have the same diagrams, the loss and its gradient are 0.

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
        level_sets: `super` (bright structures, as in the paper) or `sub` (dark ones).
        spatial_dims: 3 for volumes (B, C, D, H, W), 2 for images (B, C, H, W).

    Raises:
        ValueError: a value that is not allowed.

    References:
        Waibel, Atwell, Meier, Marr and Rieck, Capturing shape information with multi-scale topological loss terms for
        3D reconstruction, 2022.

    Example:
        >>> volume = torch.zeros(1, 1, 3, 3, 3)
        >>> volume[..., 1, 1, 1] = 1.0  # one bright voxel: a component with birth 1 and death 0
        >>> reconstruction = (0.5 * volume).requires_grad_()
        >>> loss = TopologicalLoss(region="full")
        >>> pending = loss.start(reconstruction, volume)  # returns at once
        >>> value = pending.result()  # waits; same as loss(reconstruction, volume)
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
        level_sets: str = "super",
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"tolerance = {tolerance!r} must be at least 0 and below 1")
        if normalisation not in ("paper", "per_voxel"):
            raise ValueError(f"unknown normalisation {normalisation!r}; allowed: paper, per_voxel")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims = {spatial_dims!r} must be 2 (images) or 3 (volumes)")
        self.region = TopologyRegion(region, region_size)
        self.dimensions = check_dimensions(dimensions)
        self.normalisation = normalisation
        self.backend = resolve_backend(backend)
        self.tolerance = tolerance
        self.level_sets = check_level_sets(level_sets)
        self.spatial_dims = spatial_dims
        self.pool = shared_pool(threads)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"region={self.region.policy!r}, region_size={self.region.size}, dimensions={self.dimensions}, "
            f"normalisation={self.normalisation!r}, backend={self.backend!r}, tolerance={self.tolerance:g}, "
            f"level_sets={self.level_sets!r}, spatial_dims={self.spatial_dims}"
        )

    def forward(self, reconstruction: Tensor, target: Target, *, region_origin: Origins = None) -> Scalar:
        """The loss of a batch; the arguments are those of `start`."""
        return self.start(reconstruction, target, region_origin=region_origin).result()

    def start(self, reconstruction: Tensor, target: Target, *, region_origin: Origins = None) -> PendingLoss:
        """Start the computation in threads and return at once.

        Args:
            reconstruction: (B, C, D, H, W), (C, D, H, W) or (D, H, W), float32 or float64; without D for images.
            target: the input, a tensor of the same shape and any real type; or the diagrams of its region,
                ``target[b][c]``, computed before, for example in the loader's workers. They save the persistent
                homology of the input.
            region_origin: lowest voxel (D, H, W) of the region of policy `crop`, one for the batch or one for each
                sample; by default the region is centred.

        Raises:
            TypeError: a reconstruction that is no tensor, or of another type: half precision destroys the gradient's
                direction. A target that is neither a tensor nor diagrams, or a target that needs a gradient while the
                reconstruction needs none, as when the two are swapped.
            ValueError: shapes that do not fit each other. Bad values are reported by :meth:`PendingLoss.result`.
        """
        if not isinstance(reconstruction, Tensor):
            raise TypeError(f"the reconstruction must be a tensor, got {type(reconstruction).__name__}")
        if reconstruction.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"the reconstruction must be float32 or float64, got {reconstruction.dtype}; "
                "run the reconstruction head outside autocast"
            )
        regions = self._regions(self._as_batch(reconstruction, "reconstruction"), region_origin)
        if isinstance(target, Tensor):
            if target.shape != reconstruction.shape:
                raise ValueError(
                    f"reconstruction {tuple(reconstruction.shape)} and target {tuple(target.shape)} differ"
                )
            if target.requires_grad and not reconstruction.requires_grad:
                raise TypeError(
                    "the target needs a gradient, the reconstruction needs none: pass (reconstruction, target)"
                )
            targets = self._diagrams(self._regions(self._as_batch(target.detach(), "target"), region_origin))
        else:
            targets = self._ready(target, regions)
        terms = [
            self._term(target, diagrams) for target, diagrams in zip(targets, self._diagrams(regions), strict=True)
        ]
        scale = 1.0 if self.normalisation == "paper" else prod(regions.shape[2:]) ** -0.5
        return PendingLoss(regions, terms, scale)

    def _regions(self, volume: Tensor, origins: Origins) -> Tensor:
        """Regions of a batch, (B, C, D, H, W) -> (B, C, d, h, w)."""
        if self.region.policy == "pool" and not volume.is_floating_point():
            volume = volume.to(torch.float64)
        if origins is None:
            return self.region.extract(volume)
        places = torch.as_tensor(origins)
        if self.spatial_dims == 2:
            places = nn.functional.pad(places, (1, 0))  # (H, W) -> (D, H, W)
        rows = places.tolist()
        if places.ndim == 1:
            return self.region.extract(volume, rows)
        if len(rows) != volume.shape[0]:
            raise ValueError(f"{len(rows)} region origins for a batch of {volume.shape[0]}")
        return torch.cat([self.region.extract(volume[i : i + 1], row) for i, row in enumerate(rows)])

    def _diagrams(self, regions: Tensor) -> list["Future[PersistenceDiagrams]"]:
        """Start the persistent homology of every channel of every sample."""
        copy = HostCopy(regions)
        return [
            self.pool.submit(
                diagrams_of, copy, index, self.dimensions, self.backend, self.level_sets, self.pool.threads
            )
            for index in np.ndindex(*regions.shape[:2])
        ]

    def _ready(self, given: Sequence[Sequence[PersistenceDiagrams]], regions: Tensor) -> list["Future[Any]"]:
        """Futures of diagrams that are known already."""
        if not isinstance(given, Sequence):
            raise TypeError(f"the target must be a tensor or diagrams target[b][c], got {type(given).__name__}")
        batch, channels = regions.shape[:2]
        if len(given) != batch or any(len(sample) != channels for sample in given):
            sizes = [len(sample) for sample in given]
            raise ValueError(
                f"the target holds diagrams of {sizes} channels for a batch of {batch} with {channels} channels"
            )
        ready: list[Future[Any]] = []
        for diagrams in (one for sample in given for one in sample):
            if (1,) * (3 - len(diagrams.volume_shape)) + diagrams.volume_shape != tuple(regions.shape[2:]):
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

    def _as_batch(self, volume: Tensor, name: str) -> Tensor:
        """(D, H, W) or (C, D, H, W) -> (B, C, D, H, W); of images (B, C, H, W) likewise, with D = 1."""
        axes = self.spatial_dims
        if not axes <= volume.ndim <= axes + 2 or volume.numel() == 0:
            names = ("B", "C", "D", "H", "W") if axes == 3 else ("B", "C", "H", "W")
            allowed = ", ".join(f"({', '.join(names[start:])})" for start in (0, 1, 2))
            raise ValueError(f"the {name} must have one of the shapes {allowed}, got {tuple(volume.shape)}")
        if axes == 2:
            volume = volume.unsqueeze(-3)  # (..., H, W) -> (..., 1, H, W)
        return volume[(None,) * (5 - volume.ndim)]
