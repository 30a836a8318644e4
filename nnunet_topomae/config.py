"""The `topomae` section of a plan's configuration, read into frozen dataclasses.

The plan is the only configuration. A plan without the section, for example stock ``nnUNetPlans``, gives the defaults
below; a key that does not exist or a value out of range is an error that names the allowed ones.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

SECTION = "topomae"
FROM_SCRATCH = "scratch"

Section = TypeVar("Section")


@dataclass(frozen=True)
class ArchitectureConfig:
    """What the two networks are made of; everything else follows from patch size and strides (architectures/rule.py).

    Attributes:
        vit: preset of the ViT encoder, see architectures/vit.py.
        drop_path: stochastic depth of the ViT while fine-tuning (Zhou et al. 2023: 0.1).
        dropout: factor of UNETR++'s dropout rates in supervised training (1 takes those of Shaker et al. 2024:
            attention 0.15, channels 0.1). Pre-training has none.
        dims: channels of the four UNETR++ stages.
        depth: transformer blocks in a UNETR++ stage.
        heads: attention heads of EPA.
        projections: upper limits of the number of projected tokens in EPA, stage by stage.
        feature_size: channels of UNETR++'s full-resolution skip.
        gamma: initial value of EPA's residual scale. The original's 1e-6 silences EPA at the start.
        share_embeddings: one position embedding and EPA projection for all blocks of a stage.
        upsampling: last decoder step, `transposed` as in the original or `trilinear` (no checkerboard).
    """

    vit: Literal["tiny", "small", "default", "base"] = "default"
    drop_path: float = 0.1
    dropout: float = 0.0
    dims: tuple[int, ...] = (32, 64, 128, 256)
    depth: int = 3
    heads: int = 4
    projections: tuple[int, ...] = (64, 64, 64, 32)
    feature_size: int = 16
    gamma: float = 0.1
    share_embeddings: bool = False
    upsampling: Literal["transposed", "trilinear"] = "transposed"


@dataclass(frozen=True)
class TopologyConfig:
    """Policy of the topological loss (paper Sec. II-A).

    Attributes:
        enabled: compute the term at all.
        region: `full` the whole crop, `crop` a sub-crop of `region_size`, `pool` the crop average-pooled to fit it.
        region_size: edge length in voxels of the region for `crop` and `pool`; shorter axes are used whole.
        composition: what the reconstructed volume is at visible voxels. Paper is silent: `paste` takes the input's
            values, `full` the network's raw output.
        dimensions: homology dimensions that enter the sum (0 components, 1 loops, 2 voids).
        normalisation: `paper` the distance itself, `per_voxel` divided by the square root of the number of voxels.
        weight: factor of the term besides lambda2; 1 is the paper's overall loss.
        every: compute the term in every n-th training step only, there with n times the weight, so that its mean weight
            before clipping is the same. Logged terms are unweighted, and monitoring computes the term in all steps.
        warmup_epochs: epochs over which the term's weight grows linearly from 0 to its full value.
        backend: library for persistent homology; `auto` takes cripser, else gudhi.
        threads: worker threads; 0 takes the number of cores, at most 8.
    """

    enabled: bool = True
    region: Literal["full", "crop", "pool"] = "crop"
    region_size: int = 48
    composition: Literal["paste", "full"] = "paste"
    dimensions: tuple[int, ...] = (0, 1, 2)
    normalisation: Literal["paper", "per_voxel"] = "per_voxel"
    weight: float = 1.0
    every: int = 1
    warmup_epochs: int = 5
    backend: Literal["auto", "cripser", "gudhi"] = "auto"
    threads: int = 0

    def warmup_factor(self, epoch: int) -> float:
        """Factor of the term's weight in ``epoch``: 0 in the first epoch, 1 after the warm-up."""
        return 1.0 if epoch >= self.warmup_epochs else epoch / self.warmup_epochs

    def training_factor(self, epoch: int) -> float:
        """Factor of the term's weight in the training steps that compute it, so that its mean is the warm-up's."""
        return self.every * self.warmup_factor(epoch)


