"""How good a classifier is: rates at a threshold, equal error, completeness at a given purity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def error_rates(scores: NDArray[np.float32], labels: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    """False negative and false positive rate at a threshold (score >= threshold is called real)."""
    real, bogus = scores[labels], scores[~labels]
    fnr = float(np.mean(real < threshold)) if len(real) else float("nan")
    fpr = float(np.mean(bogus >= threshold)) if len(bogus) else float("nan")
    return fnr, fpr


def equal_error(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Threshold at which both error rates are (most nearly) equal, and their mean there."""
    thresholds = np.unique(scores)
    rates = np.array([error_rates(scores, labels, float(t)) for t in thresholds])
    best = int(np.argmin(np.abs(rates[:, 0] - rates[:, 1])))
    return float(thresholds[best]), float(rates[best].mean())


def completeness_at_purity(scores: NDArray[np.float32], labels: NDArray[np.bool_], purity: float = 0.95) -> float:
    """Largest fraction of the real ones kept by a threshold whose selection is at least this pure; 0 if none is."""
    order = np.argsort(-scores, kind="stable")
    kept_real = np.cumsum(labels[order])
    pure = kept_real / np.arange(1, len(order) + 1) >= purity
    return float(kept_real[pure].max() / labels.sum()) if pure.any() and labels.any() else 0.0


def figures(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> dict[str, float]:
    """The figures that a manifest carries."""
    fnr, fpr = error_rates(scores, labels, 0.5)
    threshold, eer = equal_error(scores, labels)
    return {
        "n_test": float(len(labels)),
        "fnr_0.5": round(fnr, 4),
        "fpr_0.5": round(fpr, 4),
        "equal_error": round(eer, 4),
        "equal_error_threshold": round(threshold, 4),
        "completeness_at_95_purity": round(completeness_at_purity(scores, labels), 4),
    }
