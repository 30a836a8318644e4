"""The order in which voxels enter the super-level sets: high values first, equal values in the order of memory."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import COMPILED, kernel

DIGIT_BITS = 11
# numba tests signed indices for negative ones; unsigned ones go without.
U = np.uint64
Word = int | np.int64


class Sorting(NamedTuple):
    """Arrays of a radix sort: keys and indices in two places, and the counts of one digit's values."""

    keys: ndarray
    indices: ndarray
    other_keys: ndarray
    other_indices: ndarray
    counts: ndarray


def falling_order(values: Float[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Indices of the values, the highest first; stable.

    Args:
        values: float32 or float64, finite.
    """
    if not COMPILED:
        return np.argsort(-values, kind="stable").astype(np.int32)
    unsigned: Any = np.uint32 if values.dtype == np.float32 else np.uint64
    bits = (values + values.dtype.type(0)).view(unsigned)  # -0.0 becomes 0.0
    sign = unsigned(1 << (8 * bits.itemsize - 1))
    # As integers, floats are in order of their size, and negative ones the other way round.
    keys = np.where(bits & sign, bits, ~bits & ~sign)
    passes = -(-8 * keys.itemsize // DIGIT_BITS)
    n = len(keys)
    index = np.arange(n, dtype=np.int32)
    counts = np.empty(1 << DIGIT_BITS, np.int64)
    sorting = Sorting(keys, index, np.empty_like(keys), np.empty_like(index), counts)
    for digit in range(passes):
        _sort_by_digit(sorting, DIGIT_BITS * digit)
        sorting = Sorting(sorting.other_keys, sorting.other_indices, sorting.keys, sorting.indices, counts)
    return sorting.indices


@kernel
def _sort_by_digit(sorting: Sorting, shift: int) -> None:
    """One pass: order keys and indices by the digit at ``shift``, keeping the order of equal digits."""
    keys, counts, bits, digits = sorting.keys, sorting.counts, U(shift), U(len(sorting.counts) - 1)
    for value in range(len(counts)):
        counts[value] = 0
    for key in keys:
        counts[(U(key) >> bits) & digits] += 1
    total = 0
    for value in range(len(counts)):
        total, counts[value] = total + counts[value], total
    for i in range(len(keys)):
        digit = (U(keys[i]) >> bits) & digits
        place = U(counts[digit])
        counts[digit] += 1
        sorting.other_keys[place] = keys[i]
        sorting.other_indices[place] = sorting.indices[i]