@dataclass(frozen=True)
class PretrainingConfig:
    """Masked co-pre-training. The paper's own values stand behind ours where they differ (docs/method.md).

    Attributes:
        mask_ratio: fraction of hidden tokens (paper: 0.5).
        lambda1: weight of the UNETR++ branch against the ViT branch (paper: 0.5).
        lambda2: weight of each of the topological and the spatial term in a branch (paper: 0.1).
        spatial: train on key points at all, with L_spa and L_spa-consis; for ablations.
        lambda3: weight of the two consistency terms (paper: 0.1).
        epochs: epochs of `iterations_per_epoch` (paper: 10,000 passes over the cases, 120 to 160 of ours).
        iterations_per_epoch: training steps in an epoch (nnU-Net: 250).
        validation_iterations: monitoring steps in an epoch, on fixed crops of the fold's training cases.
        learning_rate: peak of the schedule (paper: base rate 6.4e-3).
        weight_decay: AdamW decay of weight matrices (paper: 0.005).
        betas: AdamW's averages (Zhou et al. 2023).
        warmup_steps: linear warm-up before the cosine; at most a tenth of all steps is used.
        clip: largest gradient norm.
        flip_axes: spatial axes along which crops are flipped at random; none by default, as in the paper. Flips slow
            the spatial task down, because anatomy that is nearly symmetric does not show them (docs/method.md).
        flip_frame: what a flip does to the key points. `volume` takes the volume for flipped too, so that coordinates
            are mirrored and position still fits appearance. `crop` keeps the coordinates of the volume as it was, so
            that the spatial task mostly asks which axes were flipped.
        unlabeled: also read the images that `nnunet-topomae preprocess-unlabeled` prepared, if there are any.
        patients: how a case's patient is known, so that no scan of a validation patient is read: a regular expression
            with one group, searched in the case's name, or the path of a JSON table from case to patient; null takes
            every case for a patient of its own.
        seed: seed of masks and weights; null draws one.
    """

    mask_ratio: float = 0.5
    lambda1: float = 0.5
    lambda2: float = 0.1
    spatial: bool = True
    lambda3: float = 0.1
    epochs: int = 200
    iterations_per_epoch: int = 250
    validation_iterations: int = 10
    learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 2500
    clip: float = 1.0
    flip_axes: tuple[int, ...] = ()
    flip_frame: Literal["volume", "crop"] = "volume"
    unlabeled: bool = True
    patients: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class FinetuningConfig:
    """Supervised training of the fusion network and of UNETR++ from scratch.

    Attributes:
        pretrained: null finds the pre-training of the same data set, plans, configuration and fold; a path is a
            checkpoint file; `scratch` trains without one.
        transfer: `same_plan` refuses a checkpoint of another plan, `resample` adapts its weights to this one.
        transfer_parts: which pre-trained networks the fusion network takes over: the ViT's encoder, its partner's (that
            is UNETR++'s) encoder and decoder, or both. What it does not take over starts fresh.
        allow_other_dataset: take a checkpoint of another data set, though nothing can say whether it has seen images of
            the validation cases.
        epochs: epochs of `iterations_per_epoch` (paper: 5,000 passes over the cases).
        iterations_per_epoch: training steps in an epoch (nnU-Net: 250).
        validation_iterations: validation steps in an epoch (nnU-Net: 50).
        learning_rate: peak for freshly initialised weights (paper: base rate 1e-1).
        pretrained_learning_rate: peak for pre-trained weights; like the paper, the same for all weights by default.
        weight_decay: AdamW decay of weight matrices (paper: 0.005).
        warmup_steps: linear warm-up before the polynomial decay; at most a tenth of all steps is used.
        clip: largest gradient norm.
        mirror_axes: spatial axes mirrored in augmentation and, all combinations averaged, in prediction; null takes
            nnU-Net's (all). Leave out the left-right axis where left and right organs have different labels.
        network: what `MONAITrainer` trains; the other trainers have their own network.
        label_fraction: share of the fold's training cases to train on, for label-efficiency curves; pre-training reads
            the images of all of them.
        label_seed: decides which; a smaller share is part of a larger one.
        seed: seed of the weights; null draws one.
    """

    pretrained: str | None = None
    transfer: Literal["same_plan", "resample"] = "same_plan"
    transfer_parts: Literal["both", "vit", "partner"] = "both"
    allow_other_dataset: bool = False
    epochs: int = 1000
    iterations_per_epoch: int = 250
    validation_iterations: int = 50
    learning_rate: float = 3e-4
    pretrained_learning_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup_steps: int = 2500
    clip: float = 1.0
    mirror_axes: tuple[int, ...] | None = None
    network: Literal["unetr", "swin_unetr", "attention_unet"] | None = None
    label_fraction: float = 1.0
    label_seed: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class TopoMAEConfig:
    """All of the `topomae` section."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> "TopoMAEConfig":
        """Read the section of one configuration of a plan; absent keys take their defaults.

        Raises:
            ValueError: unknown key or value out of range, with its full name and what is allowed.
        """
        return _read(cls, configuration.get(SECTION, {}), SECTION)

    def to_plan(self) -> dict[str, Any]:
        """The section as JSON-serialisable nested dictionaries."""
        return asdict(self)


def _read(section: type[Section], values: Any, name: str) -> Section:
    """Build the dataclass ``section`` from plain JSON values, recursively."""
    if not isinstance(values, Mapping):
        raise ValueError(f"plan value {name} must be a table of keys, got {values!r}")
    hints = get_type_hints(section)
    values = _in_todays_words(section, values)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown plan key {name}.{unknown[0]}; allowed: {', '.join(sorted(hints))}")
    read = {key: _convert(hints[key], value, f"{name}.{key}") for key, value in values.items()}
    result = section(**read)
    for item in fields(section):  # type: ignore[arg-type]
        check = _RANGES.get(f"{name}.{item.name}")
        value = getattr(result, item.name)
        if check is not None and value is not None and not check[0](value):
            raise ValueError(f"plan value {name}.{item.name} = {value!r} is out of range: {check[1]}")
    return result


def _in_todays_words(section: type, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Values of plans and checkpoints of earlier versions, which gave the warm-up in epochs."""
    if section not in (PretrainingConfig, FinetuningConfig) or not isinstance(values.get("warmup_epochs"), int):
        return values
    steps_per_epoch = values.get("iterations_per_epoch", section.iterations_per_epoch)
    rest = {key: value for key, value in values.items() if key != "warmup_epochs"}
    return {"warmup_steps": values["warmup_epochs"] * steps_per_epoch, **rest}


