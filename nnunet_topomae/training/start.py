"""Starting a pre-training from given weights: a checkpoint of ours, or one of nnssl."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import BRANCHES, Branch, CoPretrainingNetwork
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.data.cases import RAW_FILES, ImagesRead
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.files import hash_file, read_json
from nnunet_topomae.nnunet.names import PRETRAINER, VECTORPOSE_PRETRAINER
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.checkpoints import ENTRY
from nnunet_topomae.training.checks import (
    check_no_copies,
    check_no_leak,
    described_size,
    images_of,
    plan_differences,
)
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.loading import load_checkpoint_file
from nnunet_topomae.training.resample import NetworkSize
from nnunet_topomae.training.sources import EXPORTED, check_pretraining, origin_of
from nnunet_topomae.training.transfer import (
    Parts,
    Transfer,
    load_weights,
    transfer,
    transfer_resampled,
    without_aliases,
)

NNSSL_ENTRY = "nnssl_adaptation_plan"
# In the fold's folder: what the training started from, and the images that those weights have seen.
START_FILE = "start.json"
_HEAD = "decoder.seg_layers."
_HEADS = (*CoPretrainingNetwork.pretraining_parts, *CoPretrainingNetwork.optional_parts)

Started = tuple[Transfer, dict[str, Any], ImagesRead]


@dataclass(frozen=True)
class Beginner:
    """The pre-training that starts from given weights.

    Attributes:
        network: what is pre-trained, without nnU-Net's wrappers.
        plan: its plan.
        channels: number of input channels.
        dataset: name of the data set.
        validation: hashes of the fold's validation cases; none for fold `all`.
        patients: which patient a case belongs to.
    """

    network: nn.Module
    plan: Plan
    channels: int
    dataset: str
    validation: ImagesRead
    patients: Patients


def start_training(trainer: Any) -> None:
    """Start a pre-training from the file of ``-pretrained_weights``, or from the plan's `pretraining.start`, if any.

    Args:
        trainer: the pre-training; called on every rank.

    Raises:
        ValueError, FileNotFoundError: as :func:`start_from`.
    """
    folder, section = Path(trainer.output_folder), trainer.plan.config.pretraining
    writes = trainer.local_rank == 0
    if writes:
        (folder / START_FILE).unlink(missing_ok=True)  # of an earlier training in this folder
    file = trainer.given_weights or (Path(section.start).expanduser() if section.start else None)
    if file is None:
        return
    beginner = Beginner(
        unwrap(trainer.network),
        trainer.plan,
        trainer.num_input_channels,
        trainer.plans_manager.dataset_name,
        trainer.validation_images(),
        trainer.patients,
    )
    result, source, images = start_from(file, beginner, trainer.print_to_log_file)
    if writes:
        result.write(folder / START_FILE, source, images=asdict(images))


def start_from(file: Path, beginner: Beginner, log: Callable[[str], None]) -> Started:
    """Load the weights that a pre-training starts from.

    A checkpoint of ours with the same plan gives all its weights, except heads of tasks that this training does not
    have; one with another plan gives its encoders and its partner's decoder, resampled. Where only one of them has a
    ViT, or another one, the partner alone is taken over. A checkpoint of nnssl gives the encoder of the plan's own
    network, and the decoder where it is the same.

    Args:
        file: the checkpoint; nothing in it is run.
        beginner: the pre-training.
        log: takes what a user should know, line by line.

    Returns:
        What became of every weight, where they come from, and the images that they have seen.

    Raises:
        ValueError: the file is neither, its weights have seen a validation case of this fold, or they do not fit; or
            export-weights has written it. Nothing is loaded then.
        FileNotFoundError: there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"this pre-training is to start from {file}, which does not exist")
    checkpoint = load_checkpoint_file(file)
    if ENTRY in checkpoint:
        result, source, images = _from_ours(file, checkpoint, beginner, log)
    elif EXPORTED in checkpoint:  # where it describes a residual encoder as nnssl does, too
        raise ValueError(
            f"this pre-training is to start from {file}, and nothing says whether validation cases of this fold were "
            f"among the images of that file. {origin_of(checkpoint)}Start from that checkpoint."
        )
    elif NNSSL_ENTRY in checkpoint:
        result, source, images = _from_nnssl(file, checkpoint, beginner)
        log(
            f"{file} does not list the images that it was trained on, so nothing can say whether validation cases of "
            "this data set were among them. The checkpoints of this training say so too."
        )
    else:
        raise ValueError(
            f"this pre-training is to start from {file}, which is no checkpoint of {PRETRAINER} or "
            f"{VECTORPOSE_PRETRAINER} (no entry '{ENTRY}') and none of nnssl (no entry '{NNSSL_ENTRY}'). "
            f"{origin_of(checkpoint)}Name such a checkpoint, or leave out pretraining.start and -pretrained_weights."
        )
    log(f"pre-training starts from {file}: {result}")
    return result, source, images


