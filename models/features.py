"""What the classifiers see of a candidate: a vector of the packet's figures, and the triplet of its stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURE_SET = "f1"  # a changed list or definition gets a new name: it is part of ``rbversion``
STAMP_SIDE = 63
QUARTILE = 0.6745  # of a Gaussian, in standard deviations

# ``aimagerat`` is left out: on simulated nights it helps no more than ``bimagerat``, on real packets it misleads.
# Figures of the packet as they are; missing ones become NaN, which the forest handles by itself.
_DIRECT = (
    "magpsf", "sigmapsf", "chipsf", "magdiff", "fwhm", "classtar", "magfromlim", "seeratio", "bimagerat",
    "elong", "nneg", "nbad", "sumrat", "scorr", "dsnrms", "ssnrms", "dsdiff", "distnr", "chinr", "sharpnr",
    "mindtoedge",
)  # fmt: skip
# Derived ones: what the difference is compared with what stands there in the reference.
_DERIVED = ("contrast", "snr", "sign")
FEATURES = _DIRECT + _DERIVED


def feature_matrix(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Feature vectors of packet ``candidate`` records.

    Parameters
    ----------
    rows : sequence of mappings
        ``candidate`` records (names of schema 4.02); missing or None is NaN.

    Returns
    -------
    ndarray, (n_rows, len(FEATURES)), float32
        ``contrast`` is magpsf - magnr where the reference source lies within 3 px (NaN elsewhere), ``snr`` is
        1.0857362 / sigmapsf, ``sign`` is 1 for a positive difference and 0 for a negative one.
    """
    out = np.full((len(rows), len(FEATURES)), np.nan, np.float32)
    for i, row in enumerate(rows):
        values = [row.get(name) for name in _DIRECT]
        out[i, : len(_DIRECT)] = [np.nan if value is None else value for value in values]
        near, magnr, sigma = row.get("distnr"), row.get("magnr"), row.get("sigmapsf")
        # As single precision first: a packet that was written and read again gives the same vector.
        if near is not None and np.float32(near) <= 3.0 and magnr is not None:
            out[i, -3] = np.float32(row["magpsf"]) - np.float32(magnr)
        if sigma:
            out[i, -2] = np.float32(1.0857362) / np.float32(sigma)
        out[i, -1] = 1.0 if row.get("isdiffpos") in ("t", "1") else 0.0
    out[~np.isfinite(out)] = np.nan
    return out


def triplet(science: NDArray[Any], template: NDArray[Any], difference: NDArray[Any]) -> NDArray[np.float32]:
    """Stamps as the network takes them: (63, 63, 3), each in units of its own noise, compressed.

    Each stamp loses its median, is divided by its noise and goes through ``arcsinh``: neither sky nor zero point
    nor gain is seen, noise stays linear at 1, and a saturated star does not drown its surroundings. The noise is
    taken from the quarter of the pixels just below the median, where stars are not. NaN is 0, and so is what is
    missing of a stamp cut at the quadrant's edge, which stays in the corner it came in, as in the public braai
    recipe. A stamp without any signal is 0 throughout.
    """
    channels = np.zeros((STAMP_SIDE, STAMP_SIDE, 3), np.float32)
    for k, stamp in enumerate((science, template, difference)):
        image = np.asarray(stamp, np.float32)[:STAMP_SIDE, :STAMP_SIDE]
        channels[: image.shape[0], : image.shape[1], k] = _in_noise(image)
    return channels


def _in_noise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A stamp about its median in units of its noise, compressed; zeros where nothing can be said."""
    good = np.isfinite(image)
    values = image[good]
    if values.size == 0:
        return np.zeros_like(image)
    ranks = (values.size // 4, values.size // 2)
    lower, middle = np.partition(values, ranks)[list(ranks)]
    noise = float(middle - lower) / QUARTILE
    if noise <= 0:  # a quarter of the pixels alike, as where a mask was filled
        noise = float(values.std())
    out = np.zeros_like(image)
    if noise > 0:
        out[good] = np.arcsinh((values - middle) / noise)
    return out


def braai_triplet(science: NDArray[Any], template: NDArray[Any], difference: NDArray[Any]) -> NDArray[np.float32]:
    """Stamps as the public braai networks from d6_m9 on take them (Duev et al. 2019): (63, 63, 3).

    NaN to 0, stamps cut at an edge padded with 1e-9, each divided by its Frobenius norm. For comparisons only.
    """
    channels = np.full((STAMP_SIDE, STAMP_SIDE, 3), 1e-9, np.float32)
    for k, stamp in enumerate((science, template, difference)):
        image = np.nan_to_num(np.asarray(stamp, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        image = image[:STAMP_SIDE, :STAMP_SIDE]
        channels[: image.shape[0], : image.shape[1], k] = image
        norm = float(np.linalg.norm(channels[..., k]))
        channels[..., k] /= norm if norm > 0 else 1.0
    return channels
