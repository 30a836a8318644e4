"""One training step: mixed precision, all terms of the loss, gradient scaling, clipping and the optimiser call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Generator, GradScaler, Tensor, nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.data.topology_target import NO_TARGETS, TARGETS, TargetTopology
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, PoseTargets, TopologicalTerms, compose_reconstruction
from nnunet_topomae.masking import CropMask, crop_mask, empty_token_mask, inside_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.topology import PendingLoss, TopologicalLoss
from nnunet_topomae.training.devices import is_distributed
from nnunet_topomae.training.skipping import MissingTerms, SkippedSteps
from nnunet_topomae.training.supervision import to_device
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

    Parameters with the learning rate 0 are frozen: the optimiser does not see their gradients.

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
    leave_out_frozen(optimizer)
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


def leave_out_frozen(optimizer: Optimizer) -> None:
    """Drop the gradients of parameters whose learning rate is 0.

    Args:
        optimizer: before its step.
    """
    for group in optimizer.param_groups:
        if group["lr"] == 0.0:
            for parameter in group["params"]:
                parameter.grad = None


def optimise_or_log(trainer: Any, terms: Mapping[str, Tensor], clip: float, cases: Iterable[str]) -> None:
    """One optimiser step of a trainer; skipped, counted and logged where loss or gradient is not finite.

    Args:
        trainer: its `skipped` counts.
        terms: of the loss by name, with their sum as ``total``.
        clip: largest gradient norm.
        cases: of the batch.
    """
    of_trainer = trainer.network, trainer.optimizer, trainer.grad_scaler
    if not optimise(terms, *of_trainer, clip, cases, trainer.skipped):
        loss = float(terms["total"].detach())
        trainer.print_to_log_file(f"step skipped: loss {loss} or its gradient is not finite; {', '.join(cases)}")


def supervised_step(trainer: Any, batch: Mapping[str, Any], clip: float) -> dict[str, Any]:
    """One step on labelled crops; returns the loss.

    Args:
        trainer: in training.
        batch: from nnU-Net's loader.
        clip: largest gradient norm.
    """
    data, target = to_device(batch["data"], trainer.device), to_device(batch["target"], trainer.device)
    with autocast(trainer.device):
        loss = trainer.loss(trainer.network(data), target)
    optimise_or_log(trainer, {"total": loss}, clip, batch["keys"])
    return {"loss": loss.detach().cpu().numpy()}


def done_steps(outputs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The outputs of an epoch's supervised steps without those that were skipped; all where every step was."""
    return [output for output in outputs if isfinite(output["loss"])] or outputs


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


def detach_terms(terms: Mapping[str, Scalar]) -> dict[str, float]:
    """The terms as Python floats, one transfer for all of them."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))
