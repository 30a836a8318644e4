"""The overall co-pre-training loss, every term under its own name (paper Sec. II-C, overall loss)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import Branch, BranchOutput, CoPretrainingOutput
from nnunet_topomae.config import PretrainingConfig, TopologyConfig
from nnunet_topomae.losses.consistency import reconstruction_consistency, spatial_consistency
from nnunet_topomae.losses.reconstruction import hidden_mse
from nnunet_topomae.losses.spatial import key_point_mse
from nnunet_topomae.topology import TopologicalLoss
from nnunet_topomae.types import KeyPoints, Scalar, Volume, VoxelMask


class TopologicalTerms(NamedTuple):
    """L_topo of the networks, (B-averaged) scalars; None for a network that is not trained."""

    vit: Scalar | None = None
    partner: Scalar | None = None


def compose_reconstruction(
    reconstruction: Volume, data: Volume, hidden: VoxelMask, composition: str, inside: VoxelMask | None = None
) -> Volume:
    """The volume whose topology is compared with the input's.

    Paper is silent on visible voxels, where MAE's output is never trained. ``paste`` takes the input's values there,
    ``full`` keeps the raw output. Padded voxels have the input's values (0) with both. So padding adds the same to
    both diagrams, a reconstruction without an error inside the volume has the distance 0, and no gradient reaches the
    network's output at padded voxels.

    Args:
        reconstruction: volume (B, C, D, H, W).
        data: the input, of the same shape.
        hidden: mask (B, 1, D, H, W), True = hidden.
        composition: ``paste`` or ``full``.
        inside: mask (B, 1, D, H, W), False at padded voxels; None where nothing is padded.

    Returns:
        float32 volume (B, C, D, H, W).
    """
    kept = hidden if composition == "paste" else None
    if inside is not None:
        kept = inside if kept is None else kept & inside
    return reconstruction.float() if kept is None else torch.where(kept, reconstruction.float(), data.float())


def build_topological_loss(config: TopologyConfig) -> TopologicalLoss | None:
    """L_topo with the settings of the plan.

    Args:
        config: the plan's section `topology`.

    Returns:
        The loss, or None where the plan leaves it out.
    """
    if not config.enabled:
        return None
    return TopologicalLoss(
        config.region,
        config.region_size,
        config.dimensions,
        config.normalisation,
        config.backend,
        config.threads,
        config.tolerance,
    )


def term_weights(pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True) -> dict[str, float]:
    """Weight of every term in the overall loss (paper Sec. II-C; lambdas 0.5, 0.1, 0.1).

    Args:
        pretraining: the lambdas, and whether there is a spatial task.
        topology: whether there is a topological term, and its extra factor `topology.weight` (paper: 1).
        with_vit: whether the plan has a ViT; without one the partner's loss is all.

    Returns:
        The weights by the names of the terms.

    Example:
        >>> weights = term_weights(PretrainingConfig(), TopologyConfig())
        >>> round(weights["mse_vit"], 6), round(weights["topo_vit"], 6), weights["rec_consis"]
        (0.4, 0.05, 0.1)
    """
    l1, l2, l3 = pretraining.lambda1, pretraining.lambda2, pretraining.lambda3
    if not with_vit:
        l1, l3 = 1.0, 0.0
    topo = l2 * topology.initial_weight if topology.enabled else 0.0
    branches = {"vit": 1.0 - l1, "partner": l1}
    weights = {"spa_consis": l3 if pretraining.spatial else 0.0, "rec_consis": l3}
    for name, share in branches.items():
        weights[f"mse_{name}"] = share * (1.0 - 2.0 * l2)
        weights[f"topo_{name}"] = share * topo
        weights[f"spa_{name}"] = share * l2 if pretraining.spatial else 0.0
    return weights


def trained_branches(
    pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True
) -> tuple[Branch, ...]:
    """The networks that are trained: those with a term whose weight is not 0. The other one need not compute.

    Args:
        pretraining: the lambdas, and whether there is a spatial task.
        topology: whether there is a topological term, and its extra factor.
        with_vit: whether the plan has a ViT.

    Returns:
        `vit`, `partner` or both.

    Raises:
        ValueError: every term has weight 0.
    """
    weights = term_weights(pretraining, topology, with_vit)
    consistency = weights["spa_consis"] + weights["rec_consis"]
    branches: tuple[Branch, ...] = ("vit", "partner")
    trained = tuple(
        name for name in branches if consistency + sum(weights[f"{term}_{name}"] for term in ("mse", "topo", "spa"))
    )
    if not trained:
        raise ValueError(
            f"lambda2 = {pretraining.lambda2} and lambda3 = {pretraining.lambda3} with pretraining.spatial = "
            f"{pretraining.spatial} and topology.enabled = {topology.enabled} leave every term of the loss with weight "
            "0. Lower pretraining.lambda2, or switch one of its terms on."
        )
    return trained


class CoPretrainingLoss(nn.Module):
    """Weighted sum of the eight terms.

    Attributes:
        weights: of every term.
        factors: further factors of some terms, which a training may adapt.

    Args:
        pretraining: lambdas.
        topology: whether the topological terms take part, and their extra factor.
        with_vit: whether the plan has a ViT.
    """

    def __init__(self, pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True) -> None:
        super().__init__()
        self.weights = term_weights(pretraining, topology, with_vit)
        self.factors: dict[str, float] = {}

    def forward(
        self,
        output: CoPretrainingOutput,
        data: Volume,
        hidden: VoxelMask,
        key_points: KeyPoints,
        topology: TopologicalTerms | None = None,
        topology_scale: float = 1.0,
        inside: VoxelMask | None = None,
    ) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            output: reconstructions and key points of the networks; None for a network that is not trained.
            data: the unmasked crop (B, C, D, H, W).
            hidden: voxel mask (B, 1, D, H, W), True = hidden.
            key_points: true key points (B, 9, 3).
            topology: the topological terms, or None in steps without them.
            topology_scale: factor of the topological weight, see config.TopologyConfig.training_factor.
            inside: voxel mask (B, 1, D, H, W), False at padded voxels, which no term counts; None where nothing is
                padded.

        Returns:
            the terms by name, unweighted, and their weighted sum as ``total``. Absent are the two ``topo_*`` entries
            without ``topology``, and the terms of a network that is not trained.
        """
        terms: dict[str, Tensor] = {}
        for name, branch in output.present().items():
            terms[f"mse_{name}"] = hidden_mse(branch.reconstruction, data, hidden, inside)
            terms[f"spa_{name}"] = key_point_mse(branch.key_points, key_points)
        vit, partner = output
        if vit is not None and partner is not None:
            terms |= self._consistency(vit, partner, hidden, inside)
        if topology is not None:
            terms |= {f"topo_{name}": term for name, term in topology._asdict().items() if term is not None}
        terms["total"] = torch.stack(list(self.weighted(terms, topology_scale).values())).sum()
        return terms

    @staticmethod
    def _consistency(
        vit: BranchOutput, partner: BranchOutput, hidden: VoxelMask, inside: VoxelMask | None
    ) -> dict[str, Tensor]:
        return {
            "spa_consis": spatial_consistency(vit.key_points, partner.key_points),
            "rec_consis": reconstruction_consistency(vit.reconstruction, partner.reconstruction, hidden, inside),
        }

    def weighted(self, terms: Mapping[str, Tensor], topology_scale: float = 1.0) -> dict[str, Tensor]:
        """What every term adds to ``total``.

        Args:
            terms: by name, unweighted; others than the terms of the sum, such as ``total``, are left out.
            topology_scale: as in :meth:`forward`.
        """
        scales = {name: topology_scale if name.startswith("topo_") else 1.0 for name in terms}
        return {
            name: self.weights[name] * self.factors.get(name, 1.0) * scales[name] * term
            for name, term in terms.items()
            if name in self.weights
        }
