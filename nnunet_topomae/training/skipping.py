"""Steps that go wrong: skipped, or done without a term, and counted; an error where they do not end."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

# A gradient scaler halves its scale in each of them; it starts at 2**16.
MOST_IN_A_ROW = 20
# Each of them may have waited for the whole time limit.
MOST_TERMS_IN_A_ROW = 5


class MissingTerms:
    """Counts the steps that went on without the topological term.

    Args:
        most_in_a_row: so many in a row end the training.

    Attributes:
        total: how many there were since the process began.
    """

    def __init__(self, most_in_a_row: int = MOST_TERMS_IN_A_ROW) -> None:
        self.most_in_a_row = most_in_a_row
        self.total = 0
        self._in_a_row = 0

    def there(self) -> None:
        """A step had the term, so the row ends."""
        self._in_a_row = 0

    def missing(self, reason: str, cases: Iterable[str]) -> str:
        """Count a step without the term.

        Args:
            reason: why it is missing.
            cases: of the batch.

        Returns:
            A line for the log.

        Raises:
            RuntimeError: too many in a row.
        """
        self.total += 1
        self._in_a_row += 1
        line = f"no topological term in this step, {self.total} so far: {reason}; cases {', '.join(cases)}"
        if self._in_a_row < self.most_in_a_row:
            return line
        raise RuntimeError(
            f"{line}. That was the {self._in_a_row}th step in a row. Give the term less to do (a smaller "
            "topology.region_size, or topology.region = pool), more threads or time (topology.threads, "
            "topology.time_limit), or leave it out: topology.enabled = false. --c continues from the last checkpoint."
        )


class SkippedSteps:
    """Counts the steps of a training that were skipped.

    Args:
        most_in_a_row: so many in a row end the training.

    Attributes:
        total: how many were skipped since the process began.
    """

    def __init__(self, most_in_a_row: int = MOST_IN_A_ROW) -> None:
        self.most_in_a_row = most_in_a_row
        self.total = 0
        self._in_a_row = 0
        self._cases: Counter[str] = Counter()

    def done(self) -> None:
        """A step was done, so the row ends."""
        self._in_a_row = 0
        self._cases.clear()

    def skip(self, terms: Mapping[str, Tensor], cases: Iterable[str]) -> None:
        """Count a step that is skipped.

        Args:
            terms: of the loss, by name.
            cases: of the batch.

        Raises:
            RuntimeError: too many in a row; names the terms that are not finite and the cases, most frequent first.
        """
        self.total += 1
        self._in_a_row += 1
        self._cases.update(cases)
        if self._in_a_row < self.most_in_a_row:
            return
        values = {name: float(term.detach()) for name, term in terms.items()}
        wrong = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
        listed = ", ".join(case for case, _ in self._cases.most_common(10))
        raise RuntimeError(
            f"{self._in_a_row} training steps in a row had no finite loss and gradient "
            f"({wrong or 'the gradient alone is not finite'}), on batches of the cases {listed}. Look at their images "
            "for NaN or extreme values; if they are fine, lower the learning rate in the plan's topomae section. "
            "Checkpoints on disk are untouched: --c continues from the last one."
        )
