"""Pre-trained weights for others: a file for stock nnU-Net, and an encoder with its model card."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nnunet_topomae.architectures.build import build_copretraining_network
from nnunet_topomae.config import SECTION, TopoMAEConfig
from nnunet_topomae.files import read_table, write_json, write_text, write_whole
from nnunet_topomae.nnunet.names import PRETRAINER, VECTORPOSE_PRETRAINER
from nnunet_topomae.nnunet.plan import read_plan
from nnunet_topomae.training.checkpoints import ENTRY, plain, save_atomically
from nnunet_topomae.training.checks import check_trained, decoder_is_trained
from nnunet_topomae.training.model_card import count_images, model_card
from nnunet_topomae.training.plots import PLOT_FILE
from nnunet_topomae.training.sources import EXPORTED, read_checkpoint
from nnunet_topomae.training.start import NNSSL_ENTRY
from nnunet_topomae.training.transfer import load_weights, without_aliases

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"

# The network that nnssl calls ResEncL: nnU-Net's of the same name, in nnssl's own plans.
_RESENC_L = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
}

_AGAIN = "Copy it again from where it came, or pre-train again."

EncoderName = Literal["vit", "partner"]
# What a configuration may name.
_NETWORK = r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w+"
_LAYER = r"torch\.nn(\.modules\.\w+)?\.[A-Z]\w+"
_PARTS: dict[EncoderName, str] = {"vit": "vit_encoder", "partner": "encoder"}


def export_for_stock(file: Path, target: Path, with_decoder: bool = False) -> dict[str, Any]:
    """Write the pre-trained weights of the plan's own network so that stock nnU-Net takes them.

    The file is for ``nnUNetv2_train ... -tr nnUNetTrainer -pretrained_weights FILE``, also where this package is not
    installed. It holds the encoder and the decoder without segmentation heads, which nnU-Net always starts fresh, and
    where they come from, without the names of the images. nnU-Net takes no file without a decoder, so the file has one
    with nnU-Net's initial weights where the pre-trained one is not wanted or no loss has trained it; its entry
    ``decoder_trained`` says which. The file of a residual encoder also says what nnssl's checkpoints say
    (:func:`nnssl_entry`).

    Args:
        file: a checkpoint of a pre-training (TopoMAEPretrainer, VectorPOSEPretrainer).
        target: file to write; never half of it.
        with_decoder: whether the decoder is the pre-trained one.

    Returns:
        What the file says about the pre-training.

    Raises:
        ValueError: not such a checkpoint, or its partner is not the plan's own network, or no loss has trained it.
    """
    checkpoint = read_checkpoint(file)
    with _damage_named(file, _AGAIN):
        content = _stock_weights(checkpoint, file, with_decoder)
    save_atomically(content, target, "Its folder must exist, be writable and have room; -o names another file.")
    return cast("dict[str, Any]", content[EXPORTED])


def _stock_weights(checkpoint: Mapping[str, Any], file: Path, with_decoder: bool) -> dict[str, Any]:
    """What :func:`export_for_stock` writes."""
    described = checkpoint[ENTRY]
    config = TopoMAEConfig.from_configuration({SECTION: described["config"]})
    if config.architecture.partner != "plan":
        raise ValueError(
            f"{file} holds a pre-trained UNETR++ (topomae.architecture.partner = {config.architecture.partner!r}), "
            "and nnUNetTrainer trains the network that nnU-Net's plan names. Pre-train that one: nnunet-topomae plan "
            "-d ID -p nnUNetPlans --name NAME --set architecture.partner=plan, then nnUNetv2_train ... -tr "
            f"{pretrainer_of(checkpoint)} -p NAME"
        )
    check_trained(described["config"], takes_vit=False, takes_partner=True, file=file)
    decoder_trained = with_decoder and decoder_is_trained(described["config"])
    # nnU-Net's decoders hold the encoder, too.
    taken = ("encoder.", "decoder." if decoder_trained else "decoder.encoder.")
    trained, initial = checkpoint["network_weights"], _initial_weights(checkpoint)
    weights = {name: trained[name] if name.startswith(taken) else value for name, value in initial.items()}
    if wrong := [name for name, value in weights.items() if value.shape != initial[name].shape]:
        raise ValueError(f"{file} is damaged: {wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}. {_AGAIN}")
    manifest: dict[str, Any] = described["manifest"]
    origin = {key: manifest[key] for key in ("dataset", "plans_name", "configuration", "fold")}
    origin |= {"trainer": checkpoint["trainer_name"], "version": described["version"]}
    origin |= {"images": count_images(manifest), "decoder_trained": decoder_trained}
    content = {"network_weights": weights, EXPORTED: origin}
    if entry := nnssl_entry(checkpoint, described["plan"]["channels"]):
        content[NNSSL_ENTRY] = entry
    return content


@contextmanager
def _damage_named(file: Path, cure: str) -> Iterator[None]:
    """Values that are missing or of another kind are an error that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}). {cure}") from error


