"""Where the pre-trained weights of a fold come from, and which file nnU-Net's ``-pretrained_weights`` names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from nnunetv2.run import run_training
from torch import nn

from nnunet_topomae.config import FROM_SCRATCH
from nnunet_topomae.nnunet.names import (
    FINAL_CHECKPOINT,
    FUSION_TRAINER,
    PRETRAINED_NNUNET_TRAINER,
    PRETRAINER,
    VECTORPOSE_PRETRAINER,
)
from nnunet_topomae.training.checkpoints import ENTRY
from nnunet_topomae.training.checks import images_of
from nnunet_topomae.training.loading import load_checkpoint_file

# Entry of the files that export-weights writes: which pre-training they are from.
EXPORTED = "pretraining"


@runtime_checkable
class Receiver(Protocol):
    """A trainer that loads the file of ``-pretrained_weights`` itself.

    Attributes:
        network: what nnU-Net would load the weights into, with all its wrappers.
        given_weights: the file, None without ``-pretrained_weights``.
        takes_pretrained_weights: whether the file means something to this trainer.
        weights_loaded: whether anybody has loaded weights into the network.
    """

    network: nn.Module
    given_weights: Path | None
    takes_pretrained_weights: bool
    weights_loaded: bool


_receivers: "WeakSet[Any]" = WeakSet()


def receive_given_weights(trainer: Receiver) -> None:
    """Tell ``trainer`` the file that ``-pretrained_weights`` names, instead of loading it.

    nnU-Net's own loader compares names and shapes of weights and hands on nothing else of the file, so nobody could
    check which cases the weights have seen. It is called through ``nnunetv2.run.run_training``, where this function
    wraps it once. For every other network nnU-Net's loader does what it always does.

    Args:
        trainer: its ``given_weights`` is set as soon as nnU-Net asks to load a file into its ``network``.
    """
    _receivers.add(trainer)
    stock = run_training.load_pretrained_weights
    if hasattr(stock, "tells_receivers"):
        return

    @wraps(stock)
    def load_pretrained_weights(network: nn.Module, fname: str, *options: Any, **named: Any) -> Any:
        for receiver in _receivers:
            if receiver.network is network:
                receiver.given_weights = Path(fname)
                return None
        return stock(network, fname, *options, **named)

    load_pretrained_weights.tells_receivers = True  # type: ignore[attr-defined]
    run_training.load_pretrained_weights = load_pretrained_weights


def check_origin_of_weights(trainer: Receiver) -> None:
    """Refuse weights that nobody could check, before a training starts.

    Raises:
        ValueError: ``-pretrained_weights`` is given to a trainer that starts from scratch, or somebody else has loaded
            weights into the network.
    """
    name = type(trainer).__name__
    if trainer.given_weights is not None and not trainer.takes_pretrained_weights:
        raise ValueError(
            f"{name} starts from scratch, so it takes no -pretrained_weights ({trainer.given_weights}). Leave the "
            f"option out, or fine-tune with -tr {FUSION_TRAINER} or {PRETRAINED_NNUNET_TRAINER}."
        )
    if trainer.weights_loaded:
        raise ValueError(
            f"weights were loaded into the network of {name}, and nothing says which cases they have seen. For "
            "fine-tuning, name their file in the plan: nnunet-topomae plan -d ID --name NAME --set "
            "finetuning.pretrained=FILE"
        )


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
        given: the file of ``-pretrained_weights``, which goes before the plan's choice.
        pretrainer: trainer whose pre-training of the fold is taken where neither names a file.
    """

    results: Path
    dataset: str
    plans: str
    configuration: str
    fold: int | str
    choice: str | None = None
    given: Path | None = None
    pretrainer: str = PRETRAINER

    @property
    def from_scratch(self) -> bool:
        """Whether training starts without pre-trained weights."""
        return self.choice == FROM_SCRATCH and self.given is None

    @property
    def file(self) -> Path:
        """The checkpoint file: the one given, else the plan's choice, else the pre-training of the same fold."""
        if self.given is not None:
            return self.given
        if self.choice is not None:
            return Path(self.choice).expanduser()
        folder = f"{self.pretrainer}__{self.plans}__{self.configuration}"
        return self.results / folder / f"fold_{self.fold}" / FINAL_CHECKPOINT

    def require(self) -> Path:
        """The checkpoint file.

        Raises:
            FileNotFoundError: there is none, with the command that makes it.
            ValueError: the plan asks for training from scratch, and yet a file is given.
        """
        if self.given is not None and self.choice == FROM_SCRATCH:
            raise ValueError(
                f"plans {self.plans} say topomae.finetuning.pretrained = {FROM_SCRATCH!r}, but -pretrained_weights "
                f"names {self.given}. Leave one of them out."
            )
        if self.file.is_file():
            return self.file
        if self.given is not None:
            raise FileNotFoundError(f"-pretrained_weights names {self.given}, which does not exist")
        if self.choice is not None:
            raise FileNotFoundError(
                f"topomae.finetuning.pretrained of plans {self.plans} names {self.file}, which does not exist. "
                "Remove the key to use this fold's own pre-training, or correct the path."
            )
        unfinished = any(self.file.parent.glob("checkpoint_*.pth"))
        command = (
            f"nnUNetv2_train {self.dataset} {self.configuration} {self.fold} -tr {self.pretrainer} -p {self.plans}"
        )
        raise FileNotFoundError(
            f"no {'finished ' if unfinished else ''}pre-training for this fold: {self.file} does not exist.\n"
            f"Run first:    {command}{' --c' if unfinished else ''}\n"
            "Or give one:  -pretrained_weights FILE\n"
            f'Or train without pre-training: set "topomae": {{"finetuning": {{"pretrained": "{FROM_SCRATCH}"}}}} '
            f"in the configuration {self.configuration} of {self.plans}.json"
        )


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a pre-training checkpoint onto the CPU; nothing in the file is run.

    Raises:
        ValueError: not a checkpoint of a pre-training, damaged, without a manifest, or one that would run code.
    """
    checkpoint = load_checkpoint_file(file)
    check_pretraining(checkpoint, file)
    return checkpoint


def origin_of(checkpoint: Mapping[str, Any]) -> str:
    """A sentence about who has written a file that is no pre-training, as far as it says so, and a space.

    Args:
        checkpoint: content of the file.
    """
    if EXPORTED in checkpoint:
        origin = checkpoint[EXPORTED] if isinstance(checkpoint[EXPORTED], Mapping) else {}
        keys = ("dataset", "trainer", "plans_name", "configuration", "fold")
        named = ", ".join(f"{key} {origin[key]}" for key in keys if key in origin)
        return (
            "`nnunet-topomae export-weights` has written it for -tr nnUNetTrainer. The images that its weights have "
            f"seen are listed only in the checkpoint that it was made from ({named}). "
        )
    trainer = checkpoint.get("trainer_name")
    return f"-tr {trainer} has written it. " if isinstance(trainer, str) else ""


def check_pretraining(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Refuse what is no checkpoint of a pre-training.

    Args:
        checkpoint: content of the file.
        file: for the error.

    Raises:
        ValueError: not a checkpoint of a pre-training, or damaged, or without a manifest.
    """
    described = checkpoint.get(ENTRY)
    if not isinstance(described, dict) or described.get("role") != "pretraining":
        raise ValueError(
            f"{file} is not a checkpoint of {PRETRAINER} or {VECTORPOSE_PRETRAINER} (it has no '{ENTRY}' entry with "
            f"the role 'pretraining'), so nothing says which cases its weights have seen. {origin_of(checkpoint)}Name "
            f"the {FINAL_CHECKPOINT} of a pre-training. Other weights: nnUNetv2_train ... -tr nnUNetTrainer "
            "-pretrained_weights FILE"
        )
    images_of(described, file)
    absent = [key for key in ("plan", "config") if not isinstance(described.get(key), dict)]
    absent += [key for key in ("network_weights",) if not isinstance(checkpoint.get(key), dict)]
    if absent:
        raise ValueError(f"{file} is damaged: it has no usable {', '.join(absent)}. Pre-train again.")
