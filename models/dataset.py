"""Labelled examples from simulated nights: packets on one side, the simulator's truth on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.features import feature_matrix, triplet
from stream.alert import decode_stamp
from stream.core.errors import UsageError

# A candidate is the truth's source if they lie within this many arcsec: three times the centring error at S/N 5.
MATCH_RADIUS = 1.5
# Truth kinds whose appearance in a difference image is real.
REAL_KINDS = ("transient", "variable", "asteroid", "streak")


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled candidates.

    ``features`` (n, n_features), ``triplets`` (n, 63, 63, 3), ``labels`` (n,) True where real, ``groups`` (n,) a
    number per object on the sky: one object's examples must not be split between training and test.
    """

    features: NDArray[np.float32]
    triplets: NDArray[np.float32]
    labels: NDArray[np.bool_]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, keep: NDArray[np.bool_]) -> Examples:
        """The examples where ``keep`` is True."""
        return Examples(self.features[keep], self.triplets[keep], self.labels[keep], self.groups[keep])

    def sha256(self) -> str:
        """Hex hash of all that training depends on."""
        digest = hashlib.sha256()
        for array in (self.features, self.triplets, self.labels, self.groups):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def truth_index(truth: Mapping[str, NDArray[Any]]) -> dict[str, cKDTree]:
    """KD-trees of the real sources' unit vectors, by exposure name (without the CCD).

    ``truth`` has columns ``kind``, ``exposure``, ``ra``, ``dec`` (deg, place at the time of the exposure).
    """
    real = np.isin(truth["kind"].astype(str), REAL_KINDS)
    names = np.array([exposure_key(str(name)) for name in truth["exposure"][real]])
    vectors = _unit(truth["ra"][real].astype(float), truth["dec"][real].astype(float))
    return {str(name): cKDTree(vectors[names == name]) for name in np.unique(names)}


def exposure_key(name: str) -> str:
    """``ztf_YYYYMMDDdddddd_FFFFFF_zr`` of any product or packet name of that exposure."""
    return "_".join(name.split("_")[:4])


def label(candidate: Mapping[str, Any], index: Mapping[str, cKDTree]) -> bool:
    """Whether a packet's candidate lies on a real source of its exposure."""
    tree = index.get(exposure_key(str(candidate["pdiffimfilename"])))
    if tree is None:
        return False
    chord = 2 * np.sin(np.deg2rad(MATCH_RADIUS / 3600.0) / 2)
    distance, _ = tree.query(_unit(np.array([candidate["ra"]]), np.array([candidate["dec"]])))
    return bool(distance[0] <= chord)


def make_examples(packets: Iterable[Mapping[str, Any]], truth: Mapping[str, NDArray[Any]]) -> Examples:
    """Examples from alert packets and the truth of the nights they come from.

    Raises
    ------
    UsageError
        There is nothing to learn from: no packet, or only one class.
    """
    index = truth_index(truth)
    rows, triplets, groups = [], [], []
    for packet in sorted(packets, key=lambda p: int(p["candid"])):
        rows.append(packet["candidate"])
        cutouts = (packet["cutoutScience"], packet["cutoutTemplate"], packet["cutoutDifference"])
        triplets.append(triplet(*(decode_stamp(c["stampData"]) for c in cutouts)))
        digest = hashlib.sha256(str(packet["objectId"]).encode()).digest()
        groups.append(int.from_bytes(digest[:7], "big"))
    labels = np.array([label(row, index) for row in rows], bool)
    if not labels.any() or labels.all():
        raise UsageError(
            f"{len(rows)} candidates, {int(labels.sum())} real: training needs both classes; process more simulated "
            "nights with `ztf-stream process` and name their folders"
        )
    return Examples(feature_matrix(rows), np.stack(triplets), labels, np.array(groups, np.int64))


def concatenate(parts: Iterable[Examples]) -> Examples:
    """All parts as one."""
    parts = list(parts)
    return Examples(
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.triplets for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.groups for p in parts]),
    )


def split(examples: Examples) -> tuple[Examples, Examples, Examples]:
    """Training (80 %), validation (10 %) and test (10 %) by object, the same for the same sky."""
    fold = examples.groups % 10
    return examples.subset(fold < 8), examples.subset(fold == 8), examples.subset(fold == 9)


def _unit(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.float64]:
    r, d = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)], axis=-1)
