"""What is random in a sample follows from the training's seed and the sample's number, whichever process draws it."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from nnunet_topomae.data.images import not_finite

# nnU-Net's loader draws the case of a sample first; everything else has generators of its own.
_CASE, _REST = 0, 1


def derive_seed(*numbers: int) -> int:
    """One seed of 32 bits from several numbers, such as a training's seed and the number of a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def sample_generator(*numbers: int) -> Generator:
    """The generator of one sample.

    Args:
        numbers: the training's seed, the number of the batch and the sample's place in it.
    """
    return np.random.default_rng(numbers)


@contextmanager
def keep_global_generators() -> Iterator[None]:
    """Put the global generators of Python, numpy and torch (on the CPU) back at the end of the block."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def seed_global_generators(seed: int) -> None:
    """Seed Python, numpy and torch, the last on the CPU only: loaders have nothing to do on a GPU.

    Args:
        seed: of 32 bits.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class SeededLoader:
    """nnU-Net's loader with its augmentation, whose samples follow from a seed and their numbers.

    nnU-Net draws cases, crops and augmentation from the global generators. Here they are seeded before every sample and
    put back after the batch. Samples of several processes together are those that one process would draw with the batch
    of all of them.

    Args:
        loader: nnU-Net's; two of its methods and its transforms are replaced.
        seed: of the training's samples.
        first_sample: place of this process's first sample in the batch of all processes.
        labels: values that a label map may have besides nnU-Net's -1 for outside; None checks none.

    Attributes:
        number: of the next batch.
        errors: what went wrong in the data set, for the process that waits (data/worker_errors.py); perhaps None.
    """

    def __init__(self, loader: Any, seed: int, first_sample: int = 0, labels: Sequence[int] | None = None) -> None:
        self.loader = loader
        self.seed = seed
        self.labels = None if labels is None else torch.tensor(sorted({-1, *labels}))
        self.first_sample = first_sample
        self.number = 0
        self.errors = getattr(loader._data, "errors", None)
        self._drawn = 0
        self._cases: list[str] = []
        self._case, self._reading = "", False
        self._transforms = loader.transforms
        loader.transforms = self._augment
        self._oversample = loader.get_do_oversample
        loader.get_indices = self._draw_cases
        loader.get_do_oversample = self._begin_sample

    def __next__(self) -> dict[str, Any]:
        batch = self.draw(self.number)
        self.number += 1
        return batch

    def draw(self, number: int) -> dict[str, Any]:
        """The batch of a number, as nnU-Net makes it: ``data``, ``target`` and ``keys``.

        Raises:
            ValueError: a file is damaged, an image holds NaN or infinity, or a label map a label that the data set does
                not have; names the case.
        """
        self._drawn = number
        with keep_global_generators(), nullcontext() if self.errors is None else self.errors.reported():
            try:
                batch: dict[str, Any] = self.loader.generate_train_batch()
            except (RuntimeError, OSError) as error:
                if not self._reading:
                    raise
                raise ValueError(  # blosc2 decompresses where nnU-Net cuts the crop
                    f"the preprocessed image or label map of case {self._case} is damaged: {error}. Delete its "
                    "files and preprocess again with nnUNetv2_preprocess."
                ) from error
        return batch

    def _draw_cases(self) -> list[str]:
        """In place of nnU-Net's ``get_indices``."""
        cases, shares = self.loader.indices, self.loader.sampling_probabilities
        places = range(self.first_sample, self.first_sample + self.loader.batch_size)
        generators = [sample_generator(self.seed, self._drawn, place, _CASE) for place in places]
        self._cases = [str(cases[int(rng.choice(len(cases), p=shares))]) for rng in generators]
        return self._cases

    def _begin_sample(self, place: int) -> bool:
        """In place of nnU-Net's ``get_do_oversample``, the first thing that it asks of every sample."""
        seed_global_generators(derive_seed(self.seed, self._drawn, self.first_sample + place, _REST))
        self._case, self._reading = self._cases[place], True
        return bool(self._oversample(place))

    def _augment(self, image: Tensor, segmentation: Tensor) -> dict[str, Any]:
        """In place of nnU-Net's ``transforms``, whose errors for an unknown label name neither label nor case."""
        self._reading = False
        if not torch.isfinite(image).all():
            raise ValueError(not_finite(self._case))
        if self.labels is not None and (unknown := _unknown(segmentation, self.labels)) is not None:
            raise ValueError(
                f"case {self._case} has voxels of label {unknown}, but dataset.json has the labels "
                f"{', '.join(map(str, self.labels.tolist()[1:]))}. Correct the label map in nnUNet_raw or "
                "dataset.json, and preprocess again."
            )
        given = {"image": image, "segmentation": segmentation}
        return given if self._transforms is None else dict(self._transforms(**given))


def _unknown(segmentation: Tensor, labels: Tensor) -> int | None:
    """A value that is none of the sorted labels."""
    low, high = (int(value) for value in segmentation.aminmax())
    if low < labels[0]:
        return low
    if high > labels[-1]:
        return high
    if len(labels) == int(labels[-1] - labels[0]) + 1:  # without gaps, there is nothing else to look for
        return None
    values = segmentation[~torch.isin(segmentation, labels)]
    return int(values[0]) if len(values) else None
