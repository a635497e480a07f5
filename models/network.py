"""The convolutional network on stamp triplets (``drb``): braai's VGG6 shape (Duev et al. 2019), narrower at the end.

TensorFlow is imported inside the functions: it takes seconds and half a gigabyte that only scoring needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import STAMP_SIDE

# Inference runs in batches padded to a multiple of this, so that few shapes are traced.
BATCH = 32
SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,  # braai's
    "batch_size": 64,
    "dense": 96,
    "epochs": 18,
    "patience": 4,
}


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # workers scale by process on cores
    import tensorflow as tf

    return tf


def single_threaded() -> None:
    """Hold TensorFlow to one thread, as every worker's numerics; call before the first use in a process."""
    tf = _tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def build_network(dense: int = int(SETTINGS["dense"])) -> Any:
    """An untrained network: (63, 63, 3) in, probability of being real out."""
    keras = _tensorflow().keras
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((STAMP_SIDE, STAMP_SIDE, 3)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(4),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(dense, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def train_network(
    triplets: NDArray[np.float32],
    labels: NDArray[np.bool_],
    validation: tuple[NDArray[np.float32], NDArray[np.bool_]],
    seed: int,
    epochs: int = int(SETTINGS["epochs"]),
    verbose: int = 0,
) -> tuple[Any, int]:
    """Fit a network, flipping stamps at random, stopping early on the validation loss.

    Returns
    -------
    network, int
        The best network and the number of epochs run.
    """
    tf = _tensorflow()
    tf.keras.utils.set_random_seed(seed)
    network = build_network()
    network.compile(
        optimizer=tf.keras.optimizers.Adam(SETTINGS["learning_rate"]),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )
    flips = tf.keras.Sequential([tf.keras.layers.RandomFlip("horizontal_and_vertical", seed=seed)])
    batches = (
        tf.data.Dataset.from_tensor_slices((triplets, labels.astype(np.float32)))
        .shuffle(len(labels), seed=seed)
        .batch(int(SETTINGS["batch_size"]))
        .map(lambda x, y: (flips(x, training=True), y))
        .prefetch(2)
    )
    n_real = max(int(labels.sum()), 1)
    n_bogus = max(len(labels) - n_real, 1)
    weights = {0: len(labels) / (2 * n_bogus), 1: len(labels) / (2 * n_real)}
    stop = tf.keras.callbacks.EarlyStopping("val_loss", patience=SETTINGS["patience"], restore_best_weights=True)
    history = network.fit(
        batches,
        validation_data=(validation[0], validation[1].astype(np.float32)),
        epochs=epochs,
        class_weight=weights,
        callbacks=[stop],
        verbose=verbose,
    )
    return network, len(history.history["loss"])


def save_network(network: Any, path: Path) -> None:
    """Write architecture and weights (``.keras``), without the optimiser's state."""
    network.save(path, include_optimizer=False)


def load_network(path: Path) -> Any:
    """Load a network for inference."""
    return _tensorflow().keras.models.load_model(path, compile=False)


def network_scores(network: Any, triplets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of being real of each triplet, (n,) float32 in 0..1."""
    n = len(triplets)
    if n == 0:
        return np.empty(0, np.float32)
    padded = np.zeros((-(-n // BATCH) * BATCH, STAMP_SIDE, STAMP_SIDE, 3), np.float32)
    padded[:n] = triplets
    scores = [network.predict_on_batch(padded[i : i + BATCH])[:, 0] for i in range(0, len(padded), BATCH)]
    return np.concatenate(scores)[:n].astype(np.float32)
