"""Which sources share light, and blocks of whole groups of them that are fitted together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
BOOL = NDArray[np.bool_]

BLOCK = 256  # sources whose windows and PSF grids stay in the processor's cache
# Friends of friends within this many FWHM are one group: their cores overlap, so that alternating between them would
# settle slowly. What lies further out is taken off before.
LINK = 1.5
# A group beyond this is cut with a shorter link: its equations would cost more than they gain.
MAX_GROUP = 16


@dataclass(frozen=True, slots=True)
class Block:
    """Sources that are fitted in one go.

    ``rows`` (n,) of the list; ``first``, ``second`` (n_pairs,) positions in ``rows`` of pairs within a group;
    ``groups`` arrays (n_groups, size) of positions, one for each size; ``size``, ``group`` and ``slot`` say for each
    position how large its group is, which row of ``groups`` and which place in it.
    """

    rows: INT
    first: INT
    second: INT
    groups: tuple[INT, ...]
    size: INT
    group: INT
    slot: INT


def has_neighbour(x: F64, y: F64, reach: float) -> BOOL:
    """Sources with another one within ``reach`` px."""
    crowded = np.zeros(len(x), bool)
    if len(x) < 2:
        return crowded
    places = np.stack([x, y], axis=1)
    distance, _ = cKDTree(places).query(places, k=2, distance_upper_bound=reach)
    return np.asarray(np.isfinite(distance[:, 1]))


def lone_blocks(rows: INT) -> list[Block]:
    """Blocks of sources that are groups of their own."""
    blocks = []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        none, position = np.zeros(0, np.intp), np.arange(len(part))
        blocks.append(Block(part, none, none, (position[:, None],), np.ones_like(position), position, 0 * position))
    return blocks


def blocks_of(x: F64, y: F64, rows: INT, fwhm: float) -> list[Block]:
    """Blocks of the groups among ``rows``, in the order of their first members."""
    if len(rows) < 2:
        return lone_blocks(rows)
    pairs, label = _link(np.stack([x[rows], y[rows]], axis=1), LINK * fwhm)
    order = np.argsort(label, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    pairs = np.sort(position[pairs], axis=1)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    label = label[order]
    starts = np.flatnonzero(np.append(True, np.diff(label) != 0))
    blocks, low = [], 0
    while low < len(rows):
        high = int(starts[np.searchsorted(starts, low + BLOCK)]) if low + BLOCK <= starts[-1] else len(rows)
        inside = slice(*np.searchsorted(pairs[:, 0], [low, high]))
        blocks.append(_block(rows[order[low:high]], pairs[inside] - low, label[low:high]))
        low = high
    return blocks


def _link(places: F64, reach: float) -> tuple[INT, INT]:
    """Pairs within reach and the group of each source (numbered by first members), none larger than MAX_GROUP."""
    n = len(places)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray").astype(np.intp)
    distance = np.hypot(*(places[pairs[:, 0]] - places[pairs[:, 1]]).T)
    while True:
        links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
        _, label = connected_components(links, directed=False)
        large = np.bincount(label)[label] > MAX_GROUP
        if not large.any():
            break
        reach *= 0.85
        kept = ~large[pairs[:, 0]] | (distance < reach)
        pairs, distance = pairs[kept], distance[kept]
    _, first, label = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return pairs, rank[label]


def _block(rows: INT, pairs: INT, label: INT) -> Block:
    label = label - label[0]
    count = np.bincount(label)
    start = np.cumsum(count) - count
    size, slot = count[label], np.arange(len(rows)) - start[label]
    groups, number = [], np.zeros(len(count), np.intp)
    for k in np.unique(count).tolist():
        these = np.flatnonzero(count == k)
        number[these] = np.arange(len(these))
        groups.append(start[these, None] + np.arange(k))
    return Block(rows, pairs[:, 0], pairs[:, 1], tuple(groups), size, number[label], slot)
