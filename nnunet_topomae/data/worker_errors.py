"""Errors of the processes that load batches, for the process that waits for the batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import SimpleQueue
from typing import Any

from nnunet_topomae.nnunet.dataset import channel_names

# So much always fits into a pipe, so that nobody waits while writing.
_MOST_CHARACTERS = 2000


class WorkerErrors:
    """What went wrong in a worker process. Made before the workers start, which inherit it."""

    def __init__(self) -> None:
        self._queue: Any = SimpleQueue()

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Report an error of the block, which is raised all the same."""
        try:
            yield
        except Exception as error:
            self._queue.put((str(error) or type(error).__name__)[:_MOST_CHARACTERS])
            raise

    def last(self) -> str | None:
        """An error that was reported and not asked for yet, or None."""
        return None if self._queue.empty() else str(self._queue.get())


class CheckedCases:
    """nnU-Net's data set, whose errors name the case.

    Args:
        dataset: preprocessed cases; everything else is left to it.
        description: content of `dataset.json`, whose channels each image must have.

    Attributes:
        errors: for the loader that reads the cases to report what went wrong.
    """

    def __init__(self, dataset: Any, description: Mapping[str, Any]) -> None:
        self.dataset = dataset
        self.channels = len(channel_names(description))
        self.errors = WorkerErrors()

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> Any:
        """A case as nnU-Net loads it.

        Raises:
            ValueError: it cannot be read, or its files do not belong together; names the case, the folder and the
                cure.
        """
        try:
            case = self.dataset.load_case(identifier)
            self._check(*case)
            return case
        except Exception as error:  # blosc2, numpy and pickle raise many kinds
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(
                f"case {identifier} in {self.dataset.source_folder} cannot be read ({reason}). Preprocess it again "
                "with nnUNetv2_preprocess."
            ) from error

    def _check(self, image: Any, segmentation: Any, _: Any, properties: Any) -> None:
        if image.shape[0] != self.channels:
            raise ValueError(f"its image has {image.shape[0]} channels, but dataset.json names {self.channels}")
        if tuple(segmentation.shape[1:]) != tuple(image.shape[1:]):
            shapes = f"{tuple(segmentation.shape[1:])}, but its image {tuple(image.shape[1:])}"
            raise ValueError(f"its label map has the shape {shapes}")
        if "class_locations" not in properties:
            raise ValueError("its properties have no class_locations")