def with_start(images: ImagesRead, folder: Path) -> ImagesRead:
    """What a training has read, its start included.

    Args:
        images: what it reads itself.
        folder: the fold's folder, with `start.json` if the training started from given weights.
    """
    if not (folder / START_FILE).is_file():
        return images
    earlier = ImagesRead(**read_json(folder / START_FILE)["images"])
    return ImagesRead(**{part: {**hashes, **getattr(images, part)} for part, hashes in asdict(earlier).items()})


def _from_ours(file: Path, checkpoint: Mapping[str, Any], beginner: Beginner, log: Callable[[str], None]) -> Started:
    check_pretraining(checkpoint, file)
    described, own = checkpoint[ENTRY], beginner.plan.facts
    theirs, ours = (
        facts.get("architecture", {}).get("vit", ArchitectureConfig().vit) for facts in (described["plan"], own)
    )
    taken: tuple[Branch, ...] = BRANCHES if theirs == ours else ("partner",)
    if theirs != ours:
        log(f"the ViT's partner alone is taken over; architecture.vit: checkpoint {theirs!r}, plan {ours!r}")
    manifest, images = described["manifest"], images_of(described, file)
    check_no_leak(manifest, beginner.dataset, beginner.validation.cases, file, beginner.patients)
    check_no_copies(images, beginner.validation, f"the start of this pre-training, {file},")
    weights, network = checkpoint["network_weights"], beginner.network
    parts = _common_parts(weights, network, taken)
    if different := plan_differences(described["plan"], own, taken):
        log(f"adapted to this plan; {'; '.join(different)}")
        old = described_size(described["plan"], own, file, taken)
        new = NetworkSize(beginner.plan.shape, beginner.channels)
        fresh = (*parts.fresh, *(f"{part}." for part in _HEADS), _HEAD)
        result = transfer_resampled(weights, network, old, new, parts._replace(fresh=fresh))
    else:
        result = transfer(weights, network, parts)
    keys = ("dataset", "plans_name", "configuration", "fold", "plan_hash")
    source = {"file": str(file), **{key: manifest.get(key) for key in keys}}
    return result, source, _named(images, manifest["dataset"], beginner.dataset)


def _named(images: ImagesRead, dataset: str, own: str) -> ImagesRead:
    """Images of another data set are known by their content; their names mean nothing here."""
    if dataset == own:
        return images
    # The preprocessed image and the raw files of a case have the same name and different hashes: both stay known.
    read = {f"{dataset}/{case}": digest for case, digest in {**images.unlabeled, **images.cases}.items()}
    raw = {f"{dataset}/{case}{RAW_FILES}": digest for case, digest in images.sources.items()}
    return ImagesRead(sources={**read, **raw}, unlisted=images.unlisted)


