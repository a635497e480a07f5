"""Trains both classifiers on labelled examples and writes them with their manifests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import forest, network
from models.dataset import Examples, packet_triplet, split
from models.evaluate import agreement, figures
from models.features import FEATURE_SET, feature_matrix
from models.manifest import FOREST, NETWORK, Manifest, file_sha256, write_manifest

Report = Callable[[str], None]
Scores = Callable[[Examples], NDArray[np.float32]]
# Names in packets, unlike any that the survey has used: its rbversion is t17_f5_c3, its drbversion d6_m7.
RB_VERSION, DRB_VERSION = f"s1_{FEATURE_SET}", "s1_n1"


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """What a model is measured on beside the held-out objects of the training nights.

    ``night``: examples of nights that were not trained on. ``packets``: alert packets of the survey with
    a published ``drb``.
    """

    night: Examples | None = None
    packets: Sequence[Mapping[str, Any]] = ()


def train_models(
    examples: Examples,
    folder: Path,
    seed: int = 42,
    epochs: int | None = None,
    report: Report = lambda _: None,
    yardsticks: Yardsticks | None = None,
) -> tuple[Manifest, Manifest]:
    """Train the forest and the network; figures are of the held-out tenth of the objects, and of the yardsticks.

    Parameters
    ----------
    examples : Examples
        All labelled candidates; split by object inside.
    folder : Path
        Where weights and manifests are written; existing ones are replaced.
    epochs : int, optional
        Passes of the network over the examples (default: ``network.SETTINGS``).
    report : callable
        Called with a line of text as training goes on.
    yardsticks : Yardsticks, optional
    """
    folder.mkdir(parents=True, exist_ok=True)
    training, validation, test = split(examples)
    report(f"{len(training)} examples to train on, {len(validation)} to validate, {len(test)} to test")
    yardsticks = yardsticks or Yardsticks()
    return (
        _train_forest(examples, training, test, folder, seed, yardsticks, report),
        _train_network(examples, (training, validation, test), folder, seed, epochs, yardsticks, report),
    )  # fmt: skip


def forest_figures(model: Any, test: Examples, yardsticks: Yardsticks) -> dict[str, float]:
    """All figures of a forest."""
    found = _figures(lambda e: forest.forest_scores(model, e.features), test, yardsticks)
    if yardsticks.packets:
        rows = [packet["candidate"] for packet in yardsticks.packets]
        # Of the two published scores the network's is the better judge, of the forest too.
        published = np.array([row["drb"] for row in rows], np.float32)
        found |= agreement(forest.forest_scores(model, feature_matrix(rows)), published)
    return found


def network_figures(model: Any, test: Examples, yardsticks: Yardsticks) -> dict[str, float]:
    """All figures of a network."""
    found = _figures(lambda e: network.network_scores(model, e.triplets), test, yardsticks)
    if yardsticks.packets:
        triplets = np.stack([packet_triplet(packet) for packet in yardsticks.packets])
        published = np.array([packet["candidate"]["drb"] for packet in yardsticks.packets], np.float32)
        found |= agreement(network.network_scores(model, triplets), published)
    return found


def _figures(scores: Scores, test: Examples, yardsticks: Yardsticks) -> dict[str, float]:
    found = figures(scores(test), test.labels, test.snr)
    if yardsticks.night is not None:
        night = yardsticks.night
        found |= figures(scores(night), night.labels, night.snr, "night_")
    return found


def _train_forest(
    examples: Examples,
    training: Examples,
    test: Examples,
    folder: Path,
    seed: int,
    yardsticks: Yardsticks,
    report: Report,
) -> Manifest:
    import sklearn

    model = forest.train_forest(training.features, training.labels, seed)
    path = folder / f"{FOREST}.joblib"
    forest.save_forest(model, path)
    software = {"scikit-learn": sklearn.__version__, "numpy": np.__version__}
    manifest = Manifest(
        FOREST, RB_VERSION, path.name, file_sha256(path), examples.sha256(), seed, int(examples.labels.sum()),
        int((~examples.labels).sum()), forest_figures(model, test, yardsticks), software, dict(forest.SETTINGS),
    )  # fmt: skip
    write_manifest(folder, manifest)
    report(f"forest: {manifest.figures}")
    return manifest


def _train_network(
    examples: Examples,
    parts: tuple[Examples, Examples, Examples],
    folder: Path,
    seed: int,
    epochs: int | None,
    yardsticks: Yardsticks,
    report: Report,
) -> Manifest:
    import tensorflow as tf

    training, validation, test = parts
    limit = epochs or int(network.SETTINGS["epochs"])
    held = (validation.triplets, validation.labels)
    model, best = network.train_network(training.triplets, training.labels, held, seed, limit, report)
    path = folder / f"{NETWORK}.keras"
    network.save_network(model, path)
    settings: dict[str, Any] = {**network.SETTINGS, "epochs": limit, "best_epoch": best}
    manifest = Manifest(
        NETWORK, DRB_VERSION, path.name, file_sha256(path), examples.sha256(), seed, int(examples.labels.sum()),
        int((~examples.labels).sum()), network_figures(model, test, yardsticks),
        {"tensorflow": tf.__version__, "numpy": np.__version__}, settings,
    )  # fmt: skip
    write_manifest(folder, manifest)
    report(f"network, weights of epoch {best}: {manifest.figures}")
    return manifest
