"""The ViT's partner: the network with skip connections that is pre-trained next to it and carries the segmentation.

Everything around a partner asks for two modules: ``encoder(data)`` returns features from fine to coarse, the first of
them at full resolution, and ``decoder(features)`` returns what its ``seg_layers`` make of them. Two networks have them:
the paper's UNETR++ (architectures/unetrpp.py), and whatever network nnU-Net's plan names. docs/extending.md says how
to add a third.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from nnunet_topomae.architectures.attention import EPASettings
from nnunet_topomae.architectures.layers import Features, ReconstructionHead, initialise_weights
from nnunet_topomae.architectures.roles import Resampling
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.architectures.unetrpp import UNETRPPDecoder, UNETRPPEncoder
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.types import Volume

# Dropout of Shaker et al. 2024 for segmentation, which the plan scales; none while reconstructing.
ATTENTION_DROPOUT, CHANNEL_DROPOUT = 0.15, 0.1

# Builds the network that nnU-Net's plan names from image channels, output channels and deep supervision.
PlannedNetwork = Callable[[int, int, bool], nn.Module]

Purpose = Literal["segmentation", "reconstruction"]


class Partner(nn.Module):
    """A partner on its own: (B, C, D, H, W) -> (B, K, D, H, W), or a list fine to coarse with deep supervision.

    Attributes:
        pretrained_parts: parts that pre-training provides.
        encoder_parts: those of them that encode.
        fresh_parts: the rest, within them.

    Args:
        name: of the network, for the log.
        encoder: returns features from fine to coarse.
        decoder: turns them into outputs.
    """

    pretrained_parts: ClassVar = ("encoder", "decoder")
    encoder_parts: ClassVar = ("encoder",)
    fresh_parts: ClassVar = ("decoder.seg_layers",)

    def __init__(self, name: str, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, data: Volume) -> Features | list[Features]:
        """Segment a batch of crops."""
        return cast("Tensor | list[Tensor]", self.decoder(self.encoder(data)))


def build_partner(
    shape: NetworkShape,
    in_channels: int,
    out_channels: int,
    architecture: ArchitectureConfig,
    planned: PlannedNetwork | None = None,
    deep_supervision: bool = False,
    purpose: Purpose = "segmentation",
) -> Partner:
    """The partner that the plan asks for.

    Args:
        shape: sizes from the rule.
        in_channels: image channels.
        out_channels: segmentation heads, or image channels for a reconstruction.
        architecture: its ``partner`` decides.
        planned: builds the network that nnU-Net's plan names; needed for the partner ``plan`` only.
        deep_supervision: return outputs of several scales instead of full resolution only.
        purpose: a reconstruction has one head, which starts near 0 and runs in float32, and no dropout.

    Raises:
        ValueError: the plan's network is asked for and not given, or has no encoder and decoder.
    """
    if architecture.partner == "unetrpp":
        return _unetrpp(shape, in_channels, out_channels, architecture, deep_supervision, purpose)
    if planned is None:
        raise ValueError(
            "topomae.architecture.partner is 'plan', but nothing says how to build the network that the plan names"
        )
    return adopt(planned(in_channels, out_channels, deep_supervision), out_channels, purpose)


def adopt(network: nn.Module, out_channels: int, purpose: Purpose = "segmentation") -> Partner:
    """Make a partner of a network of nnU-Net's. Names and values of its weights stay as they are.

    Args:
        network: with an encoder and a decoder in nnU-Net's sense, for example PlainConvUNet or ResidualEncoderUNet.
        out_channels: of its outputs.
        purpose: for a reconstruction the head at full resolution is replaced, and the others are not trained.

    Raises:
        ValueError: the network has no such parts.
    """
    declare_partner(network)
    encoder, decoder = cast(nn.Module, network.encoder), cast(nn.Module, network.decoder)
    if purpose == "reconstruction":
        heads = cast(nn.ModuleList, decoder.seg_layers)
        heads.requires_grad_(False)  # without deep supervision, only the last one computes
        heads[-1] = ReconstructionHead(cast(int, heads[-1].in_channels), out_channels)
        initialise_weights(heads[-1])
    return Partner(type(network).__name__, encoder, decoder)


def check_partner(network: nn.Module) -> None:
    """Refuse a network that cannot be a partner.

    Raises:
        ValueError: it lacks an encoder, a decoder, its heads or its switch of deep supervision.
    """
    decoder = getattr(network, "decoder", None)
    wanted = {
        "encoder": hasattr(network, "encoder"),
        "decoder": decoder is not None,
        "decoder.seg_layers": hasattr(decoder, "seg_layers"),
        "decoder.deep_supervision": hasattr(decoder, "deep_supervision"),
    }
    if missing := [name for name, there in wanted.items() if not there]:
        raise ValueError(
            f"the plan's network {type(network).__name__} cannot be the ViT's partner: it has no {', '.join(missing)}. "
            "Plan a PlainConvUNet or a ResidualEncoderUNet (nnU-Net's default and its ResEnc planners), or set "
            "topomae.architecture.partner to 'unetrpp'."
        )


def declare_partner(network: Any) -> nn.Module:
    """Add to a network of nnU-Net's what our networks declare of themselves (architectures/roles.py).

    Only the first convolution depends on the image's channels, and the decoder counts its stages from the coarsest one.

    Args:
        network: with an encoder and a decoder in nnU-Net's sense.

    Returns:
        The same network.

    Raises:
        ValueError: it has no such parts.
    """
    check_partner(network)
    for role in ("pretrained_parts", "encoder_parts", "fresh_parts"):
        setattr(network, role, getattr(Partner, role))
    first = next(name for name, module in network.encoder.named_modules() if isinstance(module, nn.Conv3d))
    network.encoder.resampled_as = {f"{first}.weight": Resampling.CHANNELS}
    network.encoder.layers_from_input = ("stages",)
    network.decoder.stages_coarse_to_fine = ("stages", "transpconvs", "seg_layers")
    return cast(nn.Module, network)


def _unetrpp(
    shape: NetworkShape,
    in_channels: int,
    out_channels: int,
    architecture: ArchitectureConfig,
    deep_supervision: bool,
    purpose: Purpose,
) -> Partner:
    """UNETR++, with a factor of the published dropout rates where it segments."""
    reconstructs = purpose == "reconstruction"
    dropout = 0.0 if reconstructs else architecture.dropout
    settings, features = epa_settings(architecture, dropout), architecture.feature_size
    decoder = UNETRPPDecoder(
        shape, out_channels, features, settings, architecture.upsampling, deep_supervision, reconstructs
    )
    return Partner("UNETR++", UNETRPPEncoder(shape, in_channels, features, settings), decoder)


def epa_settings(architecture: ArchitectureConfig, dropout: float) -> EPASettings:
    """What the plan says about UNETR++'s stages.

    Args:
        architecture: the plan's architecture.
        dropout: factor of the published rates.
    """
    return EPASettings(
        depth=architecture.depth,
        heads=architecture.heads,
        gamma=architecture.gamma,
        share_embeddings=architecture.share_embeddings,
        attention_dropout=ATTENTION_DROPOUT * dropout,
        channel_dropout=CHANNEL_DROPOUT * dropout,
    )