def _from_nnssl(file: Path, checkpoint: Mapping[str, Any], beginner: Beginner) -> Started:
    described, weights, network = _content_of_nnssl(checkpoint, file), checkpoint["network_weights"], beginner.network
    name = (described.get("architecture_plans") or {}).get("arch_class_name")
    if beginner.plan.config.architecture.partner != "plan":
        raise ValueError(
            f"{file} is nnssl's {name}, a network that nnU-Net's plans can name, but this plan pre-trains UNETR++. "
            "Write plans for nnU-Net's own network: nnunet-topomae plan -d ID -p nnUNetResEncUNetLPlans --name NAME "
            "--set architecture.partner=plan"
        )
    theirs, every_name = _in_our_names(without_aliases(weights), described), network.state_dict()
    own = without_aliases(every_name)
    (first,) = (f"encoder.{part}" for part in cast(Any, network.encoder).resampled_as)
    channels = described.get("pretrain_num_input_channels", beginner.channels)
    if channels == beginner.channels and first in theirs and theirs[first].ndim > 1:  # the file need not say it
        channels = theirs[first].shape[1]
    if channels != beginner.channels:
        raise ValueError(
            f"{file} was trained on images of {channels!r} channels, and this data set has {beginner.channels}: its "
            "first convolution does not fit. Start from a checkpoint of as many channels, or without pretraining.start."
        )
    encoder = [key for key in own if key.startswith("encoder.")]
    wrong = [key for key in encoder if key not in theirs or theirs[key].shape != own[key].shape]
    if wrong:
        found = tuple(theirs[wrong[0]].shape) if wrong[0] in theirs else "absent"
        raise ValueError(
            f"{file} is nnssl's {name}, and the plan's network is another one: {len(wrong)} of {len(encoder)} weights "
            f"of the encoder do not fit, such as {wrong[0]} ({found}, needed is {tuple(own[wrong[0]].shape)}). Use the "
            "plans of the network that was pre-trained; for ResEncL: nnUNetv2_plan_experiment -d ID -pl "
            "nnUNetPlannerResEncL."
        )
    decoder = [key for key in own if key.startswith("decoder.") and not key.startswith(_HEAD)]
    whole = all(key in theirs and theirs[key].shape == own[key].shape for key in decoder)
    matched = encoder + (decoder if whole else [])
    load_weights(network, {key: theirs[key] for key in matched})
    missing, unexpected = ([key for key in names if key not in matched] for names in (own, theirs))
    unexpected = [key for key in unexpected if key in own or key not in every_name]  # others are names of the same
    source = {"file": str(file), "kind": "nnssl", "network": name}
    return Transfer(matched, missing, unexpected, {}), source, ImagesRead(unlisted={file.name: hash_file(file)})


def _content_of_nnssl(checkpoint: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """What a checkpoint of nnssl says about itself; it is checked that it says it, and has weights."""
    described, weights = checkpoint[NNSSL_ENTRY], checkpoint.get("network_weights")
    usable = isinstance(described, Mapping) and isinstance(described.get("architecture_plans") or {}, Mapping)
    usable = usable and isinstance(weights, Mapping) and all(isinstance(value, Tensor) for value in weights.values())
    if not usable:
        raise ValueError(
            f"{file} is damaged: it has no usable network_weights, or its entry '{NNSSL_ENTRY}' is no table with "
            "architecture_plans. Download or copy it again."
        )
    return cast("Mapping[str, Any]", described)


def _in_our_names(weights: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of nnssl under the names that nnU-Net's networks have in ours."""
    places = {described.get("key_to_encoder"): "encoder.stages", described.get("key_to_stem"): "encoder.stem"}
    named = {}
    for name, value in weights.items():
        place = next((theirs for theirs in places if theirs and name.startswith(f"{theirs}.")), None)
        named[name if place is None else places[place] + name.removeprefix(place)] = value
    return named


def _common_parts(weights: Mapping[str, Tensor], network: nn.Module, taken: Collection[str]) -> Parts:
    """What two pre-trainings may differ in: heads of tasks that only one of them has, and the ViT."""
    encoders = [part for parts in CoPretrainingNetwork.transferred_parts.values() for part in parts]
    absent = [part for part in (*encoders, *_HEADS) if getattr(network, part, None) is None]
    optional = (*CoPretrainingNetwork.transferred_parts["vit"], *_HEADS)
    fresh = [f"{part}." for part in optional if not any(name.startswith(f"{part}.") for name in weights)]
    fresh += () if "vit" in taken else ["vit_"]  # beginning of the names of all its parts
    own = network.state_dict()
    if any(name in weights and weights[name].shape != own[name].shape for name in own if name.startswith(_HEAD)):
        fresh.append(_HEAD)  # it rebuilds other things
    left_out = tuple(f"{part}." for part in (*absent, *CoPretrainingNetwork.former_parts))
    return Parts(tuple(fresh), left_out, tuple(taken))
