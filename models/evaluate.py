"""How good a classifier is: rates at a threshold, equal error, completeness at a given purity, rank agreement."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

# Bins of signal-to-noise ratio in which the equal error is given.
SNR_EDGES = (5.0, 7.0, 10.0, 20.0, np.inf)
# Fewer examples of a class than this make no figure for a bin.
MIN_IN_BIN = 20


def error_rates(scores: NDArray[np.float32], labels: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    """False negative and false positive rate at a threshold (score >= threshold is called real)."""
    real, bogus = scores[labels], scores[~labels]
    fnr = float(np.mean(real < threshold)) if len(real) else float("nan")
    fpr = float(np.mean(bogus >= threshold)) if len(bogus) else float("nan")
    return fnr, fpr


def equal_error(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Threshold at which both error rates are (most nearly) equal, and their mean there; NaN without both classes."""
    real, bogus = np.sort(scores[labels]), np.sort(scores[~labels])
    if not len(real) or not len(bogus):
        return float("nan"), float("nan")
    thresholds = np.unique(scores)
    fnr = np.searchsorted(real, thresholds, "left") / len(real)
    fpr = 1 - np.searchsorted(bogus, thresholds, "left") / len(bogus)
    best = int(np.argmin(np.abs(fnr - fpr)))
    return float(thresholds[best]), float((fnr[best] + fpr[best]) / 2)


def completeness_at_purity(scores: NDArray[np.float32], labels: NDArray[np.bool_], purity: float = 0.95) -> float:
    """Largest fraction of the real ones kept by a threshold whose selection is at least this pure; 0 if none is."""
    order = np.argsort(-scores, kind="stable")
    kept_real = np.cumsum(labels[order])
    pure = kept_real / np.arange(1, len(order) + 1) >= purity
    return float(kept_real[pure].max() / labels.sum()) if pure.any() and labels.any() else 0.0


def area_under_curve(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    """Probability that a real one scores higher than a false one (ties count half); NaN without both classes."""
    n_real, n_bogus = int(labels.sum()), int((~labels).sum())
    if not n_real or not n_bogus:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - n_real * (n_real + 1) / 2) / (n_real * n_bogus))


def rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Spearman's rank correlation of two scores; NaN where one of them does not vary."""
    a, b = rankdata(one), rankdata(other)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def figures(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], snr: NDArray[np.float32] | None = None, prefix: str = ""
) -> dict[str, float]:
    """The figures that a manifest carries, each name with ``prefix``; with ``snr`` also equal errors in its bins."""
    fnr, fpr = error_rates(scores, labels, 0.5)
    threshold, eer = equal_error(scores, labels)
    found = {
        "n_test": float(len(labels)),
        "fnr_0.5": fnr,
        "fpr_0.5": fpr,
        "equal_error": eer,
        "equal_error_threshold": threshold,
        "completeness_at_95_purity": completeness_at_purity(scores, labels),
    }
    if snr is not None:
        for low, high in itertools.pairwise(SNR_EDGES):
            chosen = (snr >= low) & (snr < high)
            n_real = int(labels[chosen].sum())
            if min(n_real, int(chosen.sum()) - n_real) >= MIN_IN_BIN:
                name = f"equal_error_snr_{low:g}_{high:g}" if np.isfinite(high) else f"equal_error_snr_over_{low:g}"
                found[name] = equal_error(scores[chosen], labels[chosen])[1]
    return {prefix + name: round(value, 4) for name, value in found.items()}


def agreement(
    scores: NDArray[np.float32], published: NDArray[np.float32], prefix: str = "real_packets_"
) -> dict[str, float]:
    """How our scores of real packets rank against published ones: their sides of 0.5 as truth, and rank correlation.

    The published scores are no truth: what they call false is in part real and the other way round.
    """
    return {
        f"{prefix}n": float(len(scores)),
        f"{prefix}auc": round(area_under_curve(scores, published >= 0.5), 4),
        f"{prefix}rank_correlation": round(rank_correlation(scores, published), 4),
    }
