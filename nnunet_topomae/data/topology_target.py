"""The input's side of the topological loss, computed in the loader's workers while the networks train."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.config import TopologyConfig
from nnunet_topomae.topology import PersistenceDiagrams, TopologyRegion, draw_region_origin, persistence_diagrams
from nnunet_topomae.types import Size3


class TargetTopology(NamedTuple):
    """Persistence diagrams of one crop's region, one a channel.

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
        region = TopologyRegion(self.config.region, self.config.region_size)
        origin = None
        if self.config.region == "crop":
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            origin = draw_region_origin(volume.shape[1:], self.config.region_size, generator)
        channels = region.extract(volume[None], origin)[0]
        diagrams = [persistence_diagrams(c, self.config.dimensions, self.config.backend) for c in channels]
        return TargetTopology(origin, diagrams)