def _configuration(checkpoint: Mapping[str, Any]) -> ConfigurationManager:
    """The configuration of nnU-Net's plans that was pre-trained."""
    name = checkpoint[ENTRY]["manifest"]["configuration"]
    return PlansManager(checkpoint["init_args"]["plans"]).get_configuration(name)


def _initial_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The plan's own network as nnU-Net initialises it, without heads; the same on every call."""
    channels = checkpoint[ENTRY]["plan"]["channels"]
    network = read_plan(_configuration(checkpoint), channels).network
    assert network is not None  # the partner is the plan's own network
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        initial = network(channels, channels, False).state_dict()
    return {name: value for name, value in initial.items() if ".seg_layers." not in name}


def pretrainer_of(checkpoint: Mapping[str, Any]) -> str:
    """Name of the trainer that has written a checkpoint of a pre-training."""
    theirs = checkpoint.get("trainer_name")
    return VECTORPOSE_PRETRAINER if theirs == VECTORPOSE_PRETRAINER else PRETRAINER


def nnssl_entry(checkpoint: Mapping[str, Any], channels: int) -> dict[str, Any] | None:
    """What nnssl's checkpoints say about themselves, which nnU-Net's own fine-tuning from nnssl reads.

    Args:
        checkpoint: of a pre-training whose partner is the plan's own network.
        channels: image channels.

    Returns:
        The entry; None for networks whose encoder has no stem of its own, which nnssl's does not describe.
    """
    if not any(name.startswith("encoder.stem.") for name in checkpoint["network_weights"]):
        return None
    name = checkpoint[ENTRY]["manifest"]["configuration"]
    configuration = _configuration(checkpoint)
    kwargs = configuration.network_arch_init_kwargs
    large = all(kwargs.get(key) == value for key, value in _RESENC_L.items())
    architecture = {
        "arch_class_name": "ResEncL" if large else configuration.network_arch_class_name,
        "arch_kwargs": None if large else plain(kwargs),
        "arch_kwargs_requiring_import": None if large else list(configuration.network_arch_init_kwargs_req_import),
    }
    patch = [int(size) for size in configuration.patch_size]
    spacing = [float(size) for size in configuration.spacing]
    return {
        "architecture_plans": architecture,
        "pretrain_plan": {"configurations": {name: {"patch_size": patch, "spacing": spacing}}},
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": patch,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def export_encoder(file: Path, folder: Path, which: EncoderName) -> None:
    """Write one pre-trained encoder as safetensors, with what is needed to build it and a model card.

    Args:
        file: a checkpoint of a pre-training (TopoMAEPretrainer, VectorPOSEPretrainer).
        folder: made if there is none, and its files replaced; neither if the checkpoint is refused.
        which: the ViT's encoder or its partner's.

    Raises:
        ValueError: not such a checkpoint, or no loss has trained this encoder.
    """
    checkpoint = read_checkpoint(file)
    picture = file.parent / PLOT_FILE
    curve = PLOT_FILE if picture.is_file() else None
    with _damage_named(file, _AGAIN):
        weights, content = _encoder_content(checkpoint, file, which)
        size = sum(value.numel() for value in weights.values())
        card = model_card(checkpoint[ENTRY], which, size, folder.name, curve, checkpoint["current_epoch"])
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / WEIGHTS_FILE) as written:
        written.write(save(weights))
    write_json(folder / CONFIG_FILE, content)
    if curve is not None:
        with write_whole(folder / curve) as written:
            written.write(picture.read_bytes())
    write_text(folder / CARD_FILE, card)


