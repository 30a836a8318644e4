"""Random crops with their place in the volume, drawn without looking at labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from jaxtyping import Float
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.random import Generator
from threadpoolctl import threadpool_limits
from torch import Tensor

from nnunet_topomae.data.boundary_task import BoundaryTask
from nnunet_topomae.data.corruptions import Corruption
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
        volume: voxels (C, D, H, W).
        key_points: (9, 3), see geometry.flip_key_points.
        location: place of the crop in its volume, both turned alike.
        turn: how they were turned.
    """

    volume: Tensor
    key_points: np.ndarray
    location: CropLocation
    turn: Turn


class CropLocationLoader(nnUNetDataLoader):
    """nnU-Net's loader for pre-training: images only, uniform crops, key points, target topology.

    Every random number comes from one generator per worker, seeded by ``seed`` and the worker's number.

    Args:
        dataset: preprocessed cases.
        batch_size: crops in a batch.
        patch_size: shape of a crop in voxels.
        label_manager: asked for by nnU-Net's loader; not used to choose crops.
        flip_axes: spatial axes that may be flipped.
        seed: seed of this loader's generators.
        flip_frame: whether key points are those of the flipped volume or of the volume as it was, see
            geometry.flip_key_points.
        scale: smallest and largest factor between the box that is read and the crop.
        planes: pairs of axes in whose planes crops are rotated by 0 to 270 degrees.
        vectors: how the batch's ``vectors`` are measured; None leaves them out.
        corruption: corrupts crops, for the batch's ``inputs`` and ``boundaries``; None leaves them out.
        target: called with every augmented crop and the generator; its results are the batch's ``target_topology``.
        target_every: call it in every n-th batch only; the other batches have no ``target_topology``.
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
    ) -> None:
        super().__init__(dataset, batch_size, patch_size, patch_size, label_manager)
        self.places = Places(patch_size, tuple(flip_axes), flip_frame, scale, tuple(planes))
        self.seed = seed
        self.vectors = vectors
        self.boundaries = None if corruption is None else BoundaryTask(corruption)
        self.target = target
        self.target_every = target_every
        self.errors = WorkerErrors()
        self._rng: Generator | None = None
        self._batches = 0

    def reset(self) -> None:
        """Start the random sequence again; the next batch is the first one."""
        self._rng = None
        self._batches = 0

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
        return resample_crop(volume, location.array_shape)

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw a batch.

        Returns:
            ``data`` (B, C, D, H, W) float32, ``key_points`` (B, 9, 3) float32, ``locations``: the places of the
            crops in their volumes, both turned, whatever the frame of the key points, and ``keys``. Where they are
            asked for, ``vectors`` (B, 9, 4), see vectors.vector_targets, ``inputs``: the corrupted crops, and
            ``boundaries``, both (B, C, D, H, W), and ``target_topology``: the target's results, one a sample.
        """
        with self.errors.reported():
            return self._draw_batch()

    def _draw_batch(self) -> dict[str, Any]:
        if self._rng is None:
            self._rng = np.random.default_rng([self.seed, self.thread_id])
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            keys = [str(self._rng.choice(self.indices)) for _ in range(self.batch_size)]
            crops = [self.draw_crop(case, self._rng) for case in keys]
            batch = {
                "data": torch.stack([crop.volume for crop in crops]),
                "key_points": torch.from_numpy(np.stack([crop.key_points for crop in crops])),
                "locations": [crop.location for crop in crops],
                "keys": keys,
            }
            if self.vectors is not None:
                targets = [vector_targets(crop.location, self.vectors.turned(crop.turn)) for crop in crops]
                batch["vectors"] = torch.from_numpy(np.stack(targets))
            if self.boundaries is not None:
                pairs = [self.corrupt(crop.volume, case, self._rng) for crop, case in zip(crops, keys, strict=True)]
                batch["inputs"], batch["boundaries"] = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
            if self.target is not None and self._batches % self.target_every == 0:
                batch["target_topology"] = [self.target(crop.volume, self._rng) for crop in crops]
        self._batches += 1
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

    def draw_crop(self, case: str, rng: Generator) -> Crop:
        """A random crop of a case, augmented.

        Args:
            case: its name.
            rng: source of randomness.
        """
        image = self.image(case)
        source, turn = self.places.draw(volume_shape(image), rng)
        volume = turn_crop(self.cut(case, image, source), turn)
        return Crop(volume.contiguous(), self.places.key_points(source, turn), source.turned(turn), turn)


def volume_shape(image: Any) -> Size3:
    """Shape (D, H, W) of a case's image (C, D, H, W)."""
    return as_size3(image.shape[1:], "volume shape")


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers, such as a training's seed and the epoch it continues from."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def build_pretraining_loader(
    dataset: CaseSource, batch_size: int, plan: Plan, label_manager: LabelManager, seed: int | None
) -> CropLocationLoader:
    """The loader that a plan's `topomae` section asks for.

    Args:
        dataset: preprocessed cases.
        batch_size: crops in a batch.
        plan: patch size, augmentation, tasks and topology policy.
        label_manager: asked for by nnU-Net's loader.
        seed: seed of the training's crops; None gives the fixed crops of monitoring, where every batch has its target
            topology, whatever `topology.every` says.
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
        Corruption(pretraining.shuffle, pretraining.bezier, pretraining.paint) if pretraining.boundaries else None,
    )


def start_workers(
    loader: CropLocationLoader, device: torch.device
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Run a loader in as many worker processes as nnU-Net allows (``nnUNet_n_proc_DA``).

    Args:
        loader: what every process draws batches from; without processes, this one does.
        device: where the batches go; for CUDA they are put into pinned memory.
    """
    processes = get_allowed_n_proc_DA()
    if processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        loader,
        None,
        processes,
        num_cached=max(6, processes // 2),
        pin_memory=device.type == "cuda",
        wait_time=0.002,
    )
