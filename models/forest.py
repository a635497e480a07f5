"""The random forest on packet features (``rb``): training and loading."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from models.manifest import Manifest
from stream.core.errors import UsageError

# Leaves of four examples keep the scores from being memorised and the file under a megabyte or two.
SETTINGS: dict[str, Any] = {
    "n_estimators": 120,
    "min_samples_leaf": 4,
    "max_features": "sqrt",
    "class_weight": "balanced_subsample",
}


def train_forest(features: NDArray[np.float32], labels: NDArray[np.bool_], seed: int) -> RandomForestClassifier:
    """Fit the forest; deterministic for a seed and a library version."""
    forest = RandomForestClassifier(random_state=seed, n_jobs=1, **SETTINGS)
    return forest.fit(features, labels)


def save_forest(forest: RandomForestClassifier, path: Path) -> None:
    """Write the forest compressed."""
    joblib.dump(forest, path, compress=("xz", 6))


def load_forest(manifest: Manifest, folder: Path) -> RandomForestClassifier:
    """Load a forest that was trained with this scikit-learn.

    Raises
    ------
    UsageError
        The library's version differs: its pickles are only promised to load in the same one.
    """
    trained_with = manifest.software["scikit-learn"]
    if trained_with.split(".")[:2] != sklearn.__version__.split(".")[:2]:
        raise UsageError(
            f"{manifest.file} was trained with scikit-learn {trained_with}, this is {sklearn.__version__}: install "
            "with `-c constraints.txt`, or retrain with `ztf-stream models train`"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return joblib.load(folder / manifest.file)


def forest_scores(forest: RandomForestClassifier, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of being real, (n,) float32 in 0..1."""
    if len(features) == 0:
        return np.empty(0, np.float32)
    probabilities: NDArray[np.float32] = forest.predict_proba(features)[:, 1].astype(np.float32)
    return probabilities
