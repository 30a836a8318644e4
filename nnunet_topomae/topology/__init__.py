"""Exact topological loss between 3D volumes (paper Sec. II-A); usable without nnU-Net.

The names below are imported on first use, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_topomae.topology.certificate import verify
    from nnunet_topomae.topology.diagrams import PersistenceDiagram, PersistenceDiagrams, persistence_diagrams
    from nnunet_topomae.topology.distance import matching_gradient, wasserstein_distance
    from nnunet_topomae.topology.loss import TopologicalLoss
    from nnunet_topomae.topology.matching import Matching, wasserstein_matching
    from nnunet_topomae.topology.pending import PendingLoss
    from nnunet_topomae.topology.regions import TopologyRegion, draw_region_origin

_HOMES = {
    "PersistenceDiagram": "diagrams",
    "PersistenceDiagrams": "diagrams",
    "persistence_diagrams": "diagrams",
    "PendingLoss": "pending",
    "TopologicalLoss": "loss",
    "Matching": "matching",
    "matching_gradient": "distance",
    "verify": "certificate",
    "wasserstein_distance": "distance",
    "wasserstein_matching": "matching",
    "TopologyRegion": "regions",
    "draw_region_origin": "regions",
}

__all__ = [
    "Matching",
    "PendingLoss",
    "PersistenceDiagram",
    "PersistenceDiagrams",
    "TopologicalLoss",
    "TopologyRegion",
    "draw_region_origin",
    "matching_gradient",
    "persistence_diagrams",
    "verify",
    "wasserstein_distance",
    "wasserstein_matching",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
