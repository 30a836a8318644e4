"""From a pre-training checkpoint to the network that is fine-tuned, with every check and every weight counted."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.rule import derive_network_shape
from nnunet_topomae.config import FROM_SCRATCH, SECTION, TopoMAEConfig
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.training.checkpoints import ENTRY
from nnunet_topomae.training.resample import NetworkSize, adapt, source_name

PRETRAINER = "TopoMAEPretrainer"
CHECKPOINT = "checkpoint_final.pth"

# Keys of the architecture section that do not change what a pre-trained weight means.
_FREE_TO_DIFFER = ("drop_path", "projections", "gamma")


class Parts(NamedTuple):
    """Parts without a counterpart, by the beginnings of their names.

    Attributes:
        fresh: of the network that is fine-tuned; pre-training does not have them.
        left_out: of the pre-training; the network that is fine-tuned does not have them.
    """

    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


_PRETRAINING_ONLY = ("vit_decoder.", "vit_key_points.", "key_points.")
FUSION_PARTS = Parts(("fusion.", "decoder.seg_layers."), _PRETRAINING_ONLY)
# A checkpoint also carries the fusion layers, for nnU-Net's own way of loading it.
UNETR_PARTS = Parts(("unetr_decoder.",), (*_PRETRAINING_ONLY, "encoder.", "decoder.", "fusion."))


class Transfer(NamedTuple):
    """What became of every weight of a pre-training checkpoint.

    Attributes:
        matched: names loaded into the network.
        missing: names of the network that the checkpoint does not provide; they start fresh.
        unexpected: names of the checkpoint that the network does not use.
        adapted: those of ``matched`` that were resampled to this plan, with the shapes before and after.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    adapted: dict[str, str]

    def __str__(self) -> str:
        """Counts with the first component of the names."""
        adapted = f", {len(self.adapted)} of them resampled" if self.adapted else ""
        return (
            f"{len(self.matched)} weights matched{adapted}; {len(self.missing)} missing, start fresh "
            f"({_components(self.missing)}); {len(self.unexpected)} unexpected, not used "
            f"({_components(self.unexpected)})"
        )

    def write(self, file: Path) -> None:
        """Write what became of every weight as JSON, by name."""
        became = dict.fromkeys(self.matched, "copied") | {n: f"resampled {s}" for n, s in self.adapted.items()}
        became |= dict.fromkeys(self.missing, "fresh")
        file.write_text(json.dumps({"weights": became, "unexpected": self.unexpected}, indent=1))


def _components(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"


def transfer(weights: Mapping[str, Tensor], network: nn.Module, parts: Parts = FUSION_PARTS) -> Transfer:
    """Load pre-trained weights by name into the network that is fine-tuned.

    Args:
        weights: state dict of a CoPretrainingNetwork.
        network: the network that is fine-tuned.
        parts: where they may differ.

    Raises:
        ValueError: a weight is absent or of another shape where only fresh and pre-training-only parts may differ.
            Nothing is loaded then.
    """
    own = network.state_dict()
    missing = [name for name in own if name.startswith(parts.fresh) or name not in weights]
    matched = [name for name in own if name not in missing]
    unexpected = [name for name in weights if name not in matched]
    problems = [f"{name} is absent" for name in missing if not name.startswith(parts.fresh)]
    problems += [
        f"{name} is not part of this network"
        for name in unexpected
        if not name.startswith(parts.fresh + parts.left_out)
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
    return Transfer(matched, missing, unexpected, {})


def transfer_resampled(
    weights: Mapping[str, Tensor],
    network: nn.Module,
    old: NetworkSize,
    new: NetworkSize,
    parts: Parts = FUSION_PARTS,
) -> Transfer:
    """Load the weights of another plan's pre-training, adapted to this network (training/resample.py).

    Stages that only one of the networks has start fresh or are left out.

    Args:
        weights: state dict of a CoPretrainingNetwork of the same architecture section.
        network: the network that is fine-tuned.
        old: size of the network that was pre-trained.
        new: size of ``network``.
        parts: where they may differ.

    Raises:
        ValueError: a weight has another shape for another reason. Nothing is loaded then.
    """
    own = network.state_dict()
    loaded: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    used: set[str] = set()
    problems = []
    for name, value in own.items():
        source = source_name(name, old.shape, new.shape)
        if name.startswith(parts.fresh) or source not in weights:
            continue
        made = adapt(name, weights[source], value.shape, old, new)
        if made is None:
            problems.append(f"{name} is {tuple(weights[source].shape)}, needed is {tuple(value.shape)}")
            continue
        loaded[name] = made
        used.add(source)
        if not torch.equal(made, weights[source]):
            adapted[name] = f"{tuple(weights[source].shape)} -> {tuple(value.shape)}"
    if problems:
        raise ValueError(
            f"the pre-trained weights cannot be adapted in {len(problems)} places: {'; '.join(problems[:5])}. The "
            "architecture sections of both plans must agree."
        )
    network.load_state_dict({**own, **loaded})
    missing = [name for name in own if name not in loaded]
    return Transfer(list(loaded), missing, [name for name in weights if name not in used], adapted)


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
            f"nnUNetv2_train ... -tr {PRETRAINER} -p PLANS. Or adapt its weights: nnunet-topomae plan -d ID "
            "--name NAME --set finetuning.transfer=resample"
        )


def described_size(described: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> NetworkSize:
    """Size of a pre-trained network from its checkpoint's ``plan`` facts.

    Args:
        described: ``plan`` facts of the checkpoint.
        own: plan facts of this training.
        file: the checkpoint, for the error.

    Raises:
        ValueError: the architecture sections differ in more than sizes that follow from the plan.
    """
    theirs, ours = described["architecture"], own["architecture"]
    different = [key for key in ours if key not in _FREE_TO_DIFFER and theirs.get(key) != ours[key]]
    if different:
        listed = "; ".join(f"{key}: checkpoint {theirs.get(key)!r}, plan {ours[key]!r}" for key in different)
        raise ValueError(
            f"{file} was pre-trained with another architecture ({listed}), which cannot be adapted. Set the same "
            "values in this plan: nnunet-topomae plan --set architecture.KEY=VALUE."
        )
    architecture = TopoMAEConfig.from_configuration({SECTION: {"architecture": theirs}}).architecture
    return NetworkSize(
        derive_network_shape(described["patch_size"], described["strides"], architecture), described["channels"]
    )


def check_no_leak(
    manifest: Mapping[str, Any], dataset: str, validation_cases: Iterable[str], file: Path, patients: Patients
) -> None:
    """Refuse a checkpoint whose pre-training read a validation case of this fold, or another scan of its patient.

    Args:
        manifest: of the checkpoint; of interest only if it is about the same data set.
        dataset: name of this data set.
        validation_cases: case identifiers of the fold.
        file: the checkpoint, for the error.
        patients: which patient a case belongs to.

    Raises:
        ValueError: naming the cases.
    """
    read = [*manifest["cases"], *manifest.get("unlabeled", ())]
    leaked = patients.shared(read, validation_cases) if manifest["dataset"] == dataset else []
    if leaked:
        raise ValueError(
            f"{file} was pre-trained on {len(leaked)} validation cases of this fold, or other scans of their patients "
            f"({', '.join(leaked[:5])}), so validation would be too good to be true. Pre-train this fold, or use fold "
            "'all' for both."
        )
