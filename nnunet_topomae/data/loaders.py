"""Random crops with their place in the volume, drawn without looking at labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from jaxtyping import Float
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.random import Generator
from threadpoolctl import threadpool_limits
from torch import Tensor

from nnunet_topomae.data.boundary_task import BoundaryTask
from nnunet_topomae.data.corruptions import Corruption
from nnunet_topomae.data.images import not_finite
from nnunet_topomae.data.seeding import sample_generator
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.data.transforms import Places, resample_crop, square_planes, turn_crop
from nnunet_topomae.data.worker_errors import WorkerErrors
from nnunet_topomae.geometry import CropLocation, FlipFrame, Turn, as_size3
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.types import Size3
from nnunet_topomae.vectors import VectorFrame, vector_targets

MONITORING_SEED = 0


@runtime_checkable
class CaseSource(Protocol):
    """What the loader asks of a data set; nnU-Net's classes have it."""

    identifiers: list[str]

    def load_case(self, identifier: str) -> Any:
        """Image (C, D, H, W), segmentation, previous segmentation, properties."""


class Crop(NamedTuple):
    """One augmented crop.

    Attributes:
        case: the crop's.
        volume: voxels (C, D, H, W).
        key_points: (9, 3), see geometry.flip_key_points.
        location: place of the crop in its volume, both turned alike.
        turn: how they were turned.
        rng: the sample's generator, for what comes next.
    """

    case: str
    volume: Tensor
    key_points: np.ndarray
    location: CropLocation
    turn: Turn
    rng: Generator


class CropLocationLoader(nnUNetDataLoader):
    """nnU-Net's loader for pre-training: images only, uniform crops, key points, target topology.

    Every sample has a generator of its own, seeded by ``seed``, the number of the batch and the sample's place in it.

    Args:
        dataset: preprocessed cases.
        batch_size: crops in a batch.
        patch_size: shape of a crop in voxels.
        label_manager: asked for by nnU-Net's loader; not used to choose crops.
        flip_axes: spatial axes that may be flipped.
        seed: seed of this loader's samples.
        flip_frame: whether key points are those of the flipped volume or of the volume as it was, see
            geometry.flip_key_points.
        scale: smallest and largest factor between the box that is read and the crop.
        planes: pairs of axes in whose planes crops are rotated by 0 to 270 degrees.
        vectors: how the batch's ``vectors`` are measured; None leaves them out.
        corruption: corrupts crops, for the batch's ``inputs`` and ``boundaries``; None leaves them out.
        target: computes the persistence diagrams of the augmented crops, the batch's ``target_topology``.
        target_every: call it in every n-th batch only; the other batches have no ``target_topology``.
        first_sample: place of this process's first sample in the batch of all processes.
        channels: that each image must have; None takes any number.

    Attributes:
        number: of the next batch.
    """

    def __init__(
        self,
        dataset: CaseSource,
        batch_size: int,
        patch_size: Size3,
        label_manager: LabelManager,
        flip_axes: Sequence[int],
        seed: int,
        flip_frame: FlipFrame = "volume",
        target: TopologyTarget | None = None,
        target_every: int = 1,
        scale: tuple[float, float] = (1.0, 1.0),
        planes: Sequence[tuple[int, int]] = (),
        vectors: VectorFrame | None = None,
        corruption: Corruption | None = None,
        first_sample: int = 0,
        channels: int | None = None,
    ) -> None:
        super().__init__(dataset, batch_size, patch_size, patch_size, label_manager)
        self.places = Places(patch_size, tuple(flip_axes), flip_frame, scale, tuple(planes))
        self.seed = seed
        self.vectors = vectors
        self.boundaries = None if corruption is None else BoundaryTask(corruption)
        self.target = target
        self.target_every = target_every
        self.first_sample = first_sample
        self.channels = channels
        self.errors = WorkerErrors()
        self.number = 0

    def reset(self) -> None:
        """Start again: the next batch is the first one."""
        self.number = 0

    def image(self, case: str) -> Any:
        """The array (C, D, H, W) of a case, read from disk only where it is indexed."""
        return self._data.load_case(case)[0]

    def cut(self, case: str, image: Any, location: CropLocation) -> Float[Tensor, "C D H W"]:
        """Read a crop of a case's image, padded with zeros outside the volume and resampled to its array's shape.

        Args:
            case: its name, for the error.
            image: from :meth:`image`.
            location: where the crop lies.

        Raises:
            ValueError: the crop holds NaN or infinity, cannot be read, or has another number of channels.
        """
        try:
            crop = crop_and_pad_nd(image, [list(bounds) for bounds in location.bounds], 0)
        except (RuntimeError, OSError) as error:  # blosc2 decompresses only here
            raise ValueError(
                f"the preprocessed image of case {case} is damaged: {error}. Delete it and preprocess again with "
                "nnUNetv2_preprocess."
            ) from error
        if self.channels not in (None, len(crop)):
            raise ValueError(
                f"the preprocessed image of case {case} has {len(crop)} channels, but dataset.json names "
                f"{self.channels}. Restore the data set, or preprocess it again with nnUNetv2_preprocess."
            )
        volume = torch.from_numpy(np.ascontiguousarray(crop)).float()
        if not torch.isfinite(volume).all():
            raise ValueError(not_finite(case, f" in {location.lower} to {location.upper}"))
        return resample_crop(volume, location.array_shape)

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw the next batch, see :meth:`draw`."""
        batch = self.draw(self.number)
        self.number += 1
        return batch

    def draw(self, number: int) -> dict[str, Any]:
        """Draw the batch of a number.

        Returns:
            ``data`` (B, C, D, H, W) float32, ``key_points`` (B, 9, 3) float32, ``locations``: the places of the
            crops in their volumes, both turned, whatever the frame of the key points, ``keys``, and ``mask_seeds``:
            seeds of the samples' token masks. Where they are asked for, ``vectors`` (B, 9, 4), see
            vectors.vector_targets, ``inputs``: the corrupted crops, and ``boundaries``, both (B, C, D, H, W), and
            ``target_topology``, one per sample, see topology_target.TopologyTarget.of_batch.
        """
        with self.errors.reported():
            return self._draw_batch(number)

    def _draw_batch(self, number: int) -> dict[str, Any]:
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            places = range(self.first_sample, self.first_sample + self.batch_size)
            crops = [self._draw_sample(sample_generator(self.seed, number, place)) for place in places]
            batch = {
                "data": torch.stack([crop.volume for crop in crops]),
                "key_points": torch.from_numpy(np.stack([crop.key_points for crop in crops])),
                "locations": [crop.location for crop in crops],
                "keys": [crop.case for crop in crops],
                "mask_seeds": [int(crop.rng.integers(2**62)) for crop in crops],
            }
            if self.vectors is not None:
                targets = [vector_targets(crop.location, self.vectors.turned(crop.turn)) for crop in crops]
                batch["vectors"] = torch.from_numpy(np.stack(targets))
            if self.boundaries is not None:
                pairs = [self.corrupt(crop.volume, crop.case, crop.rng) for crop in crops]
                batch["inputs"], batch["boundaries"] = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
            if self.target is not None and number % self.target_every == 0:
                batch |= self.target.of_batch([crop.volume for crop in crops], [crop.rng for crop in crops])
        return batch

    def corrupt(
        self, volume: Float[Tensor, "C D H W"], case: str, rng: Generator
    ) -> tuple[Float[Tensor, "C D H W"], Float[Tensor, "C D H W"]]:
        """A corrupted copy of a crop, and its boundaries; for loaders with a corruption.

        Args:
            volume: the crop.
            case: whose intensities say what is dark and bright.
            rng: source of randomness.
        """
        assert self.boundaries is not None
        return self.boundaries(volume, self.boundaries.range_of(case, self.image), rng)

    def _draw_sample(self, rng: Generator) -> Crop:
        return self.draw_crop(str(self.indices[int(rng.integers(len(self.indices)))]), rng)

    def draw_crop(self, case: str, rng: Generator) -> Crop:
        """A random crop of a case, augmented.

        Args:
            case: its name.
            rng: source of randomness.
        """
        image = self.image(case)
        source, turn = self.places.draw(volume_shape(image), rng)
        volume = turn_crop(self.cut(case, image, source), turn)
        key_points = self.places.key_points(source, turn)
        return Crop(case, volume.contiguous(), key_points, source.turned(turn), turn, rng)


def volume_shape(image: Any) -> Size3:
    """Shape (D, H, W) of a case's image (C, D, H, W)."""
    return as_size3(image.shape[1:], "volume shape")


