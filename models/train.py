"""Trains both classifiers on labelled examples and writes them with their manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models import forest, network
from models.dataset import Examples, split
from models.evaluate import figures
from models.features import FEATURE_SET
from models.manifest import FOREST, NETWORK, Manifest, file_sha256, write_manifest

Report = Callable[[str], None]


def train_models(
    examples: Examples, folder: Path, seed: int = 42, epochs: int | None = None, report: Report = lambda _: None
) -> tuple[Manifest, Manifest]:
    """Train the forest and the network; figures are of the held-out tenth of the objects.

    Parameters
    ----------
    examples : Examples
        All labelled candidates; split by object inside.
    folder : Path
        Where weights and manifests are written; existing ones are replaced.
    epochs : int, optional
        Upper limit for the network (default: ``network.SETTINGS``).
    report : callable
        Called with a line of text as training goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training, validation, test = split(examples)
    report(f"{len(training)} examples to train on, {len(validation)} to validate, {len(test)} to test")
    return (
        _train_forest(examples, training, test, folder, seed, report),
        _train_network(examples, (training, validation, test), folder, seed, epochs, report),
    )


def _train_forest(
    examples: Examples, training: Examples, test: Examples, folder: Path, seed: int, report: Report
) -> Manifest:
    import sklearn

    model = forest.train_forest(training.features, training.labels, seed)
    scores = forest.forest_scores(model, test.features)
    path = folder / f"{FOREST}.joblib"
    forest.save_forest(model, path)
    manifest = Manifest(
        FOREST, f"t1_{FEATURE_SET}_c1", path.name, file_sha256(path), examples.sha256(), seed,
        int(examples.labels.sum()), int((~examples.labels).sum()), figures(scores, test.labels),
        {"scikit-learn": sklearn.__version__, "numpy": np.__version__}, dict(forest.SETTINGS),
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
    report: Report,
) -> Manifest:
    import tensorflow as tf

    training, validation, test = parts
    limit = epochs or int(network.SETTINGS["epochs"])
    model, run = network.train_network(
        training.triplets, training.labels, (validation.triplets, validation.labels), seed, limit
    )
    scores = network.network_scores(model, test.triplets)
    path = folder / f"{NETWORK}.keras"
    network.save_network(model, path)
    manifest = Manifest(
        NETWORK, "d1_m1", path.name, file_sha256(path), examples.sha256(), seed,
        int(examples.labels.sum()), int((~examples.labels).sum()), figures(scores, test.labels),
        {"tensorflow": tf.__version__, "numpy": np.__version__}, {**network.SETTINGS, "epochs_run": run},
    )  # fmt: skip
    write_manifest(folder, manifest)
    report(f"network after {run} epochs: {manifest.figures}")
    return manifest
