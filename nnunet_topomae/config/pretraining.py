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
    """Masked co-pre-training. The paper's values stand in brackets."""

    NAME: ClassVar[str] = "topomae.pretraining"

    mask_ratio: Annotated[float, Rule(lambda value: 0 < value < 1, "above 0 and below 1")] = 0.5
    """Fraction of hidden tokens (paper: 0.5)."""
    partner_masking: Literal["zero", "sparse"] = "zero"
    """How the ViT's partner is kept from hidden voxels: `zero` sets them to 0 at its input. `sparse`, for nnU-Net's own
    network only, also hides them again after every convolution, takes the statistics of norms from visible voxels, and
    gives the decoder learned mask tokens (Tian et al. 2023)."""
    lambda1: Annotated[float, UNIT] = 0.5
    """Weight of the partner's branch against the ViT's (paper: 0.5); without a ViT the partner's is 1."""
    lambda2: Annotated[float, Rule(lambda value: 0 <= value <= 0.5, "0 to 0.5")] = 0.1
    """Weight of each of the topological and the spatial term in a branch (paper: 0.1)."""
    spatial: Literal["keypoints", "vectors", "both", "none"] = "keypoints"
    """What the spatial task predicts: the paper's `keypoints`, the `vectors` of VectorPOSE (Zhang et al. 2022), or
    `both`, with their consistency terms; `none` leaves it out. Earlier plans say true for `keypoints` and false for
    `none`."""
    target: Literal["masked", "boundary", "both"] = "masked"
    """What is reconstructed: `masked` hides tokens, as in the paper. `boundary` hides none but corrupts the crop; the
    networks rebuild the clean crop and a map of its boundaries (VectorPOSE). `both` hides tokens of corrupted crops."""
    lambda3: Annotated[float, AT_LEAST_0] = 0.1
    """Weight of the two consistency terms (paper: 0.1); without a ViT there are none."""
    epochs: Annotated[int, ABOVE_0] = 200
    """Epochs of `iterations_per_epoch` (paper: 10,000 passes over the cases, which are 120 to 360 of ours)."""
    iterations_per_epoch: Annotated[int, ABOVE_0] = 250
    """Training steps per epoch (nnU-Net: 250)."""
    validation_iterations: Annotated[int, ABOVE_0] = 10
    """Monitoring steps per epoch, on fixed crops of the fold's training cases. nnU-Net calls them validation, but no
    validation case is read."""
    preview_every: Annotated[int, AT_LEAST_0] = 50
    """Epochs between pictures of reconstructions, in `monitoring/epoch_N`; 0 makes them at the end only."""
    gradients_every: Annotated[int, AT_LEAST_0] = 10
    """Epochs between measurements of the share that every term of the loss has in the gradient of each encoder; 0
    measures nothing. It costs one backward pass per term, on one fixed batch of monitoring."""
    probe_every: Annotated[int, AT_LEAST_0] = 0
    """Epochs between probes: a linear read-out of the frozen encoders is fitted to the labels of a few training cases
    and scored by Dice on other training cases. 0 makes none; 10 is a good choice. Labels train no weight."""
    plateau_probes: Annotated[int, AT_LEAST_0] = 0
    """End pre-training after so many probes in a row without a better Dice; 0 trains for all epochs."""
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
    """What a flip does to the key points. `volume` treats the whole volume as flipped, so that coordinates are
    mirrored and position still fits appearance. `crop` keeps the coordinates of the volume as it was, so that the
    spatial task mostly asks which axes were flipped."""
    scale: Annotated[tuple[float, float], FACTORS] = (1.0, 1.0)
    """Smallest and largest factor between the box that is read from the image and the patch that it is resampled to;
    drawn for every crop, the same for all axes. Boxes do not leave the image where the patch does not."""
    rotate: bool = False
    """Rotate by 0, 90, 180 or 270 degrees at random, in all planes in which patch and spacing are square."""
    slice_axis: Literal["auto", "D", "H", "W"] = "auto"
    """The vectors' axis from slice to slice, in the order of the preprocessed arrays: across it lies the plane in whose
    centre the vectors end. `auto` takes the axis whose spacing is at least 1.5 times that of both others, otherwise the
    third axis of the image files, which is the axial one in most data sets; the log says which."""
    polar_axis: Literal["in_plane", "slice"] = "in_plane"
    """Axis from which the vectors' polar angle is measured: the last array axis that lies `in_plane`, as in
    VectorPOSE's code, or the `slice` axis."""
    angle_weights: Literal["radius", "equal"] = "radius"
    """How much the angles of a vector count: in proportion to its length and not at all below one voxel, where
    directions mean little, or `equal`, as in VectorPOSE's code."""
    shuffle: Annotated[float, UNIT] = 0.25
    """Probability that a corrupted crop has its voxels shuffled within many small blocks."""
    bezier: Annotated[float, UNIT] = 0.5
    """Probability that a corrupted crop has its intensities changed by a random Bezier curve."""
    paint: Annotated[float, UNIT] = 0.75
    """Probability that blocks of a corrupted crop are painted over: in one half of the cases a few blocks, in the other
    half everything but a few blocks."""
    start: str | None = None
    """Checkpoint to start from: of an earlier pre-training, whose images then count as read by this one too, or of
    nnssl. `-pretrained_weights FILE` does the same. With null, weights start fresh."""
    unlabeled: bool = True
    """Also read the images that `nnunet-topomae preprocess-unlabeled` prepared, if there are any."""
    patients: str | None = None
    """How to derive the patient from a case's name, so that no scan of a validation patient is read: a regular
    expression with one group, searched in the name, or the path of a JSON table from case to patient. With null, the
    table of a converter counts, if there is one; else every case is a patient of its own."""
    seed: Annotated[int | None, AT_LEAST_0] = None
    """Seed of weights, crops and masks; null draws one, with which `--c` goes on."""

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
    """What `VectorPOSEPretrainer` takes in place of the same keys of `topomae.pretraining`; the others it shares."""

    NAME: ClassVar[str] = "topomae.vectorpose"

    tasks: Literal["both", "vectors", "boundary"] = "both"
    """Vector prediction, from clean crops and without training the decoder; boundary-focused reconstruction; or both,
    with equal weights of all five terms (Zhang et al. 2022)."""
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
