"""All 15,935 lower stars that a voxel can have, with the discrete gradient inside each.

Which of the 6 edges, 12 squares and 8 cubes around a voxel belong to it depends only on which of its 26 neighbours come
before it. Edges, squares and cubes at a voxel form a part of the surface of an octahedron: the edges are its corners,
the squares its edges, the cubes its triangles. So a lower star is a set of corners, edges and triangles of an
octahedron that holds the faces of all its members, and there are few enough to list them all.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt
from numpy import ndarray

from nnunet_topomae.topology.homology.cells import CUBES, SQUARES, SQUARES_OF_CUBE, has

# What an edge is paired with, besides the squares 0 to 11.
VERTEX, CRITICAL, NONE = 12, 14, 15
# Entries of `vertex_partner` and `next_cube` that stand for nothing.
NOTHING = 255
# Added to a cube in `next_cube` where the cube is critical.
CRITICAL_CUBE = 64


class LowerStars(NamedTuple):
    """Tables over all lower stars. A lower star's number is ``first[edges | squares << 6] + place[allowed, cubes]``.

    Attributes:
        squares_of_edges: squares whose two edges are among the given ones, as bits.
        cubes_of_squares: cubes whose three squares are among the given ones, as bits.
        first: number of the first lower star with given edges and squares.
        place: bits of the second index at the places that are set in the first, packed together.
        edges: for each of the six edges its rank within the lower star (bits 0 to 2) and its partner (bits 3 to 6).
        edge_at: the edge of each rank, (n, 6).
        critical_edges: as bits.
        critical_squares: as bits.
        vertex_partner: the edge that is paired with the voxel itself; `NOTHING` at a maximum of the volume.
        next_cube: for each cube, in turn, its number plus 8 times the direction through its paired square, or plus
            `CRITICAL_CUBE`; ends with `NOTHING`, (n, 8).
    """

    squares_of_edges: Int[ndarray, "64"]
    cubes_of_squares: Int[ndarray, "4096"]
    first: Int[ndarray, "262144"]
    place: UInt[ndarray, "256 256"]
    edges: UInt[ndarray, " six_n"]
    edge_at: UInt[ndarray, "n 6"]
    critical_edges: Int[ndarray, " n"]
    critical_squares: Int[ndarray, " n"]
    vertex_partner: UInt[ndarray, " n"]
    next_cube: UInt[ndarray, "n 8"]


@cache
def lower_stars() -> LowerStars:
    """The tables; made once per process, read-only afterwards."""
    edges, squares, cubes, closures = _enumerate()
    next_cube, free_squares = _pair_cubes(squares, cubes)
    edge_order, edge_partner, edge_at, critical_squares = _pair_edges(edges, free_squares)
    with_vertex = edge_partner == VERTEX
    critical_edges = ((edge_partner == CRITICAL) << np.arange(6)).sum(axis=1)
    squares_of_edges, cubes_of_squares, first, place = closures
    tables = LowerStars(
        squares_of_edges,
        cubes_of_squares,
        first,
        place,
        edges=(edge_order | edge_partner << np.uint8(3)).reshape(-1),
        edge_at=edge_at,
        critical_edges=critical_edges.astype(np.int32),
        critical_squares=critical_squares.astype(np.int32),
        vertex_partner=np.where(with_vertex.any(axis=1), with_vertex.argmax(axis=1), NOTHING).astype(np.uint8),
        next_cube=next_cube,
    )
    for table in tables:
        table.flags.writeable = False
    return tables


def _enumerate() -> tuple[ndarray, ndarray, ndarray, list[ndarray]]:
    """Edges, squares and cubes of all lower stars as bits, (n,) each, and the tables that number them."""
    squares_of_edges, cubes_of_squares = _closed(64, SQUARES), _closed(4096, SQUARES_OF_CUBE)
    place = _packed_bits()
    with_subset = np.arange(256)[None, :] & ~np.arange(256)[:, None] == 0
    subset = np.zeros((256, 256), np.int64)  # [a, i]: the subset of a that `place` gives the number i
    sets, subsets = np.nonzero(with_subset)
    subset[sets, place[sets, subsets]] = subsets
    edges, squares = np.nonzero(np.arange(4096)[None, :] & ~squares_of_edges[:, None] == 0)
    allowed = cubes_of_squares[squares]
    sizes = with_subset.sum(axis=1)[allowed]
    starts = np.cumsum(sizes) - sizes
    first = np.zeros(1 << 18, np.int32)
    first[edges | squares << 6] = starts
    cubes = subset[np.repeat(allowed, sizes), np.arange(sizes.sum()) - np.repeat(starts, sizes)]
    members = [part.astype(np.int16) for part in (np.repeat(edges, sizes), np.repeat(squares, sizes), cubes)]
    return members[0], members[1], members[2], [squares_of_edges, cubes_of_squares, first, place]


def _closed(masks: int, cells: tuple[tuple[int, ...], ...]) -> Int[ndarray, " masks"]:
    """For every mask below a number: the cells, as bits, all of whose faces are in the mask."""
    mask, closed = np.arange(masks), np.zeros(masks, np.int64)
    for i, faces in enumerate(cells):
        needed = sum(1 << face for face in faces)
        closed |= (mask & needed == needed).astype(np.int64) << i
    return closed


def _packed_bits() -> UInt[ndarray, "256 256"]:
    """[a, c]: the bits of c at the places of a, moved together; numbers the subsets of a in increasing order."""
    a, c = np.arange(256)[:, None], np.arange(256)[None, :]
    packed, width = np.zeros((256, 256), np.int64), np.zeros((256, 1), np.int64)
    for bit in range(8):
        packed |= np.where(has(a, bit), (c >> bit & 1) << width, 0)
        width += has(a, bit)
    return packed.astype(np.uint8)


def _pair_cubes(squares: ndarray, cubes: ndarray) -> tuple[UInt[ndarray, "n 8"], ndarray]:
    """Pair every cube with a square that no other cube of the lower star has; returns `next_cube` and the squares left.

    Of a lower star with all eight cubes, a whole sphere, one cube stays critical.
    """
    squares, cubes = squares.copy(), cubes.copy()
    table, count = np.full((len(cubes), 8), NOTHING, np.uint8), np.zeros(len(cubes), np.int64)
    whole = np.flatnonzero(cubes == 255)
    table[whole, 0], count[whole], cubes[whole] = CRITICAL_CUBE + 7, 1, 127
    while cubes.any():
        for cube, sides in enumerate(SQUARES_OF_CUBE):
            for square in sides:
                (other,) = (o for o, of in enumerate(SQUARES_OF_CUBE) if square in of and o != cube)
                stars = np.flatnonzero(has(cubes, cube) & has(squares, square) & ~has(cubes, other))
                # Out of the cube through the square: against the one direction that the square does not have.
                (across,) = set(CUBES[cube]) - set(SQUARES[square])
                table[stars, count[stars]] = cube + 8 * (across ^ 1)
                count[stars] += 1
                cubes[stars] &= ~(1 << cube)
                squares[stars] &= ~(1 << square)
    return table, squares


def _pair_edges(edges: ndarray, squares: ndarray) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Pair the voxel with an edge, and edges with squares along a spanning forest of the octahedron's graph.

    Returns:
        rank of every edge within its lower star and its partner, uint8 (n, 6); edge of every rank, uint8 (n, 6);
        squares that stay critical, as bits (n,). An edge comes after the edge on the other side of its partner, so
        that paths along the gradient go down.
    """
    size = len(edges)
    rank, partner, at = (np.full((size, 6), NONE, np.uint8) for _ in range(3))
    seen, used, count = np.zeros(size, np.int16), np.zeros(size, np.int16), np.zeros(size, np.int64)

    def add(stars: ndarray, edge: int, paired_with: int | ndarray) -> None:
        partner[stars, edge], rank[stars, edge], at[stars, count[stars]] = paired_with, count[stars], edge
        count[stars] += 1
        seen[stars] |= 1 << edge

    for root in range(6):
        stars = np.flatnonzero(has(edges, root) & ~has(seen, root))
        add(stars, root, np.where(count[stars] == 0, VERTEX, CRITICAL))
        growing = bool(len(stars))
        while growing:
            growing = False
            for square, ends in enumerate(SQUARES):
                for known, new in (ends, ends[::-1]):
                    stars = np.flatnonzero(has(squares, square) & has(seen, known) & ~has(seen, new))
                    add(stars, new, square)
                    used[stars] |= 1 << square
                    growing |= bool(len(stars))
    return rank, partner, at, squares & ~used