def _encoder_content(
    checkpoint: Mapping[str, Any], file: Path, which: EncoderName
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of one encoder, and the configuration from which it is built; checked that they fit."""
    described = checkpoint[ENTRY]
    check_trained(described["config"], which == "vit", which == "partner", file)
    prefix = f"{_PARTS[which]}."
    weights = {
        name.removeprefix(prefix): value.contiguous()
        for name, value in without_aliases(checkpoint["network_weights"]).items()
        if name.startswith(prefix)
    }
    section = {"architecture": described["config"]["architecture"]}  # others may name files of this machine
    content = {
        "encoder": which,
        "channels": described["plan"]["channels"],
        "configuration": {**_configuration(checkpoint).configuration, SECTION: section},
    }
    with torch.device("meta"):
        built = _build_encoder(content, file)
    if different := _differences(weights, built):
        raise ValueError(f"{file} is damaged: {min(different)} of the encoder is absent or of another shape. {_AGAIN}")
    return weights, content


def _check_names(architecture: Mapping[str, Any], file: Path) -> None:
    """Refuse names that nnU-Net would import, unless they are of networks and layers: the file may be a stranger's."""
    layers = [architecture["arch_kwargs"].get(key) for key in architecture.get("_kw_requires_import", ())]
    for name, pattern in ((architecture["network_class_name"], _NETWORK), *((layer, _LAYER) for layer in layers)):
        if name is not None and not re.fullmatch(pattern, str(name)):
            raise ValueError(f"{file} names {name!r}, which is no network or layer of nnU-Net's. Do not use this file.")


def load_encoder(folder: str | Path) -> nn.Module:
    """Build an encoder that :func:`export_encoder` wrote, with its weights.

    The ViT's encoder returns tokens (B, N, E) of a crop (B, C, D, H, W), its partner's a list of feature maps from fine
    to coarse. Nothing in the folder is executed, and its configuration may name nnU-Net's networks only.

    Args:
        folder: with `model.safetensors` and `config.json`.

    Raises:
        ValueError: a file is damaged, they do not belong together, or the configuration names something else to import.
        FileNotFoundError: one of them is missing.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: it is no encoder that export-encoder has written")
    content = read_table(folder / CONFIG_FILE)
    with _damage_named(folder / CONFIG_FILE, "Export the encoder again."):
        encoder = _build_encoder(content, folder / CONFIG_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged ({error}). Export the encoder again.") from error
    if different := _differences(weights, encoder):
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} in {len(different)} weights, such as "
            f"{min(different)}. Export the encoder again."
        )
    load_weights(encoder, weights)
    return encoder


def _differences(weights: Mapping[str, Tensor], encoder: nn.Module) -> set[str]:
    """Names that only the weights or only the encoder have, and those of other shapes."""
    own = without_aliases(encoder.state_dict())
    different = {name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape}
    return different | (weights.keys() ^ own.keys())


def _build_encoder(content: Mapping[str, Any], file: Path) -> nn.Module:
    _check_names(content["configuration"]["architecture"], file)
    plan = read_plan(ConfigurationManager(content["configuration"]), content["channels"])
    network = build_copretraining_network(
        plan.shape, content["channels"], plan.config.architecture, planned=plan.network
    )
    return network.get_submodule(_PARTS[content["encoder"]])
