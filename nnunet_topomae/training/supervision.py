"""What all supervised trainings do, those of nnU-Net's own networks too: functions that take the trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.data.cases import ImagesRead, hash_images, record_cases
from nnunet_topomae.data.fractions import choose_fraction, labels_present
from nnunet_topomae.data.sources import hash_sources


def choose_labelled(trainer: nnUNetTrainer, training: list[str], section: FinetuningConfig) -> list[str]:
    """The plan's fraction of a fold's training cases.

    Args:
        trainer: its log says how many were chosen.
        training: training cases of the fold.
        section: fraction and seed.
    """
    if section.label_fraction == 1:
        return training
    present = labels_present(trainer.dataset_class(trainer.preprocessed_dataset_folder, training), training)
    chosen = choose_fraction(present, section.label_fraction, section.label_seed)
    trainer.print_to_log_file(f"training on {len(chosen)} of {len(present)} labelled cases")
    return chosen


def choose_mirror_axes(
    trainer: nnUNetTrainer, augmentation: tuple[Any, ...], section: FinetuningConfig
) -> tuple[Any, ...]:
    """nnU-Net's augmentation with the plan's mirror axes, which the checkpoint hands on to prediction.

    Args:
        trainer: its ``inference_allowed_mirroring_axes`` is set.
        augmentation: what nnU-Net has configured; the mirror axes are the last entry.
        section: the plan's axes; None stands for nnU-Net's.
    """
    *others, axes = augmentation
    chosen = section.mirror_axes
    # None, not an empty tuple, stands for no mirroring in nnU-Net's predictor.
    trainer.inference_allowed_mirroring_axes = axes if chosen is None else (chosen or None)
    return (*others, trainer.inference_allowed_mirroring_axes)


def build_loss(build: Callable[[], Any]) -> Any:
    """nnU-Net's loss, which gives the coarsest output no weight. Here the only one that there is gets all of it.

    The U-Net of a plan with two stages has one output, and nnU-Net then divides 0 by 0.

    Args:
        build: nnU-Net's ``_build_loss``.
    """
    with np.errstate(invalid="ignore"):
        loss = build()
    if len(getattr(loss, "weight_factors", ())) == 1:
        loss.weight_factors = (1.0,)
    return loss


def record_training_cases(trainer: Any) -> ImagesRead:
    """Hash the fold's training cases, and list them in its folder (data.cases.record_cases)."""
    folder, cases = Path(trainer.preprocessed_dataset_folder), trainer.do_split()[0]
    hashes = hash_images(folder, cases)
    file = Path(trainer.output_folder) / "cases_read.json"
    listed = record_cases(hashes, file, continued=trainer.continued)
    return ImagesRead(listed, sources=hash_sources(folder.parent, cases))


def epoch_terms(trainer: nnUNetTrainer, epoch: int) -> dict[str, dict[str, float]]:
    """Losses and pseudo Dice of an epoch, for its record.

    Args:
        trainer: its log has them.
        epoch: number of the epoch.
    """
    names = ("train_losses", "val_losses", "mean_fg_dice")
    train, validation, dice = (float(trainer.logger.get_value(name, step=epoch)) for name in names)
    return {"train": {"loss": train}, "validation": {"loss": validation, "pseudo_dice": dice}}


def to_device(tensors: Any, device: torch.device) -> Any:
    """One tensor, or a list of them: the label maps of all scales.

    Args:
        tensors: data or target of a batch; with deep supervision the target is a list, fine to coarse.
        device: where they are needed; copies from pinned memory do not wait.
    """
    if isinstance(tensors, list):
        return [tensor.to(device, non_blocking=True) for tensor in tensors]
    return tensors.to(device, non_blocking=True)
