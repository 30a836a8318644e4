"""Checkpoints that are never half written, say what they are, and are transferred with every weight counted."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_topomae import __version__
from nnunet_topomae.architectures.build import build_fusion_network
from nnunet_topomae.config import FROM_SCRATCH
from nnunet_topomae.data.cases import hash_json
from nnunet_topomae.data.plan import Plan

ENTRY = "topomae"
PRETRAINER = "TopoMAEPretrainer"
CHECKPOINT = "checkpoint_final.pth"

# Parts of the fusion network that pre-training does not have, and parts that only pre-training has.
FRESH_PREFIXES = ("fusion.", "decoder.seg_layers.")
PRETRAINING_ONLY_PREFIXES = ("vit_decoder.", "vit_key_points.", "key_points.")


def save_atomically(checkpoint: Mapping[str, Any], filename: str | Path) -> None:
    """``torch.save`` to a temporary file in the same folder, then rename: readers see the old file or the new one."""
    path = Path(filename)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside nnU-Net's DDP and torch.compile wrappers."""
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    return getattr(inner, "_orig_mod", inner)


def training_state(trainer: nnUNetTrainer) -> dict[str, Any]:
    """The entries of a stock nnU-Net checkpoint: weights, optimiser, scaler, log, epoch and what inference needs."""
    return {
        "network_weights": unwrap(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": trainer.grad_scaler.state_dict() if trainer.grad_scaler is not None else None,
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def describe(role: Literal["pretraining", "finetuning"], plan: Plan, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about itself, under the key ``topomae``.

    Args:
        role: which kind of training wrote it.
        plan: configuration and facts.
        manifest: data set, plans, configuration, fold, hash of the splits, and the cases read with their hashes.
    """
    return {
        "version": __version__,
        "versions": {name: _version(name) for name in ("torch", "nnunetv2", "cripser", "numpy")},
        "role": role,
        "config": plan.config.to_plan(),
        "plan": plan.facts,
        "manifest": {**manifest, "plan_hash": hash_json(plan.facts)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add_fresh_fusion_weights(weights: Mapping[str, Tensor], plan: Plan, channels: int, seed: int) -> dict[str, Tensor]:
    """Pre-trained weights plus the fusion layers in their initial state.

    nnU-Net's own ``-pretrained_weights`` asks for every weight of the network that is fine-tuned; with these entries
    it accepts a pre-training checkpoint as it is.

    Args:
        weights: state dict of a CoPretrainingNetwork.
        plan: shape and architecture of the fusion network.
        channels: number of input channels.
        seed: seed of the fusion layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_fusion_network(plan.shape, channels, 1, plan.config.architecture, deep_supervision=False)
    fresh = {name: value for name, value in network.state_dict().items() if name.startswith("fusion.")}
    return {**weights, **fresh}


def ignore_fusion_weights(network: nn.Module) -> None:
    """Let a co-pre-training network resume from a checkpoint that also holds fusion layers."""

    def drop(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
        for name in [name for name in state if name.startswith("fusion.")]:
            del state[name]

    network.register_load_state_dict_pre_hook(drop)


class Transfer(NamedTuple):
    """What became of every weight of a pre-training checkpoint.

    Attributes:
        matched: names loaded into the network.
        missing: names of the network that the checkpoint does not provide; they start fresh.
        unexpected: names of the checkpoint that the network does not use.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        """Counts with the first component of the names."""
        return (
            f"{len(self.matched)} weights matched; {len(self.missing)} missing, start fresh "
            f"({_components(self.missing)}); {len(self.unexpected)} unexpected, not used "
            f"({_components(self.unexpected)})"
        )


def _components(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"


def transfer(weights: Mapping[str, Tensor], network: nn.Module) -> Transfer:
    """Load pre-trained weights by name into the fusion network.

    Args:
        weights: state dict of a CoPretrainingNetwork.
        network: the fusion network.

    Raises:
        ValueError: a weight is absent or of another shape where only fresh and pre-training-only parts may differ.
            Nothing is loaded then.
    """
    own = network.state_dict()
    missing = [name for name in own if name.startswith(FRESH_PREFIXES) or name not in weights]
    matched = [name for name in own if name not in missing]
    unexpected = [name for name in weights if name not in matched]
    problems = [f"{name} is absent" for name in missing if not name.startswith(FRESH_PREFIXES)]
    problems += [
        f"{name} is not part of this network"
        for name in unexpected
        if not name.startswith(FRESH_PREFIXES + PRETRAINING_ONLY_PREFIXES)
    ]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, needed is {tuple(own[name].shape)}"
        for name in matched
        if weights[name].shape != own[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:5])
        raise ValueError(
            f"the pre-trained weights do not fit this network in {len(problems)} places: {listed}. They come from "
            "another architecture, patch size or number of channels: pre-train with the plan you fine-tune with."
        )
    network.load_state_dict({**own, **{name: weights[name] for name in matched}})
    return Transfer(matched, missing, unexpected)


@dataclass(frozen=True)
class PretrainingSource:
    """Where the pre-trained weights of a fold come from.

    Attributes:
        results: folder of the data set in nnUNet_results.
        dataset: name of the data set.
        plans: name of the plans.
        configuration: name of the configuration.
        fold: fold number or ``all``.
        choice: the plan's ``topomae.finetuning.pretrained``.
    """

    results: Path
    dataset: str
    plans: str
    configuration: str
    fold: int | str
    choice: str | None = None

    @property
    def from_scratch(self) -> bool:
        """Whether the plan asks for training without pre-training."""
        return self.choice == FROM_SCRATCH

    @property
    def file(self) -> Path:
        """The checkpoint file: the plan's choice, else the pre-training of the same fold."""
        if self.choice is not None:
            return Path(self.choice).expanduser()
        folder = f"{PRETRAINER}__{self.plans}__{self.configuration}"
        return self.results / folder / f"fold_{self.fold}" / CHECKPOINT

    def require(self) -> Path:
        """The checkpoint file.

        Raises:
            FileNotFoundError: there is none, with the command that makes it.
        """
        if self.file.is_file():
            return self.file
        if self.choice is not None:
            raise FileNotFoundError(
                f"topomae.finetuning.pretrained of plans {self.plans} names {self.file}, which does not exist. "
                "Remove the key to use this fold's own pre-training, or mend the path."
            )
        unfinished = any(self.file.parent.glob("checkpoint_*.pth"))
        command = f"nnUNetv2_train {self.dataset} {self.configuration} {self.fold} -tr {PRETRAINER} -p {self.plans}"
        raise FileNotFoundError(
            f"no {'finished ' if unfinished else ''}pre-training for this fold: {self.file} does not exist.\n"
            f"Run first:    {command}{' --c' if unfinished else ''}\n"
            "Or give one:  -pretrained_weights FILE\n"
            f'Or train without pre-training: set "topomae": {{"finetuning": {{"pretrained": "{FROM_SCRATCH}"}}}} '
            f"in the configuration {self.configuration} of {self.plans}.json"
        )


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a pre-training checkpoint onto the CPU.

    Loading runs the pickled code in the file, as every nnU-Net checkpoint does: open only files that you trust.

    Raises:
        ValueError: not a checkpoint of TopoMAEPretrainer.
    """
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
    described = isinstance(checkpoint, dict) and isinstance(checkpoint.get(ENTRY), dict)
    if not described or checkpoint[ENTRY].get("role") != "pretraining":
        raise ValueError(
            f"{file} is not a checkpoint of {PRETRAINER} (it has no '{ENTRY}' entry with the role 'pretraining')"
        )
    return checkpoint


def check_same_plan(described: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> None:
    """Refuse a checkpoint that was pre-trained with another plan.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        file: the checkpoint, for the error.

    Raises:
        ValueError: the first three differences, value by value.
    """
    different = [key for key in own if described.get(key) != own[key]]
    if different:
        listed = "; ".join(f"{key}: checkpoint {described.get(key)!r}, plan {own[key]!r}" for key in different[:3])
        raise ValueError(
            f"{file} was pre-trained with another plan ({listed}). Pre-train with the plan you fine-tune with: "
            f"nnUNetv2_train ... -tr {PRETRAINER} -p PLANS."
        )


def check_no_leak(manifest: Mapping[str, Any], dataset: str, validation_cases: Iterable[str], file: Path) -> None:
    """Refuse a checkpoint whose pre-training read a validation case of this fold.

    Args:
        manifest: of the checkpoint; of interest only if it is about the same data set.
        dataset: name of this data set.
        validation_cases: case identifiers of the fold.
        file: the checkpoint, for the error.

    Raises:
        ValueError: naming the cases.
    """
    leaked = sorted(set(manifest["cases"]) & set(validation_cases)) if manifest["dataset"] == dataset else []
    if leaked:
        raise ValueError(
            f"{file} was pre-trained on {len(leaked)} validation cases of this fold ({', '.join(leaked[:5])}), so "
            "validation would be too good to be true. Pre-train this fold, or use fold 'all' for both."
        )
