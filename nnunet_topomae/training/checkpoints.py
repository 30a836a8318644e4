"""Checkpoints that are never half written and say what they are."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_topomae import __version__
from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.cases import ImagesRead, hash_json_file, intensity_statistics
from nnunet_topomae.files import hash_json, write_whole
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.names import SPLITS_FILE
from nnunet_topomae.nnunet.plan import plan_facts
from nnunet_topomae.training.devices import unwrap

ENTRY = "topomae"
# In the entry: how many steps of the epoch that comes next are done already, what they have returned, how many seconds
# they took, and the seed.
STEPS = "steps"
OUTPUTS = "step_outputs"
SECONDS = "seconds"
SEED = "seed"
# And which weights a fine-tuning has not taken over, where the plan does not say it.
FRESH = "fresh"

Role = Literal["pretraining", "finetuning"]


def save_atomically(
    checkpoint: Mapping[str, Any],
    filename: str | Path,
    cure: str = "Make room or correct the folder's permissions, then continue with --c.",
) -> None:
    """``torch.save`` to a temporary file in the same folder, then rename: readers see the old file or the new one.

    Args:
        checkpoint: what is saved.
        filename: a file of this name is replaced; its folder must exist.
        cure: what to do where that fails, for the error.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; a file of this name stays as it was.
    """
    written = Path(filename)
    try:
        with write_whole(written) as file:
            torch.save(dict(checkpoint), file)
    except (OSError, RuntimeError) as error:
        # write_whole and torch say it in their own words
        reason = error.__cause__ if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        kept = "The one of this name from before is kept. " if written.is_file() else ""
        raise OSError(f"cannot write checkpoint {written}: {reason}. {kept}{cure}") from error


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's numbers and lists, so that a checkpoint loads without running anything.

    Args:
        value: dicts, lists, tuples and values; tensors and other values stay as they are.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


def write_checkpoint(
    trainer: nnUNetTrainer,
    filename: str,
    role: Role,
    config: TopoMAEConfig,
    images: ImagesRead,
    progress: Mapping[str, Any],
) -> None:
    """Write a stock nnU-Net checkpoint plus the entry that describes it; never half of it.

    Args:
        trainer: what is saved.
        filename: checkpoint file.
        role: which kind of training it is.
        config: what the training made of the plan's `topomae` section.
        images: what the training has read.
        progress: what only continuing needs: the seed, and the steps of the next epoch that are done already.
    """
    configuration, channels = trainer.configuration_manager, len(channel_names(trainer.dataset_json))
    written = TopoMAEConfig.from_configuration(configuration.configuration)
    facts = plan_facts(configuration, written, channels, trainer.plans_manager.plans)
    described = describe(role, config, facts, make_manifest(trainer, images))
    save_atomically({**training_state(trainer), ENTRY: {**described, **progress}}, filename)


def training_state(trainer: nnUNetTrainer) -> dict[str, Any]:
    """The entries of a stock nnU-Net checkpoint: weights, optimiser, scaler, log, epoch and what inference needs.

    The log ends with the current epoch, which is the last one that is complete.
    """
    log = {name: values[: trainer.current_epoch + 1] for name, values in trainer.logger.get_checkpoint().items()}
    return {
        "network_weights": unwrap(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": trainer.grad_scaler.state_dict() if trainer.grad_scaler is not None else None,
        "logging": plain(log),
        "_best_ema": plain(trainer._best_ema),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": plain(trainer.my_init_kwargs),
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def make_manifest(trainer: nnUNetTrainer, images: ImagesRead) -> dict[str, Any]:
    """What a checkpoint says about its training's data: data set, plans, fold, splits, intensities, images read.

    Args:
        trainer: its plans, configuration, fold and splits are described.
        images: hashes of the images that it has read.
    """
    return {
        "dataset": trainer.plans_manager.dataset_name,
        "plans_name": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "splits_hash": hash_json_file(Path(trainer.preprocessed_dataset_folder_base) / SPLITS_FILE),
        "intensity_statistics": intensity_statistics(
            trainer.configuration_manager.normalization_schemes,
            trainer.plans_manager.foreground_intensity_properties_per_channel,
        ),
        **asdict(images),
    }


def describe(
    role: Role, config: TopoMAEConfig, facts: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says about itself, under the key ``topomae``.

    Args:
        role: which kind of training wrote it.
        config: the plan's `topomae` section.
        facts: what must agree between pre-training and fine-tuning (nnunet.plan.plan_facts).
        manifest: data set, plans, configuration, fold, hash of the splits, and the cases read with their hashes.
    """
    return {
        "version": __version__,
        "versions": {name: _version(name) for name in ("torch", "nnunetv2", "cripser", "numpy")},
        "role": role,
        "config": config.to_plan(),
        "plan": dict(facts),
        "manifest": {**manifest, "plan_hash": hash_json(facts)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ignore_former_parts(network: nn.Module) -> None:
    """Let a co-pre-training network resume from a checkpoint of an earlier version, which also holds former parts."""
    former = tuple(f"{part}." for part in CoPretrainingNetwork.former_parts)

    def drop(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
        for name in [name for name in state if name.startswith(former)]:
            del state[name]

    network.register_load_state_dict_pre_hook(drop)
