"""The overall co-pre-training loss, every term under its own name (paper Sec. II-C, overall loss)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.config import PretrainingConfig, TopologyConfig
from nnunet_topomae.losses.consistency import reconstruction_consistency, spatial_consistency, vector_consistency
from nnunet_topomae.losses.reconstruction import hidden_mse, inside_l1
from nnunet_topomae.losses.spatial import key_point_mse, vector_l1
from nnunet_topomae.losses.weights import term_weights
from nnunet_topomae.topology import TopologicalLoss
from nnunet_topomae.topology.workers import threads_of_process
from nnunet_topomae.types import KeyPoints, Scalar, VectorTargets, Volume, VoxelMask


class TopologicalTerms(NamedTuple):
    """L_topo of the networks, (B-averaged) scalars; None for a network that is not trained."""

    vit: Scalar | None = None
    partner: Scalar | None = None


class PoseTargets(NamedTuple):
    """What VectorPOSE's tasks ask for; None for a task that the plan does not have.

    Attributes:
        vectors: true vectors, and how much their angles count (B, 9, 4).
        boundaries: of the clean crop (B, C, D, H, W), in [0, 1].
    """

    vectors: VectorTargets | None = None
    boundaries: Volume | None = None


NO_POSE = PoseTargets()


def rebuilt_voxels(hidden: VoxelMask, output: CoPretrainingOutput) -> VoxelMask:
    """The voxels that the networks rebuild: hidden ones, or all where crops are corrupted.

    Args:
        hidden: mask (B, 1, D, H, W), True = hidden.
        output: of the networks; they also predict boundaries where crops are corrupted.
    """
    corrupted = any(branch.boundaries is not None for branch in output.present().values())
    return torch.ones_like(hidden) if corrupted else hidden


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


def build_topological_loss(
    config: TopologyConfig, processes: int = 1, log: Callable[[str], object] = str
) -> TopologicalLoss | None:
    """L_topo with the settings of the plan.

    Args:
        config: the plan's section `topology`.
        processes: of the training on this machine, which share its cores.
        log: is told where there are fewer threads than the plan asks for.

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
        threads_of_process(config.threads, processes, log),
        config.tolerance,
    )


class CoPretrainingLoss(nn.Module):
    """Weighted sum of the eight terms, or of those that the plan has in their place.

    Attributes:
        weights: of every term.
        factors: further factors of some terms, which a training may adapt.

    Args:
        pretraining: lambdas, spatial task and target of the reconstruction.
        topology: whether the topological terms take part, and their extra factor.
        with_vit: whether the plan has a ViT.
    """

    def __init__(self, pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True) -> None:
        super().__init__()
        self.weights = term_weights(pretraining, topology, with_vit)
        self.masks = pretraining.masks
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
        pose: PoseTargets = NO_POSE,
    ) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            output: what the networks predict; None for a network that is not trained.
            data: the crop (B, C, D, H, W), neither masked nor corrupted.
            hidden: voxel mask (B, 1, D, H, W), True = hidden; nothing is hidden if only boundaries are the target.
            key_points: true key points (B, 9, 3).
            topology: the topological terms, or None in steps without them.
            topology_scale: factor of the topological weight, see config.TopologyConfig.training_factor.
            inside: voxel mask (B, 1, D, H, W), False at padded voxels, which no term counts; None where nothing is
                padded.
            pose: true vectors and boundaries, where the networks predict them.

        Returns:
            the terms by name, unweighted, and their weighted sum as ``total``. Absent are the two ``topo_*`` entries
            without ``topology``, the terms of a network that is not trained, and of what it does not predict.
        """
        terms: dict[str, Tensor] = {}
        for name, branch in output.present().items():
            if self.masks:
                terms[f"mse_{name}"] = hidden_mse(branch.reconstruction, data, hidden, inside)
            if branch.boundaries is not None and pose.boundaries is not None:
                terms[f"clean_{name}"] = inside_l1(branch.reconstruction, data, inside)
                terms[f"edge_{name}"] = inside_l1(branch.boundaries, pose.boundaries, inside)
            if branch.key_points is not None:
                terms[f"spa_{name}"] = key_point_mse(branch.key_points, key_points)
            if branch.vectors is not None and pose.vectors is not None:
                terms[f"vec_{name}"] = vector_l1(branch.vectors, pose.vectors)
        vit, partner = output
        if vit is not None and partner is not None:
            terms |= self._consistency(vit, partner, rebuilt_voxels(hidden, output), inside, pose.vectors)
        if topology is not None:
            terms |= {f"topo_{name}": term for name, term in topology._asdict().items() if term is not None}
        terms["total"] = torch.stack(list(self.weighted(terms, topology_scale).values())).sum()
        return terms

    @staticmethod
    def _consistency(
        vit: BranchOutput,
        partner: BranchOutput,
        rebuilt: VoxelMask,
        inside: VoxelMask | None,
        vectors: VectorTargets | None,
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if vit.key_points is not None and partner.key_points is not None:
            terms["spa_consis"] = spatial_consistency(vit.key_points, partner.key_points)
        if vit.vectors is not None and partner.vectors is not None and vectors is not None:
            terms["vec_consis"] = vector_consistency(vit.vectors, partner.vectors, vectors)
        terms["rec_consis"] = reconstruction_consistency(vit.reconstruction, partner.reconstruction, rebuilt, inside)
        return terms

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
