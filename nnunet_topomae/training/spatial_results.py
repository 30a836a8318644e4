"""What was found of how well networks know where a crop was taken; as values, without torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

MEAN = "mean_answer"
NAMES = {"vit": "ViT", "partner": "partner"}

Errors = dict[str, dict[str, float]]


class SpatialErrors(NamedTuple):
    """Errors of a task on random crops of training cases.

    Attributes:
        task: `vectors` or `key_points`.
        of: errors by network, and ``mean_answer`` for always answering the mean: ``mm``, the mean distance of the ends
            of vectors or of key points, and for vectors ``degrees``, the mean angle between directions.
        crops: number of crops.
    """

    task: str
    of: Errors
    crops: int

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.of, "crops": self.crops}

    @classmethod
    def read(cls, task: str, facts: Mapping[str, Any]) -> "SpatialErrors":
        """The errors of which a file has the facts."""
        return cls(task, {name: value for name, value in facts.items() if name != "crops"}, facts["crops"])

    def line(self) -> str:
        """A line for the log; says so where a network has learnt nothing."""
        title, mean = self.task.replace("_", " "), self.of[MEAN]
        parts = [f"{NAMES[name]} {_format(errors)}" for name, errors in self.of.items() if name != MEAN]
        crops = f"{self.crops} random crops of training cases"
        line = f"{title} of {crops}: {', '.join(parts)} off; always the mean: {_format(mean)}"
        worse = self._no_better_than_mean("mm")
        turned = [name for name in self._no_better_than_mean("degrees") if name not in worse]
        for names, what in ((worse, "them"), (turned, "their directions")):
            line += f". The {' and the '.join(names)} did not learn {what}" if names else ""
        return line

    def _no_better_than_mean(self, measure: str) -> list[str]:
        mean = self.of[MEAN]
        return [NAMES[n] for n, e in self.of.items() if n != MEAN and measure in e and e[measure] >= mean[measure]]


def _format(errors: Mapping[str, float]) -> str:
    degrees = f" and {errors['degrees']:.0f} degrees" if "degrees" in errors else ""
    return f"{errors['mm']:.1f} mm{degrees}"
