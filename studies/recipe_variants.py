"""Variants of the study of recipes: the factors that make one, and the networks that it trains."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_topomae.architectures import build
from nnunet_topomae.architectures.attention import EPABlock
from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.architectures.layers import LEAKY_SLOPE, Pointwise, use_channels_last
from nnunet_topomae.architectures.partner import declare_partner
from nnunet_topomae.architectures.rule import NetworkShape, derive_network_shape
from nnunet_topomae.config import ArchitectureConfig
from nnunet_topomae.nnunet.plan import PlanNetwork

# Factors that pre-training does not read.
FINETUNING = (
    *(
        "optimiser",
        "lr",
        "warmup",
        "decay",
        "clip",
        "ds",
        "ema",
        "beta2",
        "fusion_end",
        "pretrain_parts",
        "first_std",
        "slow",
    ),
    "schedule",
)
TINY = ArchitectureConfig(vit="tiny", dims=(16, 32, 64, 128), depth=1)


@dataclass(frozen=True)
class Variant:
    """One way to train. The defaults are where this study started.

    Attributes:
        network: `unetrpp`, `fusion` (from scratch) or `nnunet`.
        heads: initial scale of the segmentation heads: `kaiming`, `small` (0.02) or `unit` (1 / sqrt(C)).
        first_std: the heads are then scaled so that the first logits have this standard deviation; 0 leaves them.
        ends: initial scale of the 1x1x1 convolutions that end residual branches: likewise, or `zero`.
        gamma: initial scale of attention.
        dropout: factor of UNETR++'s dropout rates.
        optimiser: `adamw`, `sgd` (Nesterov, 0.99, as nnU-Net) or `muon` (matrices; AdamW for the rest).
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        decay: weight decay; the default is AdamW's also with other optimisers.
        clip: largest gradient norm.
        ds: deep-supervision weights: `unetrpp` (4/7, 2/7, 1/7), `nnunet` (2/3, 1/3, 0) or `none`.
        ema: decay of the average of weights that is validated; 0 validates the weights themselves.
        beta2: AdamW's second average.
        width: factor of UNETR++'s channels.
        feature: channels at full resolution; 0 takes the default 16.
        depth: transformer blocks in a stage.
        drop_path: stochastic depth of the fusion network's ViT.
        fusion_end: initial scale of the last layers of the fusion projections: `zero` or `small` (0.02).
        pretrain: steps of masked pre-training before, without spatial and topological terms: of both networks of the
            fusion network, or of `nnunet` alone.
        pretrain_lr: its peak learning rate.
        masking: how nnU-Net's own network is kept from hidden voxels while it is pre-trained: `zero` or `sparse`.
        top_skip: whether pre-training of nnU-Net's own network may `keep` the skip connection at full resolution, or
            must `drop` it, so that hidden voxels cannot be rebuilt from the visible edges beside them alone.
        pretrain_head: initial scale of UNETR++'s reconstruction head.
        pretrain_vit: initial scale of the ViT's reconstruction head: `xavier` or `small`.
        pretrain_parts: what of them is kept: `all`, or the `encoder`, so that the decoder starts fresh.
        slow: factor of the learning rate of pre-trained weights.
        schedule: the plan's `finetuning.schedule`; a stage of `warmup` and `staged` is a quarter of the training.
    """

    network: str = "unetrpp"
    heads: str = "kaiming"
    first_std: float = 0.0
    ends: str = "small"
    gamma: float = 0.1
    dropout: float = 1.0
    optimiser: str = "adamw"
    lr: float = 1.5e-3
    warmup: int = 0
    decay: float = 0.05
    clip: float = 1.0
    ds: str = "unetrpp"
    ema: float = 0.0
    beta2: float = 0.999
    width: float = 1.0
    feature: int = 0
    depth: int = 1
    drop_path: float = 0.1
    fusion_end: str = "zero"
    pretrain: int = 0
    pretrain_lr: float = 1e-3
    pretrain_head: str = "small"
    pretrain_vit: str = "xavier"
    pretrain_parts: str = "all"
    masking: str = "zero"
    top_skip: str = "keep"
    slow: float = 1.0
    schedule: str = "full"

    def of_pretraining(self) -> "Variant":
        """The same without the factors that only fine-tuning reads: variants that agree share a pre-training."""
        return replace(self, **{item.name: item.default for item in fields(self) if item.name in FINETUNING})


NNUNET = Variant(network="nnunet", optimiser="sgd", lr=1e-2, decay=3e-5, clip=12.0, ds="nnunet")


def read_variant(text: str) -> Variant:
    """`lr=3e-3,heads=small` -> a variant; `default` and `nnunet` stand for themselves."""
    base, _, rest = text.partition(",")
    if "=" in base:
        base, rest = "default", text
    variant = {"default": Variant(), "nnunet": NNUNET, "fusion": Variant(network="fusion")}[base]
    kinds = {item.name: type(getattr(variant, item.name)) for item in fields(Variant)}
    pairs = [pair.split("=") for pair in rest.split(",") if pair]
    return replace(variant, **{name: kinds[name](value) for name, value in pairs})


def build_network(variant: Variant, crops: dict[str, Any]) -> nn.Module:
    """The network of a variant with its initial weights."""
    configuration = PlansManager(crops["plans"]).get_configuration("3d_fullres")
    channels, classes = crops["batches"][0][0].shape[1], len(crops["dataset"]["labels"])
    if variant.network == "nnunet":
        return declare_partner(_planned(configuration)(channels, classes, True))
    shape, architecture, channels = _shape(variant, crops)
    network = _build(variant, shape, channels, classes, architecture)
    _rescale(network, variant)
    use_channels_last(network)
    return network


def build_pretraining_network(variant: Variant, crops: dict[str, Any]) -> tuple[NetworkShape, CoPretrainingNetwork]:
    """The network that is pre-trained, with its initial weights."""
    shape, architecture, channels = _shape(variant, crops)
    if variant.network == "nnunet":
        configuration = PlansManager(crops["plans"]).get_configuration("3d_fullres")
        planned, architecture = _planned(configuration), replace(architecture, partner="plan", vit="none")
        strides = configuration.pool_op_kernel_sizes
        shape = derive_network_shape(crops["patch"], strides, architecture, planned.features)
        masking = variant.masking
        network = build.build_copretraining_network(shape, channels, architecture, planned=planned, masking=masking)
        if variant.top_skip == "drop":
            network.decoder.register_forward_pre_hook(_without_top_skip)
        return shape, network
    network = build.build_copretraining_network(shape, channels, architecture)
    _scale(network.decoder.seg_layers[0].weight, variant.pretrain_head)
    prediction = network.vit_decoder.prediction.weight
    if variant.pretrain_vit == "small":
        nn.init.trunc_normal_(prediction, std=0.02)
    else:
        nn.init.xavier_uniform_(prediction)
    return shape, network


def _without_top_skip(_: nn.Module, arguments: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
    """Features of the encoder without what is at full resolution."""
    (features,) = arguments
    return ([torch.zeros_like(features[0]), *features[1:]],)


def _planned(configuration: ConfigurationManager) -> PlanNetwork:
    return PlanNetwork.of(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
    )


def _shape(variant: Variant, crops: dict[str, Any]) -> tuple[NetworkShape, ArchitectureConfig, int]:
    configuration = PlansManager(crops["plans"]).get_configuration("3d_fullres")
    architecture = replace(
        TINY,
        dims=tuple(int(variant.width * dim) for dim in TINY.dims),
        gamma=variant.gamma,
        depth=variant.depth,
        drop_path=variant.drop_path,
        dropout=variant.dropout,
        feature_size=variant.feature or TINY.feature_size,
    )
    shape = derive_network_shape(crops["patch"], configuration.pool_op_kernel_sizes, architecture)
    return shape, architecture, crops["batches"][0][0].shape[1]


def _build(
    variant: Variant, shape: NetworkShape, channels: int, classes: int, section: ArchitectureConfig
) -> nn.Module:
    make = build.build_unetrpp if variant.network == "unetrpp" else build.build_fusion_network
    return make(shape, channels, classes, section, deep_supervision=True)


def _rescale(network: Any, variant: Variant) -> None:
    """Set the initial scales that the variant names."""
    for head in network.decoder.seg_layers:
        _scale(head.weight, variant.heads)
    for module in network.modules():
        if isinstance(module, EPABlock):
            end = next(layer for layer in module.output if isinstance(layer, Pointwise))
            _scale(end.weight, variant.ends)
    if variant.network == "fusion" and variant.fusion_end == "small":
        for projection in network.fusion.projections:
            nn.init.trunc_normal_(projection[-1].weight, std=0.02)


def _scale(weight: Tensor, name: str) -> None:
    fan_in = weight[0].numel()
    if name == "kaiming":
        nn.init.kaiming_normal_(weight, a=LEAKY_SLOPE)
    else:
        std = {"zero": 0.0, "small": 0.02, "unit": fan_in**-0.5, "half": 0.5 * fan_in**-0.5}[name]
        nn.init.normal_(weight, std=std)
