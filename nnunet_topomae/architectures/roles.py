"""What the parameters of a network are for, as the modules that own them declare it.

A module declares roles in class attributes next to its parameters; names are relative to the module:

* ``no_decay``: parameters with more than one axis that weight decay must not shrink.
* ``resampled_as``: how a parameter, or every parameter of a part, is adapted to another plan (:class:`Resampling`).
* ``stages_coarse_to_fine``: lists of modules that are numbered from the coarsest stage on. Stages of two plans belong
  together from the finest one on.

* ``layers_from_input``: of an encoder, lists of modules that are numbered from the input on, all of the same length.
  ``after_layers`` are its parts behind the last of them; what is in neither comes before the first.
* ``for_decoder``: of an encoder, parts whose features nothing but the decoder reads. They are trained, and transferred,
  together with the decoder only.

A network that is fine-tuned declares its ``encoder_parts``, ``fresh_parts`` and ``pretrained_parts``, that of
pre-training what of it is transferred (:class:`~nnunet_topomae.architectures.copretraining.CoPretrainingNetwork`).

Every name is looked up in the network, so a parameter that is renamed without its declaration raises an error.
"""

from collections.abc import Iterable
from enum import Enum, auto

from torch import nn


class Resampling(Enum):
    """How a weight is adapted to another patch size, token size or number of channels (training/resample.py).

    Attributes:
        WRITES_FIELD: its last three axes are a field that the network writes.
        READS_FIELD: its last three axes read a field; a second axis, if any, counts the image's channels.
        READS_FIELD_ROWS: as before, and the first axis counts projected tokens.
        ROWS: the first axis counts projected tokens.
        CHANNELS: the second axis counts the image's channels.
        TOKEN_EMBEDDING: the columns are the voxels of a token, channel by channel.
    """

    WRITES_FIELD = auto()
    READS_FIELD = auto()
    READS_FIELD_ROWS = auto()
    ROWS = auto()
    CHANNELS = auto()
    TOKEN_EMBEDDING = auto()


def no_weight_decay(network: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: 1-D ones, and those that their modules declare.

    Raises:
        AttributeError: a module declares a parameter that it does not have.
    """
    names = {name for name, parameter in network.named_parameters() if parameter.ndim <= 1}
    for path, module in network.named_modules():
        for name in getattr(module, "no_decay", ()):
            module.get_parameter(name)
            names.add(_join(path, name))
    return names


def resampling_of(network: nn.Module, name: str) -> Resampling | None:
    """How a parameter is adapted to another plan; None if its shape depends on no plan.

    Args:
        network: any network of this package.
        name: as in its state dict.
    """
    module, rest = network, name
    while True:
        for declared, rule in getattr(module, "resampled_as", {}).items():
            if rest == declared or rest.startswith(f"{declared}."):
                return Resampling(rule)
        child, _, rest = rest.partition(".")
        if not rest:
            return None
        module = module.get_submodule(child)


def check_declarations(network: nn.Module) -> None:
    """Look up every name that the modules of a network declare.

    Raises:
        AttributeError: a module declares a part that it does not have.
    """
    no_weight_decay(network)
    for module in network.modules():
        for name in getattr(module, "resampled_as", {}):
            parent, _, last = name.rpartition(".")
            if not hasattr(module.get_submodule(parent), last):
                raise AttributeError(f"{type(module).__name__} declares {name} in resampled_as, but has no such part")
        for role in ("stages_coarse_to_fine", "layers_from_input", "after_layers", "for_decoder", "encoder_parts"):
            part_prefixes(module, getattr(module, role, ()))


def part_prefixes(network: nn.Module, parts: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the names of all parameters in some parts of a network, such as ``encoder.``.

    Args:
        network: any network.
        parts: names of its submodules, with dots for nested ones.

    Raises:
        AttributeError: the network has no such part.
    """
    parts = tuple(parts)
    for part in parts:
        network.get_submodule(part)
    return tuple(f"{part}." for part in parts)


def parts_for_decoder(network: nn.Module) -> tuple[str, ...]:
    """Names of the parts of a network's encoders whose features nothing but a decoder reads."""
    return tuple(
        _join(path, name) for path, module in network.named_modules() for name in getattr(module, "for_decoder", ())
    )


def coarse_to_fine_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names in lists of modules that are numbered from the coarsest stage on."""
    return tuple(
        f"{_join(path, name)}."
        for path, module in network.named_modules()
        for name in getattr(module, "stages_coarse_to_fine", ())
    )


def layers_below_output(encoder: nn.Module) -> dict[str, int]:
    """How deep below the encoder's output every parameter is: 1 in the last layer, one more in each layer before it.

    Args:
        encoder: declares its ``layers_from_input``.

    Raises:
        AttributeError: it declares a part that it does not have.
    """
    lists: tuple[str, ...] = encoder.layers_from_input  # type: ignore[assignment]
    after = part_prefixes(encoder, getattr(encoder, "after_layers", ()))
    last = max(len(list(encoder.get_submodule(name).children())) for name in lists)
    depths = {}
    for name, _ in encoder.named_parameters():
        head, _, rest = name.partition(".")
        layer = int(rest.partition(".")[0]) + 1 if head in lists else last if name.startswith(after) else 0
        depths[name] = last + 1 - layer
    return depths


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