def _convert(hint: Any, value: Any, name: str) -> Any:
    """Turn one JSON value into the type of its field, or raise with the field's name."""
    if hasattr(hint, "__dataclass_fields__"):
        return _read(hint, value, name)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"plan value {name} = {value!r} is not one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None else _convert(inner, value, name)
    if get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"plan value {name} = {value!r} must be a list")
        return tuple(_convert(get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"plan value {name} = {value!r} must be of type {hint.__name__}")
    return value


def _unit(value: float | int) -> bool:
    return 0.0 <= value <= 1.0


def _positive(value: float | int) -> bool:
    return value > 0


def _not_negative(value: float | int) -> bool:
    return value >= 0


def _axes(values: tuple[int, ...]) -> bool:
    return set(values) <= {0, 1, 2} and len(set(values)) == len(values)


_RANGES: dict[str, tuple[Any, str]] = {
    "topomae.architecture.drop_path": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "topomae.architecture.dropout": (lambda v: 0 <= v <= 5, "0 to 5"),
    "topomae.architecture.dims": (lambda v: len(v) == 4 and min(v) > 0, "four positive numbers"),
    "topomae.architecture.depth": (_positive, "at least 1"),
    "topomae.architecture.heads": (_positive, "at least 1"),
    "topomae.architecture.projections": (lambda v: len(v) == 4 and min(v) > 0, "four positive numbers"),
    "topomae.architecture.feature_size": (_positive, "at least 1"),
    "topomae.pretraining.mask_ratio": (lambda v: 0 < v < 1, "above 0 and below 1"),
    "topomae.pretraining.lambda1": (_unit, "0 to 1"),
    "topomae.pretraining.lambda2": (lambda v: 0 <= v <= 0.5, "0 to 0.5"),
    "topomae.pretraining.lambda3": (_not_negative, "at least 0"),
    "topomae.pretraining.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "topomae.pretraining.flip_axes": (_axes, "distinct axes out of 0, 1, 2"),
    "topomae.finetuning.mirror_axes": (_axes, "distinct axes out of 0, 1, 2, or null for nnU-Net's"),
    "topomae.finetuning.label_fraction": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "topomae.finetuning.label_seed": (_not_negative, "at least 0"),
    "topomae.topology.region_size": (lambda v: v >= 2, "at least 2 voxels"),
    "topomae.topology.dimensions": (lambda v: len(v) > 0 and _axes(v), "distinct dimensions out of 0, 1, 2"),
    "topomae.topology.weight": (_positive, "above 0; enabled = false leaves the term out"),
    "topomae.topology.every": (_positive, "at least 1"),
    "topomae.topology.warmup_epochs": (_not_negative, "at least 0"),
    "topomae.topology.threads": (_not_negative, "0 for automatic, or the number of threads"),
}
for _stage in ("pretraining", "finetuning"):
    for _key in ("epochs", "iterations_per_epoch", "validation_iterations", "learning_rate", "clip"):
        _RANGES[f"topomae.{_stage}.{_key}"] = (_positive, "above 0")
    for _key in ("weight_decay", "warmup_steps", "seed"):
        _RANGES[f"topomae.{_stage}.{_key}"] = (_not_negative, "at least 0")
_RANGES["topomae.finetuning.pretrained_learning_rate"] = (_positive, "above 0")
