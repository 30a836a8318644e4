"""Errors of the processes that load batches, for the process that waits for the batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import SimpleQueue
from typing import Any

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


class ReportingCases:
    """nnU-Net's data set, whose errors name the case and are reported.

    Args:
        dataset: preprocessed cases; everything else is left to it.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
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
            ValueError: it cannot be read; names the case, the folder and the cure.
        """
        with self.errors.reported():
            try:
                return self.dataset.load_case(identifier)
            except Exception as error:  # blosc2, numpy and pickle raise many kinds
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise ValueError(
                    f"case {identifier} in {self.dataset.source_folder} cannot be read ({reason}). Preprocess it again "
                    "with nnUNetv2_preprocess."
                ) from error
