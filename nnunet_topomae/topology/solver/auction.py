"""Auction with prices: bidders take their cheapest object and lower its potential (Bertsekas et al. 1993).

The side that bids looks for the point of the other side with the least reduced cost, takes it, and lowers its
potential until the second best is better by epsilon. Whoever held it before bids again. A bidder whose diagonal cost
is the least stays there. At the end every bidder's choice is within epsilon of its best.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nnunet_topomae.topology.solver.kernels import inner_kernel, kernel
from nnunet_topomae.topology.solver.neighbours import Scratch, nearest
from nnunet_topomae.topology.solver.tree import ON_DIAGONAL, Side, lower_potential

# A search looks at most this many epsilon beyond the best known object, then further by this factor.
_REACH = 8.0
# A gain over the diagonal of less than this many epsilon is not worth a bid (and could be lost to rounding).
_INDIFFERENT = 1e-3


class Lists(NamedTuple):
    """The objects known at each of n places of bidders; copies share one. They stay valid while potentials only fall.

    Attributes:
        columns: objects (n, K).
        costs: their costs (n, K).
        known: how many of them there are (n,).
        horizon: all other objects have at least this reduced cost (n,).
    """

    columns: Int[ndarray, "n K"]
    costs: Float[ndarray, "n K"]
    known: Int[ndarray, " n"]
    horizon: Float[ndarray, " n"]


def new_lists(bidders: Side, neighbours: int) -> Lists:
    """Empty lists.

    Args:
        bidders: their places get a list each.
        neighbours: room for so many objects K per place.
    """
    places = int(bidders.place.max()) + 1
    return Lists(
        np.zeros((places, neighbours), np.int32),
        np.zeros((places, neighbours)),
        np.zeros(places, np.int32),
        np.full(places, -np.inf),
    )


@inner_kernel
def two_best(lists: Lists, place: int, potential: Float[ndarray, " padded"]) -> tuple[float, float, int]:
    """The two least reduced costs in the list of one place.

    Args:
        lists: the objects known at each place.
        place: the bidder's place.
        potential: potentials of all objects.

    Returns:
        Least and second least reduced cost, inf where there is none, and the position of the least in the list, -1
        if the list is empty.
    """
    best, second, position = np.inf, np.inf, -1
    for t in range(lists.known[place]):
        value = lists.costs[place, t] - potential[lists.columns[place, t]]
        if value < best:
            best, second, position = value, best, t
        elif value < second:
            second = value
    return best, second, position


@inner_kernel
def search(bidders: Side, objects: Side, lists: Lists, i: int, limit: float, scratch: Scratch) -> None:
    """Renew the list of one bidder's place with its best objects.

    Args:
        bidders: side of the bidder.
        objects: the other side, with its tree up to date.
        lists: its entry of the place is overwritten.
        i: the bidder.
        limit: only objects of a lower reduced cost are looked for.
        scratch: memory of the search.
    """
    place = bidders.place[i]
    count, horizon = nearest(
        objects, bidders.midpoint[i], bidders.half[i], limit, lists.columns[place], lists.costs[place], scratch
    )
    lists.known[place] = count
    lists.horizon[place] = horizon


@inner_kernel
def _choose(
    bidders: Side, objects: Side, lists: Lists, i: int, epsilon: float, scratch: Scratch
) -> tuple[float, float, int]:
    """Best object of bidder ``i`` and a bound of its second best, sharp enough for a bid of ``epsilon`` or more."""
    diagonal, place = bidders.diagonal[i], bidders.place[i]
    best, second, position = two_best(lists, place, objects.potential)
    horizon = lists.horizon[place]
    if not (second <= horizon or horizon >= diagonal or best + epsilon <= horizon):
        reach = _REACH * epsilon
        base = best if best < diagonal else bidders.potential[i]
        while True:
            limit = min(diagonal, base + reach)
            search(bidders, objects, lists, i, limit, scratch)
            if lists.known[place] > 0 or limit == diagonal:
                break
            reach *= _REACH
        best, second, position = two_best(lists, place, objects.potential)
    return best, min(second, lists.horizon[place], diagonal), position


@inner_kernel
def _bid(bidders: Side, objects: Side, lists: Lists, i: int, epsilon: float, scratch: Scratch) -> int:
    """Give bidder ``i`` its best object or the diagonal; returns the bidder that had the object, negative if none."""
    best, second, position = _choose(bidders, objects, lists, i, epsilon, scratch)
    if position < 0 or best + _INDIFFERENT * epsilon >= bidders.diagonal[i]:
        bidders.potential[i] = bidders.diagonal[i]
        bidders.partner[i] = ON_DIAGONAL
        return ON_DIAGONAL
    place = bidders.place[i]
    j = np.int64(lists.columns[place, position])  # the type of all other indices: numba compiles for each type
    bidders.potential[i] = min(second + epsilon, bidders.diagonal[i])
    lower_potential(objects, j, lists.costs[place, position] - bidders.potential[i])
    displaced: int = objects.partner[j]
    bidders.partner[i], objects.partner[j] = j, i
    return displaced


@kernel
def auction(
    bidders: Side,
    objects: Side,
    lists: Lists,
    waiting: Int[ndarray, " k"],
    epsilon: float,
    scratch: Scratch,
    budget: int,
) -> None:
    """Run an auction until every waiting bidder and everyone it displaces has an object or the diagonal.

    Who is displaced bids at once, because what it looks at is still in the processor's caches.

    Args:
        bidders: side that bids.
        objects: side with the tree that is searched; its potentials fall.
        lists: the bidders' lists, empty or valid for the present potentials.
        waiting: (k,) the bidders without an object in the order of their first bids; neighbours should follow each
            other.
        epsilon: least step of a bid.
        scratch: memory of the searches.
        budget: number of leaf visits after which the auction stops and the bidders still waiting go to the diagonal.
    """
    for first in waiting:
        i = first
        while i >= 0:
            scratch.leaves[0] += 1
            if scratch.leaves[0] >= budget:
                bidders.partner[i] = ON_DIAGONAL
                break
            i = _bid(bidders, objects, lists, i, epsilon, scratch)
