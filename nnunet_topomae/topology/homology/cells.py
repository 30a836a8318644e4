"""The cells around a voxel: 6 edges, 12 squares and 8 cubes, by the directions that they span.

Directions come in opposite pairs: ``d ^ 1`` is opposite to ``d``, and ``d // 2`` is the axis. A square is spanned by
two directions of different axes, a cube by three.
"""

from typing import Final

import numpy as np

DIRECTIONS: Final = ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0))
"""Steps along (D, H, W) to the neighbour at the other end of each edge."""

SQUARES: Final = tuple((a, b) for a in range(6) for b in range(a + 1, 6) if a // 2 != b // 2)
"""The two directions of each of the 12 squares."""

CUBES: Final = tuple((a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5))
"""The three directions of each of the 8 cubes."""

SQUARES_OF_CUBE: Final = tuple(
    (SQUARES.index((a, b)), SQUARES.index((a, c)), SQUARES.index((b, c))) for a, b, c in CUBES
)
"""The three squares of each cube that touch the voxel."""


def has(masks: np.ndarray, bit: int) -> np.ndarray:
    """Whether a bit is set in each of many masks: (n,) -> bool (n,).

    Args:
        masks: whole numbers (n,).
        bit: number of the bit; 0 is the lowest.
    """
    return (masks & 1 << bit) != 0  # type: ignore[no-any-return]
