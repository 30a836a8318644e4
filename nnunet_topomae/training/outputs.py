"""What the steps of an epoch have returned, kept for a checkpoint that is written in the middle of the epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class NotedSteps:
    """Notes what the steps of a trainer return; the end of an epoch then gets all of them, also those before `--c`.

    Args:
        trainer: its methods `train_step` and `on_train_epoch_end` are replaced.

    Attributes:
        outputs: of the steps of this epoch, in their order.
    """

    def __init__(self, trainer: Any) -> None:
        self.outputs: list[Any] = []
        self._step, self._end = trainer.train_step, trainer.on_train_epoch_end
        trainer.train_step, trainer.on_train_epoch_end = self.step, self.end

    def step(self, batch: Any) -> Any:
        """One step."""
        output = self._step(batch)
        self.outputs.append(output)
        return output

    def end(self, train_outputs: list[Any]) -> None:
        """The end of an epoch, of which nnU-Net's loop has seen the last steps only."""
        self._end(self.outputs)


def pack(outputs: Sequence[Any]) -> list[Any]:
    """Outputs as a checkpoint can hold them: arrays become tensors, so that nothing has to be run to read them.

    Args:
        outputs: mappings from names to numbers or numpy's arrays; other outputs stay as they are.
    """
    kinds = (np.ndarray, np.generic)
    return [_convert(output, kinds, lambda value: torch.from_numpy(np.array(value))) for output in outputs]


def unpack(outputs: Sequence[Any]) -> list[Any]:
    """The inverse of :func:`pack`."""
    return [_convert(output, (Tensor,), lambda value: value.numpy()) for output in outputs]


def _convert(output: Any, kinds: tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    if not isinstance(output, Mapping):
        return output
    return {name: change(value) if isinstance(value, kinds) else value for name, value in output.items()}
