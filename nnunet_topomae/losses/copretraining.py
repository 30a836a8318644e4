"""The overall co-pre-training loss, every term under its own name (paper Sec. II-C, overall loss)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import CoPretrainingOutput
from nnunet_topomae.config import PretrainingConfig, TopologyConfig
from nnunet_topomae.losses.consistency import reconstruction_consistency, spatial_consistency
from nnunet_topomae.losses.reconstruction import hidden_mse
from nnunet_topomae.losses.spatial import key_point_mse
from nnunet_topomae.topology import TopologicalLoss
from nnunet_topomae.types import KeyPoints, Scalar, Volume, VoxelMask

TERMS = (
    "mse_vit",
    "topo_vit",
    "spa_vit",
    "mse_unetrpp",
    "topo_unetrpp",
    "spa_unetrpp",
    "spa_consis",
    "rec_consis",
)


class TopologicalTerms(NamedTuple):
    """L_topo of both networks, (B-averaged) scalars."""

    vit: Scalar
    unetrpp: Scalar


def compose_reconstruction(reconstruction: Volume, data: Volume, hidden: VoxelMask, composition: str) -> Volume:
    """The volume whose topology is compared with the input's.

    Paper is silent on visible voxels, where MAE's output is never trained. ``paste`` takes the input's values there,
    ``full`` keeps the raw output.
    """
    if composition == "paste":
        return torch.where(hidden, reconstruction.float(), data.float())
    return reconstruction.float()


def build_topological_loss(config: TopologyConfig) -> TopologicalLoss | None:
    """L_topo with the plan's policy, or None where the plan leaves it out."""
    if not config.enabled:
        return None
    return TopologicalLoss(
        config.region, config.region_size, config.dimensions, config.normalisation, config.backend, config.threads
    )


def term_weights(pretraining: PretrainingConfig, topology: TopologyConfig) -> dict[str, float]:
    """Weight of every term in the overall loss (paper Sec. II-C; lambdas 0.5, 0.1, 0.1; `topology.weight` 1)."""
    l1, l2, l3 = pretraining.lambda1, pretraining.lambda2, pretraining.lambda3
    topo = l2 * topology.weight if topology.enabled else 0.0
    branches = {"vit": 1.0 - l1, "unetrpp": l1}
    weights = {"spa_consis": l3, "rec_consis": l3}
    for name, share in branches.items():
        weights[f"mse_{name}"] = share * (1.0 - 2.0 * l2)
        weights[f"topo_{name}"] = share * topo
        weights[f"spa_{name}"] = share * l2 if pretraining.spatial else 0.0
    return weights


class CoPretrainingLoss(nn.Module):
    """Weighted sum of the eight terms.

    Args:
        pretraining: lambdas.
        topology: whether the topological terms take part, and their extra factor.
    """

    def __init__(self, pretraining: PretrainingConfig, topology: TopologyConfig) -> None:
        super().__init__()
        self.weights = term_weights(pretraining, topology)

    def forward(
        self,
        output: CoPretrainingOutput,
        data: Volume,
        hidden: VoxelMask,
        key_points: KeyPoints,
        topology: TopologicalTerms | None = None,
        topology_scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            output: reconstructions and key points of both networks.
            data: the unmasked crop (B, C, D, H, W).
            hidden: voxel mask (B, 1, D, H, W), True = hidden.
            key_points: true key points (B, 9, 3).
            topology: the topological terms, or None in steps without them.
            topology_scale: warm-up factor of the topological weight, 0 to 1.

        Returns:
            the terms by name, unweighted, and their weighted sum as ``total``. Without ``topology`` the two
            ``topo_*`` entries are absent.
        """
        vit, unetrpp = output
        terms = {
            "mse_vit": hidden_mse(vit.reconstruction, data, hidden),
            "spa_vit": key_point_mse(vit.key_points, key_points),
            "mse_unetrpp": hidden_mse(unetrpp.reconstruction, data, hidden),
            "spa_unetrpp": key_point_mse(unetrpp.key_points, key_points),
            "spa_consis": spatial_consistency(vit.key_points, unetrpp.key_points),
            "rec_consis": reconstruction_consistency(vit.reconstruction, unetrpp.reconstruction, hidden),
        }
        if topology is not None:
            terms |= {"topo_vit": topology.vit, "topo_unetrpp": topology.unetrpp}
        terms["total"] = self._weighted_sum(terms, topology_scale)
        return terms

    def _weighted_sum(self, terms: Mapping[str, Tensor], topology_scale: float) -> Tensor:
        scales = {name: topology_scale if name.startswith("topo_") else 1.0 for name in terms}
        return torch.stack([self.weights[name] * scales[name] * term for name, term in terms.items()]).sum()
