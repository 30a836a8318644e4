"""One training step: mixed precision, all terms of the loss, gradient scaling, clipping and the optimiser call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Generator, GradScaler, Tensor, nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.data.topology_target import TargetTopology
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, TopologicalTerms, compose_reconstruction
from nnunet_topomae.masking import crop_mask, inside_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import PendingLoss, TopologicalLoss
from nnunet_topomae.training.devices import is_distributed
from nnunet_topomae.training.skipping import MissingTerms, SkippedSteps
from nnunet_topomae.types import Scalar, Volume, VoxelMask

# Larger gaps of L_topo are more than rounding.
EXACT_GAP = 1e-9


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision on CUDA; nothing elsewhere, as in nnU-Net."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


def optimise(
    terms: Mapping[str, Tensor] | Tensor,
    network: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    clip: float,
    cases: Iterable[str],
    skipped: SkippedSteps | None = None,
) -> bool:
    """Do one optimiser step. Gradients are freed at its end, so that they take no memory in the next forward pass.

    A step whose loss or gradient is not finite is skipped: weights and optimiser stay as they were, and the scaler
    lowers its scale. In a distributed training only the gradient counts, which is the same in all processes.

    Args:
        terms: computed under :func:`autocast`; ``total``, or the loss itself, is minimised.
        network: its gradients are clipped.
        optimizer: optimiser.
        scaler: gradient scaler on CUDA, else None.
        clip: largest gradient norm.
        cases: names of the batch's cases, for the error.
        skipped: counts; None makes the first skipped step an error.

    Returns:
        Whether the step was done.

    Raises:
        RuntimeError: too many steps in a row were skipped.
    """
    terms = {"total": terms} if isinstance(terms, Tensor) else terms
    skipped = SkippedSteps(most_in_a_row=1) if skipped is None else skipped
    loss = terms["total"]
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    finite = bool(torch.isfinite(norm) if is_distributed() else torch.isfinite(norm + loss.detach()))
    if scaler is not None:
        if finite or not torch.isfinite(norm):
            scaler.step(optimizer)  # does nothing where the gradient is not finite
        scaler.update()
    elif finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if finite:
        skipped.done()
    else:
        skipped.skip(terms, cases)
    return finite


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

    def __call__(self, batch: Mapping[str, Any], generator: Generator, topology_scale: float) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            batch: from data.loaders.CropLocationLoader; without ``target_topology`` L_topo is not computed, without
                ``locations`` no voxel is taken for padding.
            generator: source of the token masks, on the CPU: the ViT lists its visible tokens there.
            topology_scale: factor of L_topo's weight, see config.TopologyConfig.training_factor; at 0 the term is not
                computed.

        Returns:
            the terms by name, see losses.copretraining.CoPretrainingLoss. ``topo_gap`` is there only if L_topo is not
            exact: the largest relative gap of its matchings.
        """
        ratio = self.plan.config.pretraining.mask_ratio
        tokens = random_token_mask(len(batch["data"]), self.plan.shape.token_grid, ratio, generator)
        mask = crop_mask(tokens, self.plan.shape.token_size, self.device)
        data = batch["data"].to(self.device, non_blocking=True)
        key_points = batch["key_points"].to(self.device, non_blocking=True)
        inside = inside_mask(batch.get("locations", ()), self.device)
        if self.topological_loss is None or topology_scale == 0.0 or "target_topology" not in batch:
            terms: dict[str, Tensor] = self.loss(self.network(data, mask), data, mask.hidden, key_points, inside=inside)
            return terms
        pending: dict[str, PendingLoss] = {}

        def start_vit(branch: BranchOutput) -> None:
            pending["vit"] = self._start_topology(branch.reconstruction, data, mask.hidden, inside, batch)

        output = self.network(data, mask, torch.compiler.disable(start_vit))
        if output.partner is not None:
            pending["partner"] = self._start_topology(output.partner.reconstruction, data, mask.hidden, inside, batch)
        topology, gap = self._finish_topology(pending, output, batch.get("keys", ()))
        terms = self.loss(output, data, mask.hidden, key_points, topology, topology_scale, inside)
        if gap > EXACT_GAP:
            terms["topo_gap"] = terms["total"].new_tensor(gap)
        return terms

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
        targets: Sequence[TargetTopology] = batch["target_topology"]
        origins = [target.origin for target in targets if target.origin is not None]
        return self.topological_loss.start(
            composed, [target.diagrams for target in targets], region_origin=origins or None
        )


def detach_terms(terms: Mapping[str, Scalar]) -> dict[str, float]:
    """The terms as Python floats, one transfer for all of them."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))
