"""The one comparison that a benchmark is made for, named in its file before anything runs. Standard library only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae.benchmark.compared import COMPARED


@dataclass(frozen=True)
class Primary:
    """A comparison.

    Attributes:
        recipe: name of the recipe that is expected to be better.
        against: name of the recipe to compare it with.
        metric: one of `COMPARED`.
        fraction: share of the labels.
    """

    recipe: str
    against: str
    metric: str
    fraction: float = 1.0


def describe(stated: Mapping[str, Any] | None) -> str:
    """What a file named, in words.

    Args:
        stated: as in `BenchmarkSpec.stated`, which every training records.
    """
    if stated is None:
        return "none"
    share = "" if stated["fraction"] == 1 else f", {100 * stated['fraction']:g} % of the labels"
    margin = "" if stated["margin"] is None else f", margin {stated['margin']:g}"
    return f"{stated['recipe']} against {stated['against']} by {stated['metric']}{share}{margin}"


def read_primary(path: Path, value: Any, recipes: Collection[str], fractions: Collection[float]) -> Primary:
    """The value of `primary`: `[recipe, against, metric]`, and the share of the labels if it is not 1.

    Args:
        path: the benchmark's file, for errors.
        value: as read from the file.
        recipes: names of the benchmark's recipes.
        fractions: its shares of the labels.

    Raises:
        ValueError: it does not name a comparison of this benchmark.
    """
    form = '["recipe", "against", "metric"], and the share of the labels if it is not 1.0'
    if not isinstance(value, list) or len(value) not in (3, 4) or not all(isinstance(name, str) for name in value[:3]):
        raise ValueError(f"{path}: primary = {value!r} must be {form}")
    share = value[3] if len(value) == 4 else 1.0
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ValueError(f"{path}: primary = {value!r} must be {form}")
    primary = Primary(value[0], value[1], value[2], float(share))
    for name in (primary.recipe, primary.against):
        if name not in recipes:
            raise ValueError(f"{path}: primary names {name!r}, which is none of the recipes {', '.join(recipes)}")
    if primary.recipe == primary.against:
        raise ValueError(f"{path}: primary compares {primary.recipe!r} with itself")
    if primary.metric not in COMPARED:
        raise ValueError(f"{path}: primary names the metric {primary.metric!r}; there are {', '.join(COMPARED)}")
    if primary.fraction not in fractions:
        shares = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise ValueError(f"{path}: primary names the label fraction {primary.fraction:g}; label_fractions has {shares}")
    return primary
