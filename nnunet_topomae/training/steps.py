"""One training step: mixed precision, gradient scaling, clipping and the optimiser call; all of a supervised one."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import GradScaler, Tensor, nn
from torch.optim import Optimizer

from nnunet_topomae.training.devices import is_distributed
from nnunet_topomae.training.skipping import SkippedSteps
from nnunet_topomae.training.supervision import to_device


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
