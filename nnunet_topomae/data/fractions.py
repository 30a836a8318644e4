"""A fraction of the labelled training cases: nested, stratified by the labels that occur, fixed by a seed."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np


def choose_fraction(strata: Mapping[str, Hashable], fraction: float, seed: int) -> list[str]:
    """The first cases of an order in which every stratum is spread evenly.

    A smaller fraction of the same cases and seed is part of a larger one, and every stratum has its share in each, up
    to one case.

    Args:
        strata: what cases are balanced for, by case.
        fraction: above 0, at most 1; rounded to whole cases, at least one.
        seed: of the order.

    Returns:
        names, sorted.

    Raises:
        ValueError: fraction out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the labelled cases is above 0 and at most 1, got {fraction}")
    generator = np.random.default_rng(seed)
    members: dict[Hashable, list[str]] = {}
    for case in sorted(strata):
        members.setdefault(strata[case], []).append(case)
    places: dict[str, float] = {}
    for cases in members.values():
        offset = generator.random()
        for place, index in enumerate(generator.permutation(len(cases))):
            places[cases[index]] = (place + offset) / len(cases)
    count = max(1, round(fraction * len(places)))
    return sorted(sorted(places, key=lambda case: (places[case], case))[:count])


def labels_present(dataset: Any, cases: Sequence[str]) -> dict[str, frozenset[str]]:
    """Which labels occur in each case.

    Args:
        dataset: nnU-Net's preprocessed data set.
        cases: names.
    """
    present = {}
    for case in cases:
        locations = dataset.load_case(case)[-1]["class_locations"]
        present[case] = frozenset(str(label) for label, voxels in locations.items() if len(voxels))
    return present
