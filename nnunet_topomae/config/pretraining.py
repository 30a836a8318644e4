"""The sections of a plan that say how networks are pre-trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from nnunet_topomae.config.checked import Checked, Rule
from nnunet_topomae.config.rules import ABOVE_0, AT_LEAST_0, AXES, FACTORS, UNIT


class TrainingConfig(Checked):
    """What the two trainings have in common."""

    iterations_per_epoch: int

    @classmethod
    def in_todays_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Plans and checkpoints of earlier versions give the warm-up in epochs."""
        if not isinstance(values.get("warmup_epochs"), int):
            return values
        steps_per_epoch = values.get("iterations_per_epoch", cls.iterations_per_epoch)
        rest = {key: value for key, value in values.items() if key != "warmup_epochs"}
        return {"warmup_steps": values["warmup_epochs"] * steps_per_epoch, **rest}


@dataclass(frozen=True)
class PretrainingConfig(TrainingConfig):
    """Masked co-pre-training. The paper's values are in brackets."""

    NAME: ClassVar[str] = "topomae.pretraining"

    mask_ratio: Annotated[float, Rule(lambda value: 0 < value < 1, "above 0 and below 1")] = 0.5
    """Fraction of hidden tokens (paper: 0.5)."""
    partner_masking: Literal["zero", "sparse"] = "zero"
    """How voxels are hidden from the ViT's partner: `zero` sets them to 0 in its input. `sparse`, for nnU-Net's own
    network only, also hides them again after every convolution, takes the statistics of norms from visible voxels, and
    gives the decoder learned mask tokens (Tian et al. 2023)."""
    lambda1: Annotated[float, UNIT] = 0.5
    """Weight of the loss of the ViT's partner; that of the ViT is 1 - `lambda1` (paper: 0.5). Without a ViT, the
    partner has the weight 1."""
    lambda2: Annotated[float, Rule(lambda value: 0 <= value <= 0.5, "0 to 0.5")] = 0.1
    """Weight of the topological term, and also of the spatial term, in the loss of each network (paper: 0.1)."""
    spatial: Literal["keypoints", "vectors", "both", "none"] = "keypoints"
    """What the spatial task predicts: the paper's `keypoints`, the `vectors` of VectorPOSE (Zhang et al. 2022), or
    `both`, with their consistency terms; `none` leaves the task out. In earlier plans, true means `keypoints` and false
    means `none`."""
    target: Literal["masked", "boundary", "both"] = "masked"
    """What is reconstructed: `masked` hides tokens, as in the paper. `boundary` hides none but corrupts the crop, and
    the networks reconstruct the clean crop and a map of its boundaries (VectorPOSE). `both` hides tokens of corrupted
    crops."""
    lambda3: Annotated[float, AT_LEAST_0] = 0.1
    """Weight of the two consistency terms (paper: 0.1); without a ViT there are none."""
    epochs: Annotated[int, ABOVE_0] = 200
    """Number of epochs, each of `iterations_per_epoch` steps (paper: 10,000 passes over the cases, which are 120 to 360
    of our epochs)."""
    iterations_per_epoch: Annotated[int, ABOVE_0] = 250
    """Training steps per epoch (nnU-Net: 250)."""
    validation_iterations: Annotated[int, ABOVE_0] = 10
    """Monitoring steps per epoch, on fixed crops of the fold's training cases. nnU-Net calls them validation, but no
    validation case is read."""
    preview_every: Annotated[int, AT_LEAST_0] = 50
    """Epochs between pictures of reconstructions, in `monitoring/epoch_N`; with 0, they are made at the end only."""
    gradients_every: Annotated[int, AT_LEAST_0] = 10
    """Epochs between measurements of the share that every term of the loss has in the gradient of each encoder; 0
    measures nothing. A measurement costs one backward pass per term, on one fixed batch of monitoring."""
    probe_every: Annotated[int, AT_LEAST_0] = 0
    """Epochs between probes: a linear classifier on the features of the frozen encoders is fitted to the labels of a
    few training cases, and scored by Dice on other training cases. 0 turns probes off; 10 is a good choice. No weight
    of the networks is trained with the labels."""
    plateau_probes: Annotated[int, AT_LEAST_0] = 0
    """End pre-training after this many probes in a row without a better Dice; 0 trains for all epochs."""
    learning_rate: Annotated[float, ABOVE_0] = 1.5e-4
    """Peak of the schedule (paper: base rate 6.4e-3)."""
    partner_learning_rate: Annotated[float | None, ABOVE_0] = None
    """Peak of the schedule for the ViT's partner; null takes `learning_rate`."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.05
    """AdamW's decay of weight matrices (paper: 0.005)."""
    betas: Annotated[
        tuple[float, float],
        Rule(lambda values: len(values) == 2 and all(0 <= beta < 1 for beta in values), "two numbers in [0, 1)"),
    ] = (0.9, 0.95)
    """Decay rates of AdamW's two averages (Zhou et al. 2023)."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 2500
    """Steps of linear warm-up before the cosine schedule; at most a tenth of all steps is used."""
    clip: Annotated[float, ABOVE_0] = 1.0
    """Largest gradient norm."""
    flip_axes: Annotated[tuple[int, ...], AXES] = ()
    """Spatial axes along which crops are flipped at random; none by default, as in the paper. Flips slow the spatial
    task down, because anatomy that is nearly symmetric does not show them."""
    flip_frame: Literal["volume", "crop"] = "volume"
    """What a flip does to the key points. `volume` treats the whole volume as flipped: coordinates are mirrored, and
    positions still fit the anatomy. `crop` keeps the coordinates of the original volume, so that the spatial task
    mostly asks which axes were flipped."""
    scale: Annotated[tuple[float, float], FACTORS] = (1.0, 1.0)
    """Smallest and largest factor for scaling crops: a box of this factor times the patch is read from the image and
    resampled to the patch. Every crop has a random factor, the same for all axes. A box does not reach out of the image
    unless the patch does, too."""
    rotate: bool = False
    """Rotate by 0, 90, 180 or 270 degrees at random, in all planes in which patch and spacing are square."""
    slice_axis: Literal["auto", "D", "H", "W"] = "auto"
    """For vectors: the axis from slice to slice, in the order of the preprocessed arrays. Vectors end in the centre of
    a slice. `auto` takes the axis whose spacing is at least 1.5 times that of both others, otherwise the third axis of
    the image files, which is the axial one in most data sets; the log says which."""
    polar_axis: Literal["in_plane", "slice"] = "in_plane"
    """For vectors: the axis from which the polar angle is measured. `in_plane` is the last array axis that lies in a
    slice, as in VectorPOSE's code; `slice` is the slice axis."""
    angle_weights: Literal["radius", "equal"] = "radius"
    """How much the angles of a vector count. `radius`: in proportion to the length of the vector, and not at all below
    one voxel, because directions then mean little. `equal`: all the same, as in VectorPOSE's code."""
    shuffle: Annotated[float, UNIT] = 0.25
    """Probability that a corrupted crop has its voxels shuffled within many small blocks."""
    bezier: Annotated[float, UNIT] = 0.5
    """Probability that a corrupted crop has its intensities changed by a random Bezier curve."""
    paint: Annotated[float, UNIT] = 0.75
    """Probability that a corrupted crop is painted over with noise: with equal chance, either a few blocks or
    everything but a few blocks."""
    start: str | None = None
    """Checkpoint to start from, of an earlier pre-training or of nnssl. Images that the earlier pre-training has read
    then count as read by this one, too. `-pretrained_weights FILE` does the same. With null, weights are initialised at
    random."""
    unlabeled: bool = True
    """Also read the images that `nnunet-topomae preprocess-unlabeled` prepared, if there are any."""
    patients: str | None = None
    """How to find the patient of a case, so that no scan of a validation patient is read: a regular expression with one
    group, which is searched in the case's name, or the path of a JSON table from case to patient. With null, the table
    that `nnunet-topomae convert` has written is used; without one, every case is a patient of its own."""
    seed: Annotated[int | None, AT_LEAST_0] = None
    """Seed of initial weights, crops and masks. With null, one is drawn, with which `--c` continues."""

    @classmethod
    def in_todays_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier versions also knew `spatial` as a switch."""
        values = super().in_todays_words(values)
        if isinstance(values.get("spatial"), bool):
            return {**values, "spatial": "keypoints" if values["spatial"] else "none"}
        return values

    @property
    def key_points(self) -> bool:
        """Whether key points are predicted."""
        return self.spatial in ("keypoints", "both")

    @property
    def vectors(self) -> bool:
        """Whether vectors are predicted."""
        return self.spatial in ("vectors", "both")

    @property
    def masks(self) -> bool:
        """Whether tokens are hidden."""
        return self.target != "boundary"

    @property
    def boundaries(self) -> bool:
        """Whether crops are corrupted, and the clean crop and its boundaries are rebuilt."""
        return self.target != "masked"

    def __post_init__(self) -> None:
        """Check the values, that there is one meaning of every place, and something to stop by.

        Raises:
            ValueError: values that do not fit each other.
        """
        super().__post_init__()
        if self.plateau_probes and not self.probe_every:
            raise ValueError(
                f"plan value {self.NAME}.plateau_probes = {self.plateau_probes} needs {self.NAME}.probe_every above 0"
            )
        if self.flip_frame == "crop" and (self.vectors or self.rotate):
            raise ValueError(
                f"plan value {self.NAME}.flip_frame = 'crop' is for key points of flipped crops only. Set it to "
                "'volume' to use vectors or rotations."
            )

    def probe_after(self, epochs: int) -> bool:
        """Whether a probe is due after so many epochs."""
        return self.probe_every > 0 and epochs % self.probe_every == 0

    def previews_after(self, epochs: int) -> bool:
        """Whether pictures are due after so many epochs; those of the end are made anyway."""
        return self.preview_every > 0 and epochs % self.preview_every == 0 and epochs < self.epochs


@dataclass(frozen=True)
class VectorPOSEConfig(Checked):
    """Settings of `VectorPOSEPretrainer`, which replace the keys of the same names in `topomae.pretraining`.

    This trainer has no topological term, and sets `pretraining.lambda1` to `lambda3`, `spatial`, `target`,
    `partner_masking`, `partner_learning_rate` and `flip_frame` itself. All other keys of `topomae.pretraining` apply to
    it, too.
    """

    NAME: ClassVar[str] = "topomae.vectorpose"

    tasks: Literal["both", "vectors", "boundary"] = "both"
    """`vectors`: vector prediction, from clean crops and without training the decoder. `boundary`: boundary-focused
    reconstruction. `both`: both tasks, with equal weights of all five terms (Zhang et al. 2022)."""
    scale: Annotated[tuple[float, float], FACTORS] = (0.5, 1.5)
    """See `pretraining.scale` (VectorPOSE's code: 0.5 to 1.5)."""
    rotate: bool = True
    """See `pretraining.rotate` (VectorPOSE's code: 90 or 270 degrees about every axis)."""
    flip_axes: Annotated[tuple[int, ...], AXES] = (0, 1, 2)
    """See `pretraining.flip_axes` (VectorPOSE's code: all)."""
    learning_rate: Annotated[float, ABOVE_0] = 1e-4
    """Peak of the schedule (VectorPOSE's code: 1e-4, cosine to 1e-6)."""
    weight_decay: Annotated[float, AT_LEAST_0] = 0.0
    """AdamW's decay of weight matrices (VectorPOSE's code: 0)."""
    warmup_steps: Annotated[int, AT_LEAST_0] = 0
    """Steps of linear warm-up (VectorPOSE's code: none)."""
