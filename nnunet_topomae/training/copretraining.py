"""The forward pass of a pre-training step, with all terms of the loss."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.config import TopologyConfig
from nnunet_topomae.data.topology_target import NO_TARGETS, TARGETS, TargetTopology
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, PoseTargets, TopologicalTerms, compose_reconstruction
from nnunet_topomae.masking import CropMask, crop_mask, empty_token_mask, inside_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import PendingLoss, TopologicalLoss
from nnunet_topomae.training.skipping import MissingTerms
from nnunet_topomae.types import Scalar, Volume, VoxelMask

# Larger gaps of L_topo are more than rounding.
EXACT_GAP = 1e-9


class CoPretrainingStep:
    """Forward pass of the networks and all loss terms of one batch (paper Fig. 2 and Sec. II).

    The ViT runs first; its persistent homology is computed in threads while its partner runs.

    Args:
        network: callable ``(data, mask, on_vit)``, see architectures.copretraining.CoPretrainingNetwork.
        loss: overall loss.
        topological_loss: L_topo, or None to leave it out.
        plan: token grid, mask ratio, composition of the reconstructed volume.
        device: device of the network.
        log: is told of steps without the topological term.
    """

    def __init__(
        self,
        network: Callable[..., CoPretrainingOutput],
        loss: CoPretrainingLoss,
        topological_loss: TopologicalLoss | None,
        plan: Plan,
        device: torch.device,
        log: Callable[[str], object] = str,
    ) -> None:
        self.log = log
        self.missing = MissingTerms()
        self.network: Callable[..., CoPretrainingOutput] = network
        self.loss = loss
        self.topological_loss = topological_loss
        self.plan = plan
        self.device = device

    def __call__(
        self, batch: Mapping[str, Any], generator: Generator | Sequence[int], topology_scale: float
    ) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            batch: from data.loaders.CropLocationLoader; without ``target_topology`` L_topo is not computed (and missing
                where ``no_target_topology`` says why), without ``locations`` no voxel is taken for padding, without
                ``inputs`` the networks see the clean crops.
            generator: source of the token masks, on the CPU: the ViT lists its visible tokens there. Or a seed per
                sample: the batch's ``mask_seeds``.
            topology_scale: factor of L_topo's weight, see config.TopologyConfig.training_factor; at 0 the term is not
                computed.

        Returns:
            the terms by name, see losses.copretraining.CoPretrainingLoss. ``topo_gap`` is there only if L_topo is not
            exact: the largest relative gap of its matchings.
        """
        mask = draw_mask(self.plan, len(batch["data"]), generator, self.device)
        data, key_points = self._move(batch["data"]), self._move(batch["key_points"])
        inputs = self._move(batch["inputs"]) if "inputs" in batch else data
        pose = PoseTargets(*(self._move(batch[name]) if name in batch else None for name in PoseTargets._fields))
        inside = inside_mask(batch.get("locations", ()), self.device)
        if not self._has_target(batch, topology_scale):
            output = self.network(inputs, mask)
            terms: dict[str, Tensor] = self.loss(output, data, mask.hidden, key_points, inside=inside, pose=pose)
            return terms
        pending: dict[str, PendingLoss] = {}
        rebuilt = torch.ones_like(mask.hidden) if "inputs" in batch else mask.hidden

        def start_vit(branch: BranchOutput) -> None:
            pending["vit"] = self._start_topology(branch.reconstruction, data, rebuilt, inside, batch)

        output = self.network(inputs, mask, torch.compiler.disable(start_vit))
        if output.partner is not None:
            pending["partner"] = self._start_topology(output.partner.reconstruction, data, rebuilt, inside, batch)
        topology, gap = self._finish_topology(pending, output, batch.get("keys", ()))
        terms = self.loss(output, data, mask.hidden, key_points, topology, topology_scale, inside, pose)
        if gap > EXACT_GAP:
            terms["topo_gap"] = terms["total"].new_full((), gap)
        return terms

    def _move(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)

    def _has_target(self, batch: Mapping[str, Any], topology_scale: float) -> bool:
        """Whether L_topo is computed; where only its targets are missing, that is counted and logged."""
        if self.topological_loss is None or topology_scale == 0.0:
            return False
        if NO_TARGETS in batch:
            self.log(self.missing.missing(batch[NO_TARGETS], batch.get("keys", ())))
        return TARGETS in batch

    def _finish_topology(
        self, pending: Mapping[str, PendingLoss], output: CoPretrainingOutput, cases: Iterable[str]
    ) -> tuple[TopologicalTerms, float]:
        """The topological terms that are there in time, and their largest gap."""
        found: dict[str, Scalar] = {}
        gap = 0.0
        reason = ""
        limit = self.plan.config.topology.time_limit
        for name, loss in pending.items():
            try:
                found[name] = loss.result(limit)
                gap = max(gap, loss.gap)
            except TimeoutError:
                reason = f"its threads needed more than {limit:g} s (topology.time_limit)"
            except ValueError:
                reconstruction: Tensor = getattr(output, name).reconstruction
                if torch.isfinite(reconstruction).all():
                    raise
                found[name] = reconstruction.float().sum() * torch.nan  # the step is skipped then
            except (RuntimeError, MemoryError) as error:
                reason = f"{type(error).__name__}: {error}"
        if reason:
            self.log(self.missing.missing(reason, cases))
        else:
            self.missing.there()
        return TopologicalTerms(**found), gap

    def _start_topology(
        self,
        reconstruction: Volume,
        data: Volume,
        hidden: VoxelMask,
        inside: VoxelMask | None,
        batch: Mapping[str, Any],
    ) -> PendingLoss:
        assert self.topological_loss is not None
        composition = self.plan.config.topology.composition
        composed = compose_reconstruction(reconstruction, data, hidden, composition, inside)
        targets: Sequence[TargetTopology] = batch[TARGETS]
        origins = [target.origin for target in targets if target.origin is not None]
        return self.topological_loss.start(
            composed, [target.diagrams for target in targets], region_origin=origins or None
        )


def draw_mask(plan: Plan, batch: int, generator: Generator | Sequence[int], device: torch.device) -> CropMask:
    """What a plan hides of a batch of crops: random tokens, or nothing where only boundaries are the target.

    Args:
        plan: token grid and mask ratio.
        batch: number of crops.
        generator: on the CPU, or a seed per crop.
        device: of the result.
    """
    pretraining, shape = plan.config.pretraining, plan.shape
    if pretraining.masks:
        tokens = random_token_mask(batch, shape.token_grid, pretraining.mask_ratio, generator)
    else:
        tokens = empty_token_mask(batch, shape.token_grid)
    return crop_mask(tokens, shape.token_size, device)


def warn_of_long_warmup(topology: TopologyConfig, epochs: int, log: Callable[[str], object]) -> None:
    """Say so where a training ends before L_topo has its full weight.

    Args:
        topology: the plan's section `topology`.
        epochs: of the training.
        log: is told.
    """
    most = topology.warmup_factor(epochs - 1)
    if topology.enabled and most < 1:
        log(
            f"warning: the weight of L_topo rises over {topology.warmup_epochs} epochs, and this training has "
            f"{epochs}: its last one has {most:.0%} of it. Lower topology.warmup_epochs."
        )


def detach_terms(terms: Mapping[str, Scalar]) -> dict[str, float]:
    """The terms as Python floats, one transfer for all of them."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))
