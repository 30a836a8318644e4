"""From pre-trained weights to the network that is fine-tuned, with every weight counted."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.roles import coarse_to_fine_prefixes, part_prefixes, parts_for_decoder, resampling_of
from nnunet_topomae.files import write_json
from nnunet_topomae.training.resample import NetworkSize, adapt, source_name

_PRETRAINING_ONLY = (
    *CoPretrainingNetwork.pretraining_parts,
    *CoPretrainingNetwork.optional_parts,
    *CoPretrainingNetwork.former_parts,
)


class Parts(NamedTuple):
    """Which parts of a fine-tuned network come from pre-training, by the beginnings of the parameters' names.

    Attributes:
        fresh: of the network that is fine-tuned; they are not transferred.
        left_out: of the pre-training; they are not transferred.
        taken: names of the encoders that are transferred, out of ``vit`` and ``partner``.
    """

    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    taken: tuple[str, ...]


def transferred_parts(network: nn.Module, choice: str, takes_decoder: bool = True) -> Parts:
    """What a network takes over from pre-training, as both networks declare it.

    Args:
        network: what is fine-tuned, without nnU-Net's wrappers.
        choice: the plan's `topomae.finetuning.transfer_parts`.
        takes_decoder: whether the partner's decoder comes with its encoder, if pre-training provides both; and with it
            what of the encoder only the decoder reads.

    Raises:
        ValueError: the plan leaves out all that pre-training provides for this network.
    """
    encoders = CoPretrainingNetwork.transferred_parts
    provided: tuple[str, ...] = network.pretrained_parts  # type: ignore[assignment]
    taken = tuple(name for name, parts in encoders.items() if choice in ("both", name) and set(parts) <= set(provided))
    if not taken:
        raise ValueError(
            f"topomae.finetuning.transfer_parts = {choice!r} leaves out the only pre-trained part of "
            f'{type(network).__name__}, {", ".join(provided)}. Set it to "both", or finetuning.pretrained to '
            '"scratch".'
        )
    taken_parts = {part for name in taken for part in encoders[name]}
    fresh: tuple[str, ...] = network.fresh_parts  # type: ignore[assignment]
    if not takes_decoder:
        taken_parts -= set(CoPretrainingNetwork.rebuilding_parts)
        fresh += parts_for_decoder(network)
    unused = {part for parts in encoders.values() for part in parts} - taken_parts
    return Parts(
        part_prefixes(network, (*fresh, *(part for part in provided if part not in taken_parts))),
        _as_prefixes((*_PRETRAINING_ONLY, *sorted(unused))),
        taken,
    )


def _as_prefixes(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{part}." for part in parts)


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

    def write(self, file: Path, source: Mapping[str, Any], **more: Any) -> None:
        """Write what became of every weight as JSON: counts, and by name.

        Args:
            file: JSON file in the fold's folder.
            source: what to say about the checkpoint.
            **more: further entries.
        """
        became = dict.fromkeys(self.matched, "copied") | {n: f"resampled {s}" for n, s in self.adapted.items()}
        became |= dict.fromkeys(self.missing, "fresh")
        counts = {
            "matched": len(self.matched),
            "resampled": len(self.adapted),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
        }
        content = {"source": source, "counts": counts, "weights": became, "unexpected": self.unexpected, **more}
        write_json(file, content)


def _components(names: Iterable[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"


def transfer(weights: Mapping[str, Tensor], network: nn.Module, parts: Parts) -> Transfer:
    """Load pre-trained weights by name into the network that is fine-tuned.

    Args:
        weights: state dict of a CoPretrainingNetwork.
        network: the network that is fine-tuned.
        parts: where they may differ.

    Raises:
        ValueError: a weight is absent or of another shape where only fresh and pre-training-only parts may differ.
            Nothing is loaded then.
    """
    every_name = network.state_dict()
    own, weights = without_aliases(every_name), without_aliases(weights)
    missing = [name for name in own if name.startswith(parts.fresh) or name not in weights]
    matched = [name for name in own if name not in missing]
    aliases = every_name.keys() - own.keys()
    unexpected = [name for name in weights if name not in matched and name not in aliases]
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
    load_weights(network, {name: weights[name] for name in matched})
    return Transfer(matched, missing, unexpected, {})


def without_aliases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with one name per weight.

    nnU-Net's decoders hold the encoder, and its convolution blocks hold each layer twice, so their weights have up to
    four names. Of those, the first one stays.

    Args:
        weights: a state dict, of a network or loaded from a file; weights of several names share their memory.
    """
    seen: set[tuple[Any, ...]] = set()
    unique = {}
    for name, value in weights.items():
        place = (value.untyped_storage()._cdata, value.storage_offset(), value.shape)
        if place not in seen or not value.numel():
            unique[name] = value
        seen.add(place)
    return unique


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy some weights into a network; the others stay as they are.

    Args:
        network: what they are copied into.
        weights: by name, of the same shapes; one of several names is enough.

    Raises:
        ValueError: some are NaN or infinite. Nothing is loaded then.
    """
    if wrong := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise ValueError(
            f"{len(wrong)} of {len(weights)} weights to load hold NaN or infinity, such as {wrong[0]}: the training "
            "that made them has failed. Take another of its checkpoints, or train again."
        )
    own = network.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def transfer_resampled(
    weights: Mapping[str, Tensor], network: nn.Module, old: NetworkSize, new: NetworkSize, parts: Parts
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
    own, weights = without_aliases(network.state_dict()), without_aliases(weights)
    loaded: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    used: set[str] = set()
    problems = []
    numbered = coarse_to_fine_prefixes(network)
    staged = _as_prefixes(CoPretrainingNetwork.transferred_parts["partner"])
    for name, value in own.items():
        source = source_name(name, numbered, old.shape, new.shape)
        if name.startswith(parts.fresh):
            continue
        if source not in weights:
            # Only the ViT's partner has stages that the other plan may not have.
            if not name.startswith(staged):
                problems.append(f"{name} is absent")
            continue
        made = adapt(resampling_of(network, name), weights[source], value.shape, old, new)
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
    load_weights(network, loaded)
    missing = [name for name in own if name not in loaded]
    return Transfer(list(loaded), missing, [name for name in weights if name not in used], adapted)
