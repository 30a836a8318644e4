"""The fine-tuned network "MAE + UNETR++" (paper Fig. 2): ViT features added to those of UNETR++, or another partner."""

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from nnunet_topomae.architectures.layers import Downsampling, Features, Pointwise, Upsampling, initialise_weights
from nnunet_topomae.architectures.rule import NetworkShape
from nnunet_topomae.architectures.vit import ViTEncoder
from nnunet_topomae.types import Size3, Volume


class TokenFusion(nn.Module):
    """Project ViT feature maps to the scale and the channels of every stage of the partner and add them.

    Paper is silent on the projections. The stage of the token grid takes a 1x1x1 convolution; finer stages transposed
    and coarser ones strided convolutions with the strides in between, with InstanceNorm and GELU between two of
    them. The last layer of every projection starts at zero, so fine-tuning starts exactly at the pre-trained partner.

    Args:
        width: channels of the ViT.
        shape: sizes from the rule.
    """

    def __init__(self, width: int, shape: NetworkShape) -> None:
        super().__init__()
        self.projections = nn.ModuleList(token_projection(width, stage, shape) for stage in range(len(shape.dims)))
        self.apply(initialise_weights)
        for projection in self.projections:
            last = cast(nn.Sequential, projection)[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, stages: Sequence[Features], taps: Sequence[Features]) -> list[Features]:
        """Add to every stage the projection of its tap.

        Args:
            stages: features of the partner, fine to coarse, without the full-resolution skip.
            taps: feature maps (B, E, d, h, w) of the ViT on its token grid, one for each stage, first layer first.

        Returns:
            The sums, of the shapes of ``stages``.
        """
        return [stage + projection(tap) for stage, tap, projection in zip(stages, taps, self.projections, strict=True)]


class FusionNetwork(nn.Module):
    """Pre-trained ViT encoder + pre-trained partner; features of equal scale are added (paper Fig. 2).

    Attributes:
        pretrained_parts: parts that pre-training provides.
        encoder_parts: those of them that encode.
        fresh_parts: the rest, within them or next to them.
    """

    pretrained_parts: ClassVar = ("vit_encoder", "encoder", "decoder")
    encoder_parts: ClassVar = ("vit_encoder", "encoder")
    fresh_parts: ClassVar = ("fusion", "decoder.seg_layers")

    def __init__(self, vit_encoder: ViTEncoder, fusion: TokenFusion, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.vit_encoder = vit_encoder
        self.fusion = fusion
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, data: Volume) -> Features | list[Features]:
        """Segment a batch of crops: logits (B, K, D, H, W), or a list fine to coarse with deep supervision."""
        full_resolution, *stages = self.encoder(data)
        taps = self.vit_encoder.forward_taps(data, taps=len(stages))
        fused = self.fusion(stages, taps)
        return cast("Tensor | list[Tensor]", self.decoder([full_resolution, *fused]))


def token_projection(width: int, stage: int, shape: NetworkShape) -> nn.Sequential:
    """The layers between the token grid and one stage.

    Args:
        width: channels of the ViT.
        stage: which stage.
        shape: sizes from the rule.
    """
    source = shape.token_stage
    if stage == source:
        return nn.Sequential(Pointwise(width, shape.dims[stage]))
    finer = stage < source
    path = range(source - 1, stage - 1, -1) if finer else range(source + 1, stage + 1)
    layers: list[nn.Module] = []
    channels = width
    for step in path:
        if layers:
            layers += [nn.InstanceNorm3d(channels, affine=True), nn.GELU()]
        stride: Size3 = shape.strides[step + 1] if finer else shape.strides[step]
        if finer:
            layers.append(Upsampling(channels, shape.dims[step], stride, bias=True))
        else:
            layers.append(Downsampling(channels, shape.dims[step], stride, bias=True))
        channels = shape.dims[step]
    return nn.Sequential(*layers)
