"""The metrics that recipes are compared by. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A field of `StructureScore` that recipes are compared by.

    Attributes:
        label: name in reports, with its unit.
        digits: of its differences, after the decimal point.
        perfect: value of a structure that neither truth nor prediction has.
        higher_is_better: direction.
    """

    label: str
    digits: int
    perfect: float
    higher_is_better: bool

    @property
    def is_share(self) -> bool:
        """Whether its values lie between 0 and 1."""
        return self.higher_is_better and self.perfect == 1


COMPARED = {
    "dice": Metric("Dice", 4, 1.0, True),
    "hd95": Metric("HD95 mm", 2, 0.0, False),
    "nsd": Metric("NSD", 4, 1.0, True),
    "betti_error": Metric("Betti error", 2, 0.0, False),
}
