"""The `topomae` section of a plan's configuration, as frozen dataclasses that check their values.

The plan is the only configuration. A plan without the section, for example stock ``nnUNetPlans``, takes the defaults
below. Below every field stands what it means; `docs/reference/plan-keys.md` is made from these sentences.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from nnunet_topomae.config.checked import Checked, Rule, closest, convert, did_you_mean
from nnunet_topomae.config.pretraining import PretrainingConfig, TrainingConfig, VectorPOSEConfig
from nnunet_topomae.config.rules import ABOVE_0, AT_LEAST_0, AT_LEAST_1, AXES, FOUR

__all__ = [
    "ArchitectureConfig",
    "FinetuningConfig",
    "PretrainingConfig",
    "TopoMAEConfig",
    "TopologyConfig",
    "VectorPOSEConfig",
    "check_crop_value",
    "check_settings",
]

SECTION = "topomae"
FROM_SCRATCH = "scratch"

_SIZE = Rule(lambda value: type(value) is int and value > 0, "a whole number above 0")
# What settings may name outside of the section; which patch fits depends on the plan (plans/variants.py).
CONFIGURATION_KEYS: Mapping[str, Rule] = {
    "patch_size": Rule(
        lambda value: isinstance(value, list) and len(value) == 3 and all(map(_SIZE.holds, value)),
        "three whole numbers above 0, for example [96,96,96]",
    ),
    "batch_size": _SIZE,
}


@dataclass(frozen=True)
class ArchitectureConfig(Checked):
    """The size and the parts of the two networks. Everything else follows from the plan's patch size and strides."""

    NAME: ClassVar[str] = "topomae.architecture"

    partner: Literal["unetrpp", "plan"] = "unetrpp"
    """The network that is pre-trained next to the ViT, and whose decoder makes the segmentation: `unetrpp` as in the
    paper, or `plan`, nnU-Net's own network as in its plan. The keys from `dropout` on concern UNETR++ only."""
    vit: Literal["none", "tiny", "small", "default", "base"] = "default"
    """Size of the ViT encoder; `nnunet-topomae parameters --vit all` compares them. `none` leaves the ViT out: the
    partner is pre-trained and fine-tuned alone."""
    drop_path: Annotated[float, Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")] = 0.1
    """Stochastic depth of the ViT while fine-tuning (Zhou et al. 2023: 0.1)."""
    dropout: Annotated[float, Rule(lambda value: 0 <= value <= 5, "0 to 5")] = 0.0
    """Factor of UNETR++'s dropout rates in supervised training; 1 gives the rates of Shaker et al. 2024, 0.15 for
    attention and 0.1 for channels. Pre-training has no dropout."""
    dims: Annotated[tuple[int, ...], FOUR] = (32, 64, 128, 256)
    """Channels of the four UNETR++ stages: even numbers that are multiples of `heads`."""
    depth: Annotated[int, AT_LEAST_1] = 3
    """Transformer blocks in each UNETR++ stage."""
    heads: Annotated[int, AT_LEAST_1] = 4
    """Attention heads of the efficient paired attention (EPA) in UNETR++."""
    projections: Annotated[tuple[int, ...], FOUR] = (64, 64, 64, 32)
    """Largest number of projected tokens in EPA, one value for each stage."""
    feature_size: Annotated[int, AT_LEAST_1] = 16
    """Channels of UNETR++'s skip connection at full resolution."""
    gamma: float = 0.1
    """Initial value of EPA's residual scale. With the original's 1e-6, EPA has almost no effect at the start."""
    share_embeddings: bool = False
    """Use one position embedding and one EPA projection for all blocks of a stage."""
    upsampling: Literal["transposed", "trilinear"] = "transposed"
    """Last step of the decoder: `transposed` convolution as in the original, or `trilinear`, which leaves no
    checkerboard pattern."""

    @property
    def has_vit(self) -> bool:
        """Whether there is a ViT next to the partner."""
        return self.vit != "none"

    def __post_init__(self) -> None:
        """Check the values, and that EPA can divide the channels among its heads and its two branches."""
        super().__post_init__()
        if any(dim % self.heads or dim % 2 for dim in self.dims):
            raise ValueError(
                f"plan value {self.NAME}.dims = {self.dims!r} is out of range: even multiples of "
                f"{self.NAME}.heads = {self.heads}"
            )


@dataclass(frozen=True)
class TopologyConfig(Checked):
    """How the topological loss is computed and weighted (paper Sec. II-A)."""

    NAME: ClassVar[str] = "topomae.topology"

    enabled: bool = True
    """Compute the term at all."""
    region: Literal["full", "crop", "pool"] = "crop"
    """What the term is computed on: `full` the whole crop, `crop` a random part of it with edges of `region_size`,
    `pool` the crop after average pooling to that size."""
    region_size: Annotated[int, Rule(lambda value: value >= 2, "at least 2 voxels")] = 48
    """Edge length in voxels of the region for `crop` and `pool`; axes that are shorter are used whole."""
    composition: Literal["paste", "full"] = "paste"
    """Values of the reconstructed volume at visible voxels: `paste` takes those of the input, `full` the network's
    output. The paper does not say."""
    dimensions: Annotated[
        tuple[int, ...],
        Rule(lambda values: len(values) > 0 and AXES.holds(values), "distinct dimensions out of 0, 1, 2"),
    ] = (0, 1, 2)
    """Homology dimensions that enter the sum: 0 components, 1 loops, 2 voids."""
    normalisation: Literal["paper", "per_voxel"] = "per_voxel"
    """`paper` takes the distance itself, `per_voxel` divides it by the square root of the number of voxels."""
    weight: Annotated[
        float | Literal["auto"],
        Rule(lambda value: value == "auto" or value > 0, "above 0; enabled = false leaves the term out"),
    ] = 1.0
    """Factor of the term, in addition to `pretraining.lambda2`; 1 is the paper's overall loss. `auto` starts with 1 and
    adapts the factor of each network, so that the term's share of the gradient stays near `auto_share`."""
    auto_share: Annotated[float, Rule(lambda value: 0 < value < 1, "above 0 and below 1")] = 0.1
    """Wanted share of the term if `weight` is `auto`: the norm of its gradient divided by the sum of these norms over
    all terms, as `pretraining.gradients_every` measures it."""
    every: Annotated[int, AT_LEAST_1] = 1
    """Compute the term in every n-th training step only, with n times the weight, so that its mean weight (before
    gradient clipping) is the same. Logged terms are unweighted, and monitoring computes the term in all steps."""
    warmup_epochs: Annotated[int, AT_LEAST_0] = 5
    """Epochs over which the term's weight grows linearly from 0 to its full value."""
    tolerance: Annotated[float, Rule(lambda value: 0 <= value < 1, "0 for exact, below 1")] = 0.0
    """The matching may stop as soon as the relative error of the squared distance is proven to be at most this. 0
    computes the exact distance."""
    backend: Literal["auto", "native", "cripser", "gudhi"] = "auto"
    """What computes persistent homology. `auto` takes `native`, the package's own engine, which is the fastest; the
    libraries `cripser` and `gudhi` give the same diagrams."""
    threads: Annotated[int, Rule(lambda value: value >= 0, "0 for automatic, or the number of threads")] = 0
    """Worker threads; 0 takes the number of cores, at most 8, divided among the processes of the training. With several
    processes, none of them uses more threads than its share of the cores."""
    time_limit: Annotated[float | None, ABOVE_0] = 300.0
    """Seconds that a training step waits for the term, or a loader worker for the diagrams of a batch of inputs. After
    that, the step continues without the term. With null, there is no limit."""

    @property
    def initial_weight(self) -> float:
        """Factor of the term before anything is adapted."""
        return 1.0 if isinstance(self.weight, str) else self.weight

    def warmup_factor(self, epoch: int) -> float:
        """Factor of the term's weight in ``epoch``: 0 in the first epoch, 1 after the warm-up."""
        return 1.0 if epoch >= self.warmup_epochs else epoch / self.warmup_epochs

    def training_factor(self, epoch: int) -> float:
        """Factor of the term's weight in the training steps that compute it, so that its mean is the warm-up's."""
        return self.every * self.warmup_factor(epoch)


@dataclass(frozen=True)
class FinetuningConfig(TrainingConfig):
    """Supervised training, of the fusion network and of networks from scratch."""

    NAME: ClassVar[str] = "topomae.finetuning"

    pretrained: str | None = None
    """Where the pre-trained weights come from: null finds the pre-training of the same data set, plans, configuration
    and fold; a path is a checkpoint file; `scratch` trains without one."""
    pretrainer: Literal["TopoMAEPretrainer", "VectorPOSEPretrainer"] = "TopoMAEPretrainer"
    """Which trainer's pre-training of the fold is used if `pretrained` is null. VectorPOSE trains the partner alone, so
    also set `transfer_parts` to `partner`, or `architecture.vit` to `none`."""
    transfer: Literal["same_plan", "resample"] = "same_plan"
    """`same_plan` refuses a checkpoint of another plan, `resample` adapts its weights to this one, if the images are
    normalised alike."""
    transfer_parts: Literal["both", "vit", "partner"] = "both"
    """Which pre-trained networks the fusion network takes over: the ViT's encoder, its partner's encoder and decoder,
    or both. Other weights are initialised at random."""
    transfer_decoder: Literal["auto", "yes", "no"] = "auto"
    """Whether the decoder of the ViT's partner is taken over together with its encoder. `auto`: yes, but in
    `PretrainedNNUNetTrainer` only with `schedule` = `head_only`, because SGD learns slowly from a decoder that has
    reconstructed images (docs/nnunet.md). The layer of UNETR++ that only the decoder reads, at full resolution,
    goes with the decoder."""
    allow_other_dataset: bool = False
    """Accept a checkpoint of another data set. The check for validation cases then compares only the contents of
    images, not the names of cases."""
    epochs: Annotated[int, ABOVE_0] = 1000
    """Epochs of `iterations_per_epoch` (paper: 5,000 passes over the cases)."""
    iterations_per_epoch: Annotated[int, ABOVE_0] = 250
    """Training steps per epoch (nnU-Net: 250)."""
    validation_iterations: Annotated[int, ABOVE_0] = 50
    """Validation steps per epoch (nnU-Net: 50)."""
    learning_rate: Annotated[float, ABOVE_0] = 3e-4
    """Peak of the schedule for freshly initialised weights (paper: base rate 1e-1)."""
    pretrained_learning_rate: Annotated[float, ABOVE_0] = 3e-4
    """Peak of the schedule for pre-trained weights; by default the same as for fresh ones, as in the paper."""
    schedule: Literal["full", "warmup", "staged", "layer_decay", "head_only"] = "full"
    """How pre-trained weights start to learn. `full`: all weights from the first step. `warmup`: the rate of
    pre-trained weights rises linearly over the first `stage_epochs`. `staged`: the encoders are frozen for
    `stage_epochs`, then all weights learn. `layer_decay`: the farther a layer is from its encoder's output, the slower
    it learns. `head_only`: only fresh weights learn."""
    stage_epochs: Annotated[int, ABOVE_0] = 50
    """Length of the first stage of `warmup` and `staged`; must be below `epochs`."""
    layer_decay: Annotated[float, Rule(lambda value: 0 < value < 1, "above 0 and below 1")] = 0.75
    """Factor of the learning rate from one layer of a pre-trained encoder to the next one nearer to the input, for
    `schedule` = `layer_decay`."""
    sgd_learning_rate: Annotated[float, ABOVE_0] = 1e-2
    """Peak of the schedule for fresh weights in `PretrainedNNUNetTrainer`, which trains with SGD (nnU-Net: 0.01)."""
    sgd_pretrained_learning_rate: Annotated[float, ABOVE_0] = 1e-2
    """Peak of the schedule for pre-trained weights in `PretrainedNNUNetTrainer`."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.05
    """AdamW's decay of weight matrices (paper: 0.005)."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 2500
    """Steps of linear warm-up before the polynomial decay; at most a tenth of all steps is used."""
    clip: Annotated[float, ABOVE_0] = 1.0
    """Largest gradient norm."""
    mirror_axes: Annotated[tuple[int, ...] | None, AXES] = None
    """Spatial axes that are mirrored in augmentation and in prediction, which averages over all combinations. With
    null, all axes, as in nnU-Net. Leave out the left-right axis if left and right organs have different labels."""
    network: Literal["unetr", "swin_unetr", "attention_unet"] | None = None
    """The network of `MONAITrainer`; other trainers ignore this key."""
    label_fraction: Annotated[float, Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")] = 1.0
    """Share of the fold's training cases to train on, for label-efficiency curves. Pre-training reads the images of all
    of them."""
    label_seed: Annotated[int, AT_LEAST_0] = 0
    """Seed that decides which cases belong to `label_fraction`; a smaller share is part of a larger one."""
    seed: Annotated[int | None, AT_LEAST_0] = None
    """Seed of initial weights, crops, augmentation and dropout. With null, one is drawn, with which `--c` continues."""

    def __post_init__(self) -> None:
        """Check the values, and that there is a second stage.

        Raises:
            ValueError: values that do not fit each other.
        """
        super().__post_init__()
        if self.schedule in ("warmup", "staged") and self.stage_epochs >= self.epochs:
            raise ValueError(
                f"plan value {self.NAME}.stage_epochs = {self.stage_epochs} must be below {self.NAME}.epochs = "
                f"{self.epochs}, or the first stage of schedule = {self.schedule!r} would be the whole training"
            )

    @property
    def first_stage(self) -> int:
        """Steps of the first stage."""
        return self.stage_epochs * self.iterations_per_epoch

    @property
    def warmup_used(self) -> int:
        """Steps of a warm-up: those that the plan wants, at most a tenth of all."""
        return min(self.warmup_steps, self.epochs * self.iterations_per_epoch // 10)


@dataclass(frozen=True)
class TopoMAEConfig(Checked):
    """All of the `topomae` section."""

    NAME: ClassVar[str] = SECTION

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    vectorpose: VectorPOSEConfig = field(default_factory=VectorPOSEConfig)
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)

    def __post_init__(self) -> None:
        """Check what depends on two sections.

        Raises:
            ValueError: values that do not fit each other.
        """
        super().__post_init__()
        if self.pretraining.partner_masking == "sparse" and self.architecture.partner != "plan":
            raise ValueError(
                f"plan value {SECTION}.pretraining.partner_masking = 'sparse' needs {SECTION}.architecture.partner = "
                "'plan': UNETR++'s attention has no sparse form here"
            )
        if self.topology.weight == "auto" and self.pretraining.gradients_every == 0:
            raise ValueError(
                f"plan value {SECTION}.topology.weight = 'auto' needs {SECTION}.pretraining.gradients_every above 0: "
                "the weight follows from the measured gradients"
            )

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> "TopoMAEConfig":
        """Read the section of one configuration of a plan; absent keys take their defaults.

        Raises:
            ValueError: unknown key or value out of range, with its full name and what is allowed.
        """
        return cls.read(configuration.get(SECTION, {}))

    def for_vectorpose(self) -> "TopoMAEConfig":
        """What `VectorPOSEPretrainer` trains: the partner alone, on vectors and boundaries, without topology.

        A branch weights each term of the reconstruction with 1 - 2 lambda2 and each spatial term with lambda2, so 1/3
        makes all weights equal. Vectors alone are predicted from clean crops; nothing then trains the decoder.
        """
        own = self.vectorpose
        lambda2 = {"both": 1.0 / 3.0, "vectors": 0.5, "boundary": 0.0}[own.tasks]
        clean: dict[str, Any] = {"shuffle": 0.0, "bezier": 0.0, "paint": 0.0} if own.tasks == "vectors" else {}
        pretraining = replace(
            self.pretraining,
            spatial="none" if own.tasks == "boundary" else "vectors",
            target="boundary",
            lambda1=1.0,
            lambda2=lambda2,
            lambda3=0.0,
            partner_masking="zero",
            partner_learning_rate=None,
            flip_frame="volume",
            **{item.name: getattr(own, item.name) for item in fields(own) if item.name != "tasks"},
            **clean,
        )
        architecture = replace(self.architecture, vit="none")
        return replace(
            self, architecture=architecture, pretraining=pretraining, topology=replace(self.topology, enabled=False)
        )

    def to_plan(self) -> dict[str, Any]:
        """The section as JSON-serialisable nested dictionaries."""
        return asdict(self)


def check_crop_value(key: str, value: Any) -> None:
    """Check the value of one of `CONFIGURATION_KEYS`.

    Args:
        key: `patch_size` or `batch_size`.
        value: as read from JSON or TOML.

    Raises:
        ValueError: with the value and what is allowed.
    """
    rule = CONFIGURATION_KEYS[key]
    if not rule.holds(value):
        raise ValueError(f"{key} = {value!r} must be {rule.words}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check values that shall be set in plans, one by one.

    Args:
        settings: values by dotted key, such as `finetuning.epochs`; also `patch_size` and `batch_size`. Whether a patch
            fits, only the plan can tell.

    Raises:
        ValueError: a key that does not exist, with the closest one that does, or a value that is not allowed.
    """
    sections = TopoMAEConfig.hints()
    hints = {f"{name}.{key}": hint for name, section in sections.items() for key, hint in section.hints().items()}
    for key, value in settings.items():
        plain = key.removeprefix(f"{SECTION}.")
        if plain in sections:
            sections[plain].read(value)
        elif plain in hints:
            convert(hints[plain], value, f"{SECTION}.{plain}")
        elif key in CONFIGURATION_KEYS:
            check_crop_value(key, value)
        else:
            of_that_name = [known for known in hints if known.endswith(f".{plain}")]
            alike = of_that_name or closest(plain, [*hints, *CONFIGURATION_KEYS])
            raise ValueError(f"unknown plan key {key}{did_you_mean(alike)}")