def build_pretraining_loader(
    dataset: CaseSource,
    batch_size: int,
    plan: Plan,
    label_manager: LabelManager,
    seed: int | None,
    first_sample: int = 0,
) -> CropLocationLoader:
    """The loader that a plan's `topomae` section asks for.

    Args:
        dataset: preprocessed cases.
        batch_size: crops in a batch.
        plan: patch size, augmentation, tasks and topology policy.
        label_manager: asked for by nnU-Net's loader.
        seed: seed of the training's crops; None gives the fixed crops of monitoring, where every batch has its target
            topology, whatever `topology.every` says.
        first_sample: place of this process's first sample in the batch of all processes.
    """
    topology, pretraining = plan.config.topology, plan.config.pretraining
    return CropLocationLoader(
        dataset,
        batch_size,
        plan.shape.patch_size,
        label_manager,
        pretraining.flip_axes,
        MONITORING_SEED if seed is None else seed,
        pretraining.flip_frame,
        TopologyTarget(topology) if topology.enabled else None,
        1 if seed is None else topology.every,
        pretraining.scale,
        square_planes(plan.shape.patch_size, plan.spacing) if pretraining.rotate else (),
        plan.vector_frame() if pretraining.vectors else None,
        _corruption(plan, monitoring=seed is None),
        first_sample,
        plan.facts.get("channels"),
    )


def _corruption(plan: Plan, monitoring: bool) -> Corruption | None:
    """What corrupts crops; None where no crop is corrupted and no term of the loss reads a boundary.

    Monitoring and validation measure boundaries wherever the networks predict them.
    """
    pretraining, topology = plan.config.pretraining, plan.config.topology
    probabilities = (pretraining.shuffle, pretraining.bezier, pretraining.paint)
    idle = pretraining.lambda2 == 0.5 and not any(probabilities) and not topology.enabled
    return None if not pretraining.boundaries or (idle and not monitoring) else Corruption(*probabilities)
