"""Which sources share light, and groups of them that are fitted together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.compiled import compiled, inner
from stream.photometry.pairs import close_pairs

F64 = NDArray[np.float64]
INT = NDArray[np.int64]
BOOL = NDArray[np.bool_]

# Friends of friends within this many FWHM are one group: their cores overlap, so that alternating between them would
# settle slowly. What lies further out is taken off before.
LINK = 1.5
# A group beyond this is cut with a shorter link: its equations would cost more than they gain.
MAX_GROUP = 16


class Groups(NamedTuple):
    """Groups of sources: ``members`` (n,) of the list, those of group g from ``start[g]`` to ``start[g + 1]``.

    ``first``, ``second`` (n_pairs,) are positions in ``members`` of linked ones (the first is the lower), those of
    group g from ``pair_start[g]`` to ``pair_start[g + 1]``.
    """

    members: INT
    start: INT
    first: INT
    second: INT
    pair_start: INT


def has_neighbour(x: F64, y: F64, reach: float) -> BOOL:
    """Sources with another one within ``reach`` px."""
    crowded = np.zeros(len(x), bool)
    for one in close_pairs(x, y, reach):
        crowded[one] = True
    return crowded


def lone_groups(rows: INT) -> Groups:
    """Sources that are groups of their own."""
    none, start = np.zeros(0, np.int64), np.arange(len(rows) + 1)
    return Groups(rows, start, none, none, np.zeros_like(start))


def groups_of(x: F64, y: F64, rows: INT, fwhm: float) -> Groups:
    """The groups among ``rows``, in the order of their first members."""
    if len(rows) < 2:
        return lone_groups(rows)
    pairs, label = _link(np.stack([x[rows], y[rows]], axis=1), LINK * fwhm)
    order = np.argsort(label, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    pairs = np.sort(position[pairs], axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    start = np.append(0, np.cumsum(np.bincount(label)))
    first, second = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    return Groups(rows[order], start, first, second, np.searchsorted(first, start))


def _link(places: F64, reach: float) -> tuple[INT, INT]:
    """Pairs within reach and the group of each source (numbered by first members), none larger than MAX_GROUP."""
    pairs = np.stack(close_pairs(places[:, 0], places[:, 1], reach), axis=1)
    distance = np.hypot(*(places[pairs[:, 0]] - places[pairs[:, 1]]).T)
    label = np.empty(len(places), np.int64)
    while True:
        _label(pairs, label)
        large = np.bincount(label)[label] > MAX_GROUP
        if not large.any():
            return pairs, label
        reach *= 0.85
        kept = ~large[pairs[:, 0]] | (distance < reach)
        pairs, distance = pairs[kept], distance[kept]


@inner
def _root(parent: INT, i: int) -> int:
    """The end of a chain, which becomes shorter."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def _label(pairs: INT, label: INT) -> None:
    """Number of each one's group of friends of friends, by first members, into ``label``."""
    parent, count = np.arange(len(label)), 0
    for q in range(len(pairs)):
        a, b = _root(parent, pairs[q, 0]), _root(parent, pairs[q, 1])
        parent[max(a, b)] = min(a, b)
    for i in range(len(label)):
        first = _root(parent, i)
        if first == i:
            label[i] = count
            count += 1
        else:
            label[i] = label[first]
