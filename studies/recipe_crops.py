"""Random crops for studies/recipe.py, made once by nnU-Net's own loader and augmentation."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.files import read_json

AUGMENTATIONS = ("nnunet", "mirrored", "none")


def make_crops(
    dataset: int,
    size: list[int],
    steps: int,
    seed: int,
    fold: int,
    plans_name: str,
    batch_size: int | None = None,
    augmentation: str = "nnunet",
) -> dict[str, Any]:
    """Batches of a fold's training cases from nnU-Net's own loader, and its validation cases whole.

    Args:
        dataset: number of the data set.
        size: voxels of a crop along each axis.
        steps: number of batches.
        seed: of nnU-Net's loader and augmentation.
        fold: of nnU-Net's split.
        plans_name: nnU-Net plans, by their file's name.
        batch_size: crops per batch; by default the plan's.
        augmentation: `nnunet` without mirroring, `mirrored` for nnU-Net's with mirroring, or `none`.
    """
    folder = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{dataset:03d}_*"))
    plans, description = (read_json(folder / name) for name in (f"{plans_name}.json", "dataset.json"))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = size
    configuration["batch_size"] = batch_size or configuration["batch_size"]
    configuration.pop("topomae", None)
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", fold, description, torch.device("cpu"))
    trainer.initialize()
    trainer._do_i_compile = lambda: False
    trainer.enable_deep_supervision = False
    _limit(trainer, augmentation)
    trainer._get_deep_supervision_scales = lambda: None
    torch.manual_seed(seed)
    np.random.seed(seed)
    with patch.dict(os.environ, nnUNet_n_proc_DA="0"):
        loader, _ = trainer.get_dataloaders()
    batches = []
    for _ in range(steps):
        batch = next(loader)
        batches.append((batch["data"].half(), batch["target"].to(torch.int8)))
    _, validation = trainer.do_split()
    source = trainer.dataset_class(trainer.preprocessed_dataset_folder, validation)
    cases = []
    for case in validation:
        image, label, _, _ = source.load_case(case)
        cases.append((torch.from_numpy(image[:]).float(), torch.from_numpy(label[:]).to(torch.int8)))
    return {
        "plans": plans,
        "dataset": description,
        "patch": size,
        "batches": batches,
        "cases": cases,
        "name": folder.name if augmentation == "nnunet" else f"{folder.name}, augmentation {augmentation}",
    }


def _limit(trainer: nnUNetTrainer, augmentation: str) -> None:
    """Leave out mirroring or all augmentation. Predictions are never mirrored: that would take eight times as long."""
    original = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def limited() -> tuple[Any, ...]:
        rotation, dummy, larger, axes = original()
        trainer.inference_allowed_mirroring_axes = None
        size = trainer.configuration_manager.patch_size if augmentation == "none" else larger
        return rotation, dummy, size, axes if augmentation == "mirrored" else None

    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size = limited
    if augmentation == "none":
        trainer.get_training_transforms = lambda *_, **__: trainer.get_validation_transforms(None)
