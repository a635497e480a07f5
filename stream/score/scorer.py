"""Applies the shipped classifiers to batches of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import forest as forest_model
from models import network as network_model
from models.features import feature_matrix, triplet
from models.manifest import FOREST, NETWORK, WEIGHTS, Manifest, read_manifest
from stream.alert import decode_stamp
from stream.core.records import BatchItem


@dataclass(frozen=True, slots=True)
class Scorer:
    """Both classifiers, loaded once a process."""

    forest: Any
    network: Any
    forest_manifest: Manifest
    network_manifest: Manifest

    def score(self, items: Sequence[BatchItem]) -> None:
        """Fill ``rb``, ``rbversion``, ``drb``, ``drbversion`` of each item's candidate, and our model hashes.

        Scores are probabilities of being real in 0..1, float32. A batch is scored at once; the result of one item
        does not depend on its neighbours beyond float32 rounding.
        """
        if not items:
            return
        rb = forest_model.forest_scores(self.forest, feature_matrix([item.candidate for item in items]))
        drb = network_model.network_scores(self.network, _triplets(items))
        for item, forest_score, network_score in zip(items, rb, drb, strict=True):
            item.candidate["rb"] = float(forest_score)
            item.candidate["rbversion"] = self.forest_manifest.version
            item.candidate["drb"] = float(network_score)
            item.candidate["drbversion"] = self.network_manifest.version
            item.extension["rb_model"] = self.forest_manifest.sha256[:16]
            item.extension["drb_model"] = self.network_manifest.sha256[:16]


def _triplets(items: Sequence[BatchItem]) -> NDArray[np.float32]:
    return np.stack([triplet(*(decode_stamp(cutout) for cutout in item.cutouts)) for item in items])


def load_scorer(folder: Path = WEIGHTS) -> Scorer:
    """Load the models of a folder, each checked against its manifest.

    Raises
    ------
    UsageError
        A model is absent, altered, or made with another library version.
    """
    forest_manifest, network_manifest = read_manifest(FOREST, folder), read_manifest(NETWORK, folder)
    network_model.single_threaded()
    return Scorer(
        forest_model.load_forest(forest_manifest, folder),
        network_model.load_network(folder / network_manifest.file),
        forest_manifest,
        network_manifest,
    )
