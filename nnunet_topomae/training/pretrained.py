"""Fine-tuning from a pre-training checkpoint: every check, then the transfer, whoever names the file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.losses.weights import trains_decoder
from nnunet_topomae.nnunet.names import VECTORPOSE_PRETRAINER
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.checkpoints import ENTRY
from nnunet_topomae.training.checks import (
    check_no_copies,
    check_no_leak,
    check_same_dataset,
    check_same_plan,
    check_trained,
    decoder_is_trained,
    described_size,
    images_of,
    plan_differences,
    unknown_facts,
)
from nnunet_topomae.training.resample import NetworkSize
from nnunet_topomae.training.sources import read_checkpoint
from nnunet_topomae.training.transfer import Transfer, transfer, transfer_resampled, transferred_parts


@dataclass(frozen=True)
class Target:
    """The fine-tuning that takes over pre-trained weights.

    Attributes:
        network: what is fine-tuned, without nnU-Net's wrappers.
        plan: its plan.
        channels: number of input channels.
        dataset: name of the data set.
        validation: hashes of the fold's validation cases; none for fold `all`, which validates on nothing.
        patients: which patient a case belongs to.
        takes_decoder: whether the partner's decoder is taken over with its encoder.
    """

    network: nn.Module
    plan: Plan
    channels: int
    dataset: str
    validation: ImagesRead
    patients: Patients
    takes_decoder: bool = True


def plans_decoder(config: TopoMAEConfig) -> bool:
    """Whether the pre-training whose weights a plan takes has a trained decoder, as far as the plan says it.

    Of a file that the plan or `-pretrained_weights` names, only :func:`load_pretraining` knows; a trained one is
    expected of a file in the plan.

    Args:
        config: of the plan that is fine-tuned.
    """
    if config.finetuning.pretrained is not None:
        return True
    if config.finetuning.pretrainer == VECTORPOSE_PRETRAINER:
        config = config.for_vectorpose()
    return trains_decoder(config.pretraining, config.topology, config.architecture.has_vit)


def load_pretraining(file: Path, target: Target, log: Callable[[str], None]) -> tuple[Transfer, dict[str, Any]]:
    """Check a pre-training checkpoint against a fine-tuning and load its weights: one way for all files.

    Args:
        file: the checkpoint.
        target: the fine-tuning.
        log: takes what a user should know, line by line.

    Returns:
        What became of every weight, and what to write about the checkpoint.

    Raises:
        ValueError: the checkpoint may not be used here, or does not fit, and nothing is loaded then; or `head_only` has
            frozen other weights than those that it provides.
    """
    checkpoint = read_checkpoint(file)
    described, section = checkpoint[ENTRY], target.plan.config.finetuning
    manifest, facts = described["manifest"], described["plan"]
    if not section.allow_other_dataset:
        check_same_dataset(manifest, target.dataset, file)
    check_no_leak(manifest, target.dataset, target.validation.cases, file, target.patients)
    images = images_of(described, file)
    check_no_copies(images, target.validation, f"the pre-training of {file}")
    if images.unlisted:
        log(
            f"the pre-training started from {', '.join(images.unlisted)}, which lists no images: nothing can say "
            "whether validation cases were among them"
        )
    decoder_trained = decoder_is_trained(described["config"])
    parts = transferred_parts(target.network, section.transfer_parts, target.takes_decoder and decoder_trained)
    takes_vit, takes_partner = "vit" in parts.taken, "partner" in parts.taken
    check_trained(described["config"], takes_vit, takes_partner, file)
    if takes_partner and not target.takes_decoder:
        log("the encoder alone is taken over: the decoder starts fresh (topomae.finetuning.transfer_decoder)")
    elif takes_partner and not decoder_trained:
        log("no loss of this pre-training has trained the decoder: it starts fresh")
    if manifest["dataset"] != target.dataset:
        log(f"pre-trained on {manifest['dataset']}, another data set: cases are compared by content, not by name")
    if unknown := unknown_facts(facts, target.plan.facts):
        log(f"the checkpoint is of an earlier version and does not say its {', '.join(unknown)}: not compared")
    weights = checkpoint["network_weights"]
    if section.transfer == "resample":
        old = described_size(facts, target.plan.facts, file, parts.taken)
        new = NetworkSize(target.plan.shape, target.channels)
        different = plan_differences(facts, target.plan.facts, parts.taken)
        log(f"adapted to this plan; {'; '.join(different) or 'nothing differs'}")
        result = transfer_resampled(weights, target.network, old, new, parts)
    else:
        check_same_plan(facts, target.plan.facts, file, section.pretrainer, parts.taken)
        result = transfer(weights, target.network, parts)
    log(f"pre-trained weights from {file}: {result}")
    if section.schedule == "head_only":
        _check_frozen(target.network, result, file)
    where = {key: manifest.get(key) for key in ("dataset", "plans_name", "configuration", "fold", "plan_hash")}
    how = {"transfer": section.transfer, "vit": takes_vit, "partner": takes_partner}
    return result, {"file": str(file), **where, **how}


def _check_frozen(network: nn.Module, result: Transfer, file: Path) -> None:
    """Refuse weights that `head_only` has frozen as random as they are, or left to learn although they are pre-trained.

    Freezing is for good, and it was done when only the plan could say what is pre-trained.
    """
    learns = {name: weight.requires_grad for name, weight in network.named_parameters()}
    if frozen := [name for name in result.missing if not learns.get(name, True)]:
        raise ValueError(
            f"{file} has nothing for {len(frozen)} weights, such as {frozen[0]}, and finetuning.schedule = 'head_only' "
            "would freeze them as random as they are. Either its network does not have them, or no loss has trained "
            "them. Choose another schedule, or pre-train with this plan."
        )
    if learning := [name for name in result.matched if learns.get(name, False)]:
        raise ValueError(
            f"{file} has pre-trained {len(learning)} weights, such as {learning[0]}, that the plan's own pre-training "
            "would not, so finetuning.schedule = 'head_only' has not frozen them. Name the file in the plan: "
            f"nnunet-topomae plan -d ID --name NAME --set finetuning.pretrained={file}"
        )
