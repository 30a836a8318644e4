"""The order in which voxels enter the super-level sets: high values first, equal values in the order of memory."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import COMPILED, kernel

DIGIT_BITS, DIGITS = 11, 3
# numba tests signed indices for negative ones; unsigned ones go without.
U = np.uint64
Word = int | np.int64


def falling_order(
    values: Float[ndarray, " n"], names: Int[ndarray, " n"], rank: Int[ndarray, " m"]
) -> Int[ndarray, " n"]:
    """Names of the values, the highest value first; equal values keep their order.

    Args:
        values: float32 or float64, finite.
        names: different whole numbers from 0 to m - 1, one for each value.
        rank: receives at every name its place in the order.
    """
    if not COMPILED:
        order = names[np.argsort(-values, kind="stable")]
        rank[order] = np.arange(len(order), dtype=np.int32)
        return order
    unsigned: Any = np.uint32 if values.dtype == np.float32 else np.uint64
    bits = (values + values.dtype.type(0)).view(unsigned)  # -0.0 becomes 0.0
    sign = unsigned(1 << (8 * bits.itemsize - 1))
    # As integers, floats are in order of their size, and negative ones the other way round.
    keys = np.where(bits & sign, bits, ~bits & ~sign)
    if keys.itemsize == 8:  # first by the lower half
        index = np.arange(len(keys), dtype=np.int32)
        before = _sort_by_keys(keys.astype(np.uint32), index, np.empty_like(index))
        keys, names = (keys[before] >> U(32)).astype(np.uint32), names[before]
    return _sort_by_keys(keys, names, rank)


def _sort_by_keys(keys: UInt[ndarray, " n"], names: Int[ndarray, " n"], rank: ndarray) -> Int[ndarray, " n"]:
    """Names in the order of their keys, uint32; fills ``rank`` as `falling_order` does."""
    words, order = np.empty((2, len(keys)), np.uint64), np.empty(len(keys), np.int32)
    counts = np.zeros((DIGITS, 1 << DIGIT_BITS), np.int64)
    _radix_sort(keys, names, words[0], words[1], counts, order, rank)
    return order


@kernel
def _radix_sort(
    keys: ndarray, names: ndarray, words: ndarray, other: ndarray, counts: ndarray, order: ndarray, rank: ndarray
) -> None:
    """Sort by one digit of the keys after the other, keeping the order of equal digits.

    ``words`` and ``other`` are room for n words of a key and its name.
    """
    mask = U(counts.shape[1] - 1)
    for i in range(len(keys)):
        word = U(keys[i]) << U(32) | U(names[i])
        words[i] = word
        for digit in range(DIGITS):
            counts[U(digit), (word >> U(32 + DIGIT_BITS * digit)) & mask] += 1
    for digit in range(DIGITS):
        total = 0
        for value in range(counts.shape[1]):
            total, counts[digit, value] = total + counts[digit, value], total
    for digit in range(DIGITS - 1):
        shift = U(32 + DIGIT_BITS * digit)
        for word in words:
            value = (word >> shift) & mask
            other[U(counts[U(digit), value])] = word
            counts[U(digit), value] += 1
        words, other = other, words
    for word in words:
        value, name = (word >> U(32 + DIGIT_BITS * (DIGITS - 1))) & mask, word & U(0xFFFFFFFF)
        place = counts[U(DIGITS - 1), value]
        counts[U(DIGITS - 1), value] += 1
        order[U(place)], rank[name] = name, place
