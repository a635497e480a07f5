"""The convolutional network on stamp triplets (``drb``).

Two branches, after braai's VGG6 (Duev et al. 2019), at a fifth of its arithmetic: the inner 33 x 33 px at full
resolution, where the candidate is judged, and the whole 63 x 63 px at a third of it, for the company it keeps.

TensorFlow is imported inside the functions: it takes seconds and half a gigabyte that only scoring needs.

The same examples and seed give the same weights on the same kind of processor and the same TensorFlow: op determinism
is on, one thread is used, and examples are shuffled and turned with numpy's generator. Between processor families
TensorFlow picks other kernels and the last bits of a training differ, and with them the figures by their scatter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artefacts import make_artefacts
from models.features import STAMP_SIDE

# Inference runs in batches padded to a multiple of this, so that few shapes are traced.
BATCH = 32
INNER = 33  # px: four seeing widths, and the ring of a bright star's residual
SETTINGS: dict[str, Any] = {
    "learning_rate": 1.5e-3,  # falls as a cosine to nothing over the epochs
    "weight_decay": 1e-4,
    "batch_size": 64,
    "artefacts": 8,  # made for each batch, beside it
    "filters": [16, 32],
    "dense": 64,
    "dropout": 0.3,
    "epochs": 10,
}


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # workers scale by process on cores
    import tensorflow as tf

    return tf


def single_threaded() -> None:
    """Hold TensorFlow to one thread, as every worker's numerics.

    Only before its first use in a process; after that the process keeps what it has.
    """
    tf = _tensorflow()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is in use already
        return


def build_network(filters: tuple[int, int] = tuple(SETTINGS["filters"]), dense: int = int(SETTINGS["dense"])) -> Any:
    """An untrained network: (63, 63, 3) in, probability of being real out."""
    keras = _tensorflow().keras
    layers = keras.layers

    def convolve(x: Any, n: int) -> Any:
        return layers.Conv2D(n, 3, activation="relu", kernel_initializer="he_uniform")(x)

    few, many = filters
    stamps = layers.Input((STAMP_SIDE, STAMP_SIDE, 3))
    inner = layers.Cropping2D((STAMP_SIDE - INNER) // 2)(stamps)
    inner = layers.MaxPooling2D(2)(convolve(convolve(inner, few), few))
    inner = layers.MaxPooling2D(2)(convolve(convolve(inner, many), many))
    outer = layers.AveragePooling2D(3)(stamps)
    outer = layers.MaxPooling2D(2)(convolve(convolve(outer, few), few))
    outer = layers.MaxPooling2D(2)(convolve(outer, many))
    joined = layers.Concatenate()([layers.Flatten()(inner), layers.Flatten()(outer)])
    joined = layers.Dropout(SETTINGS["dropout"])(joined)
    joined = layers.Dense(dense, activation="relu", kernel_initializer="he_uniform")(joined)
    joined = layers.Dropout(SETTINGS["dropout"])(joined)
    return keras.Model(stamps, layers.Dense(1, activation="sigmoid")(joined))


def turned(triplets: NDArray[np.floating[Any]], rng: np.random.Generator) -> NDArray[np.float32]:
    """A copy of a batch with each example mirrored and turned at random, one of the square's eight ways."""
    out = triplets.astype(np.float32)
    ways = rng.integers(0, 8, len(out))
    out[ways & 1 == 1] = out[ways & 1 == 1][:, ::-1]
    out[ways & 2 == 2] = out[ways & 2 == 2][:, :, ::-1]
    out[ways & 4 == 4] = out[ways & 4 == 4].transpose(0, 2, 1, 3)
    return out


def train_network(
    triplets: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_],
    validation: tuple[NDArray[np.floating[Any]], NDArray[np.bool_]],
    seed: int,
    epochs: int = int(SETTINGS["epochs"]),
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Any, int]:
    """Fit a network, mirroring and turning stamps at random, with made-up artefacts; classes weigh alike.

    Returns
    -------
    network, int
        The network with the weights of the epoch whose validation loss was lowest, and that epoch (first is 1).
    """
    tf = _tensorflow()
    single_threaded()
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(seed)
    network = build_network()
    batch = int(SETTINGS["batch_size"])
    steps = math.ceil(len(labels) / batch)
    rate = tf.keras.optimizers.schedules.CosineDecay(SETTINGS["learning_rate"], steps * epochs)
    network.compile(
        optimizer=tf.keras.optimizers.AdamW(rate, weight_decay=SETTINGS["weight_decay"]), loss="binary_crossentropy"
    )
    weights = class_weights(labels)
    best: tuple[float, int, list[NDArray[np.float32]]] = (math.inf, 0, network.get_weights())
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(labels))
        losses = []
        for k in range(steps):
            chosen = order[k * batch : (k + 1) * batch]
            losses.append(_step(network, triplets[chosen], labels[chosen], weights[chosen], rng))
        loss = cross_entropy(network_scores(network, validation[0]), validation[1])
        report(f"epoch {epoch} of {epochs}: loss {np.mean(losses):.4f}, of the validation {loss:.4f}")
        if loss < best[0]:
            best = (loss, epoch, network.get_weights())
    trained = build_network()  # without the optimiser, whose state would treble the file
    trained.set_weights(best[2])
    return trained, best[1]


def _step(
    network: Any,
    triplets: NDArray[np.floating[Any]],
    labels: NDArray[np.bool_],
    weights: NDArray[np.float32],
    rng: np.random.Generator,
) -> float:
    """One step on a batch and some artefacts made of it; the loss."""
    n = min(int(SETTINGS["artefacts"]), len(triplets))
    made = make_artefacts(triplets[:n], rng) if n else triplets[:0]
    batch = turned(np.concatenate([triplets.astype(np.float32), made]), rng)
    target = np.concatenate([labels, np.zeros(n, bool)]).astype(np.float32)[:, None]
    loss = float(network.train_on_batch(batch, target, np.concatenate([weights, np.ones(n, np.float32)])))
    network.reset_metrics()
    return loss


def class_weights(labels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A weight for each example such that both classes weigh alike and the mean is 1."""
    share = np.clip(labels.mean(), 1e-6, 1 - 1e-6)
    weights: NDArray[np.float32] = np.where(labels, 0.5 / share, 0.5 / (1 - share)).astype(np.float32)
    return weights


def cross_entropy(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    """Mean cross-entropy of scores, both classes weighing alike; NaN without examples."""
    if len(labels) == 0:
        return math.nan
    likely = np.clip(np.where(labels, scores, 1 - scores).astype(float), 1e-7, 1)
    return float(np.mean(-np.log(likely) * class_weights(labels)))


def save_network(network: Any, path: Path) -> None:
    """Write architecture and weights (``.keras``)."""
    network.save(path)


def load_network(path: Path) -> Any:
    """Load a network for inference."""
    return _tensorflow().keras.models.load_model(path, compile=False)


def network_scores(network: Any, triplets: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probability of being real of each triplet, (n,) float32 in 0..1."""
    n = len(triplets)
    scores = np.empty(n, np.float32)
    for i in range(0, n, BATCH):
        part = np.zeros((BATCH, STAMP_SIDE, STAMP_SIDE, 3), np.float32)
        part[: len(triplets[i : i + BATCH])] = triplets[i : i + BATCH]
        scores[i : i + BATCH] = network.predict_on_batch(part)[: n - i, 0]
    return scores
