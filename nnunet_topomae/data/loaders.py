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

from nnunet_topomae.data.seeding import sample_generator
from nnunet_topomae.data.topology_target import TopologyTarget
from nnunet_topomae.data.transforms import draw_flip_axes, flip_crop
from nnunet_topomae.data.worker_errors import WorkerErrors
from nnunet_topomae.geometry import CropLocation, FlipFrame, as_size3
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.types import Size3

MONITORING_SEED = 0


@runtime_checkable
class CaseSource(Protocol):
    """What the loader asks of a data set; nnU-Net's classes have it."""

    identifiers: list[str]

    def load_case(self, identifier: str) -> Any:
        """Image (C, D, H, W), segmentation, previous segmentation, properties."""


class Crop(NamedTuple):
    """One augmented crop: voxels (C, D, H, W), key points (9, 3), and its place in the volume, flipped alike.

    Attributes:
        case: the crop's.
        volume: its voxels.
        key_points: its key points.
        location: its place.
        rng: the sample's generator, for what comes next.
    """

    case: str
    volume: Tensor
    key_points: np.ndarray
    location: CropLocation
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
        target: called with every augmented crop and the generator; its results are the batch's ``target_topology``.
        target_every: call it in every n-th batch only; the other batches have no ``target_topology``.
        first_sample: place of this process's first sample in the batch of all processes.

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
        first_sample: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, patch_size, patch_size, label_manager)
        self.crop_size = patch_size  # nnU-Net's own attribute `patch_size` has no fixed type
        self.flip_axes = tuple(flip_axes)
        self.seed = seed
        self.flip_frame: FlipFrame = flip_frame
        self.target = target
        self.target_every = target_every
        self.first_sample = first_sample
        self.errors = WorkerErrors()
        self.number = 0

    def reset(self) -> None:
        """Start again: the next batch is the first one."""
        self.number = 0

    def image(self, case: str) -> Any:
        """The array (C, D, H, W) of a case, read from disk only where it is indexed."""
        return self._data.load_case(case)[0]

    def cut(self, case: str, image: Any, location: CropLocation) -> Float[Tensor, "C D H W"]:
        """Read a crop of a case's image, padded with zeros outside the volume.

        Args:
            case: its name, for the error.
            image: from :meth:`image`.
            location: where the crop lies.

        Raises:
            ValueError: the crop holds NaN or infinity, or cannot be read.
        """
        try:
            crop = crop_and_pad_nd(image, [list(bounds) for bounds in location.bounds], 0)
        except (RuntimeError, OSError) as error:  # blosc2 decompresses only here
            raise ValueError(
                f"the preprocessed image of case {case} is damaged: {error}. Delete it and preprocess again with "
                "nnUNetv2_preprocess."
            ) from error
        volume = torch.from_numpy(np.ascontiguousarray(crop)).float()
        if not torch.isfinite(volume).all():
            raise ValueError(
                f"case {case} holds NaN or infinite voxels in {location.lower} to {location.upper}. Correct its image "
                "in nnUNet_raw and preprocess again with nnUNetv2_preprocess."
            )
        return volume

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw the next batch, see :meth:`draw`."""
        batch = self.draw(self.number)
        self.number += 1
        return batch

    def draw(self, number: int) -> dict[str, Any]:
        """Draw the batch of a number.

        Returns:
            ``data`` (B, C, D, H, W) float32, ``key_points`` (B, 9, 3) float32, ``locations``: the places of the
            crops in their volumes, both flipped, whatever the frame of the key points, ``keys``, ``mask_seeds``: seeds
            of the samples' token masks, and, with a target, ``target_topology``: its results, one a sample.
        """
        with self.errors.reported():
            return self._draw_batch(number)

    def _draw_batch(self, number: int) -> dict[str, Any]:
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            places = range(self.first_sample, self.first_sample + self.batch_size)
            crops = [self._draw_crop(sample_generator(self.seed, number, place)) for place in places]
            batch = {
                "data": torch.stack([crop.volume for crop in crops]),
                "key_points": torch.from_numpy(np.stack([crop.key_points for crop in crops])),
                "locations": [crop.location for crop in crops],
                "keys": [crop.case for crop in crops],
                "mask_seeds": [int(crop.rng.integers(2**62)) for crop in crops],
            }
            if self.target is not None and number % self.target_every == 0:
                batch["target_topology"] = [self.target(crop.volume, crop.rng) for crop in crops]
        return batch

    def _draw_crop(self, rng: Generator) -> Crop:
        case = str(self.indices[int(rng.integers(len(self.indices)))])
        image = self.image(case)
        location = CropLocation.random(volume_shape(image), self.crop_size, rng)
        volume = self.cut(case, image, location)
        axes = draw_flip_axes(self.flip_axes, rng)
        volume, key_points = flip_crop(volume, location.key_points(), axes, self.flip_frame)
        return Crop(case, volume.contiguous(), key_points, location.flipped(axes), rng)


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
        plan: patch size, flips and topology policy.
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
        first_sample,
    )
