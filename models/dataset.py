"""Labelled examples from simulated nights: packets on one side, the simulator's truth on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import feature_matrix, triplet
from models.labels import REAL, UNDECIDED, label_candidates
from stream.alert import decode_stamp
from stream.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled candidates.

    ``features`` (n, n_features), ``triplets`` (n, 63, 63, 3) in half precision (24 kB each; the network takes them
    as float32), ``labels`` (n,) True where real, ``groups`` (n,) a number per object on the sky: one object's
    examples must not be split between training and test. ``snr`` (n,) is that of the candidate.
    """

    features: NDArray[np.float32]
    triplets: NDArray[np.float16]
    labels: NDArray[np.bool_]
    groups: NDArray[np.int64]
    snr: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, keep: NDArray[np.bool_]) -> Examples:
        """The examples where ``keep`` is True."""
        return Examples(*(getattr(self, name)[keep] for name in self.__slots__))

    def sha256(self) -> str:
        """Hex hash of all that training depends on."""
        digest = hashlib.sha256()
        for name in self.__slots__:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()


def packet_triplet(packet: Mapping[str, Any]) -> NDArray[np.float32]:
    """The network's input of an alert packet."""
    stamps = (packet["cutoutScience"], packet["cutoutTemplate"], packet["cutoutDifference"])
    return triplet(*(decode_stamp(stamp["stampData"]) for stamp in stamps))


def make_examples(packets: Iterable[Mapping[str, Any]], truth: Mapping[str, NDArray[Any]]) -> Examples:
    """Examples from alert packets and the truth of the night they come from; undecided candidates are left out.

    Raises
    ------
    UsageError
        There is nothing to learn from: no packet, or only one class.
    """
    rows, triplets, groups = [], [], []
    for packet in sorted(packets, key=lambda p: int(p["candid"])):
        rows.append(packet["candidate"])
        triplets.append(packet_triplet(packet).astype(np.float16))
        digest = hashlib.sha256(str(packet["objectId"]).encode()).digest()
        groups.append(int.from_bytes(digest[:7], "big"))
    marks = label_candidates(rows, truth)
    labels, decided = marks == REAL, marks != UNDECIDED
    if not labels.any() or not (~labels & decided).any():
        raise UsageError(
            f"{len(rows)} candidates, {int(labels.sum())} real: training needs both classes; process more simulated "
            "nights with `ztf-stream process` and name their folders"
        )
    snr = np.array([1.0857362 / max(float(row["sigmapsf"]), 1e-6) for row in rows], np.float32)
    everything = Examples(feature_matrix(rows), np.stack(triplets), labels, np.array(groups, np.int64), snr)
    return everything.subset(decided)


def concatenate(parts: Iterable[Examples]) -> Examples:
    """All parts as one."""
    parts = list(parts)
    return Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in Examples.__slots__))


def split(examples: Examples) -> tuple[Examples, Examples, Examples]:
    """Training (80 %), validation (10 %) and test (10 %) by object, the same for the same sky."""
    fold = examples.groups % 10
    return examples.subset(fold < 8), examples.subset(fold == 8), examples.subset(fold == 9)
