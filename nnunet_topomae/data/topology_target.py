"""The input's side of the topological loss, computed in the loader's workers while the networks train."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.config import TopologyConfig
from nnunet_topomae.topology import PersistenceDiagrams, TopologyRegion, draw_region_origin, persistence_diagrams
from nnunet_topomae.topology.workers import HungThreadsError, within
from nnunet_topomae.types import Size3

# Entries of a batch: the targets of its crops, or why there are none.
TARGETS, NO_TARGETS = "target_topology", "no_target_topology"


class TargetTopology(NamedTuple):
    """Persistence diagrams of one crop's region, one per channel.

    Attributes:
        origin: lowest voxel of the region in the crop; None for regions without an origin.
        diagrams: diagrams of the channels.
    """

    origin: Size3 | None
    diagrams: list[PersistenceDiagrams]


@dataclass(frozen=True)
class TopologyTarget:
    """Chooses the region of a crop and computes its persistence diagrams (paper Sec. II-A).

    Attributes:
        config: region policy, dimensions and backend.
    """

    config: TopologyConfig

    def __call__(self, volume: Float[Tensor, "C D H W"], rng: Generator) -> TargetTopology:
        """Diagrams of a crop after augmentation; a region of policy `crop` is drawn from ``rng``."""
        origin, region = self._region(volume, rng)
        return TargetTopology(origin, self._diagrams(region))

    def of_batch(self, volumes: Sequence[Float[Tensor, "C D H W"]], rngs: Sequence[Generator]) -> dict[str, Any]:
        """Entry of a batch: ``target_topology``, one per crop, or ``no_target_topology``, why there are none.

        None are there where they need longer than `topology.time_limit`, or where a library fails.

        Args:
            volumes: the crops after augmentation.
            rngs: their sources of randomness.

        Raises:
            ValueError: NaN or infinite values.
            HungThreadsError: several diagrams that were given up never end.
        """
        regions = [self._region(volume, rng) for volume, rng in zip(volumes, rngs, strict=True)]
        limit = self.config.time_limit
        try:
            found = within(limit, lambda: [self._diagrams(region) for _, region in regions])
        except TimeoutError:
            return {NO_TARGETS: f"the diagrams of the input needed more than {limit:g} s (topology.time_limit)"}
        except HungThreadsError:
            raise
        except (RuntimeError, MemoryError) as error:
            return {NO_TARGETS: f"the diagrams of the input: {type(error).__name__}: {error}"}
        targets = [TargetTopology(origin, diagrams) for (origin, _), diagrams in zip(regions, found, strict=True)]
        return {TARGETS: targets}

    def _region(
        self, volume: Float[Tensor, "C D H W"], rng: Generator
    ) -> tuple[Size3 | None, Float[Tensor, "C d h w"]]:
        """The lowest voxel of the region, and the region."""
        region = TopologyRegion(self.config.region, self.config.region_size)
        origin = None
        if self.config.region == "crop":
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            origin = draw_region_origin(volume.shape[1:], self.config.region_size, generator)
        return origin, region.extract(volume[None], origin)[0]

    def _diagrams(self, region: Float[Tensor, "C d h w"]) -> list[PersistenceDiagrams]:
        return [persistence_diagrams(c, self.config.dimensions, self.config.backend) for c in region]
