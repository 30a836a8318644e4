"""Fractions of the labelled cases."""

import itertools

import numpy as np
import pytest

from nnunet_topomae.data.fractions import choose_fraction, labels_present

STRATA = {f"case_{number:02d}": "rare" if number % 4 == 0 else "common" for number in range(40)}


def test_fractions_are_nested() -> None:
    chosen = [set(choose_fraction(STRATA, fraction, 3)) for fraction in (0.1, 0.25, 0.5, 0.8, 1.0)]
    assert [len(part) for part in chosen] == [4, 10, 20, 32, 40]
    assert all(small < large for small, large in itertools.pairwise(chosen))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.55])
def test_strata_have_their_share(seed: int, fraction: float) -> None:
    chosen = choose_fraction(STRATA, fraction, seed)
    assert sum(STRATA[case] == "rare" for case in chosen) == pytest.approx(10 * fraction, abs=1)


def test_the_seed_decides() -> None:
    assert choose_fraction(STRATA, 0.3, 1) == choose_fraction(dict(reversed(STRATA.items())), 0.3, 1)
    assert len({tuple(choose_fraction(STRATA, 0.3, seed)) for seed in range(10)}) == 10


def test_every_case_is_as_likely_as_another() -> None:
    counts = dict.fromkeys(STRATA, 0)
    for seed in range(1500):
        for case in choose_fraction(STRATA, 0.25, seed):
            counts[case] += 1
    np.testing.assert_allclose(list(counts.values()), 375, atol=75)


def test_at_least_one_case_and_no_nonsense() -> None:
    assert len(choose_fraction({"a": 0, "b": 0, "c": 1}, 0.01, 0)) == 1
    for fraction in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            choose_fraction(STRATA, fraction, 0)


def test_labels_come_from_the_preprocessed_cases() -> None:
    class Dataset:
        def load_case(self, case: str) -> tuple[None, None, None, dict[str, dict[int, list[int]]]]:
            return None, None, None, {"class_locations": {1: [5], 2: [] if case == "a" else [7]}}

    assert labels_present(Dataset(), ["a", "b"]) == {"a": frozenset({"1"}), "b": frozenset({"1", "2"})}
