"""What the classifiers see of a candidate: a vector of the packet's figures, and the triplet of its stamps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURE_SET = "f1"  # a changed list or definition gets a new name: it is part of ``rbversion``
STAMP_SIDE = 63

# Figures of the packet as they are; missing ones become NaN, which the forest handles by itself.
_DIRECT = (
    "magpsf", "sigmapsf", "chipsf", "magdiff", "fwhm", "classtar", "magfromlim", "seeratio", "aimagerat", "bimagerat",
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
        1.0857 / sigmapsf, ``sign`` is 1 for a positive difference and 0 for a negative one.
    """
    out = np.full((len(rows), len(FEATURES)), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, name in enumerate(_DIRECT):
            value = row.get(name)
            if value is not None:
                out[i, j] = value
        near = row.get("distnr")
        if near is not None and near <= 3.0 and row.get("magnr") is not None:
            out[i, -3] = row["magpsf"] - row["magnr"]
        sigma = row.get("sigmapsf")
        if sigma:
            out[i, -2] = 1.0857 / sigma
        out[i, -1] = 1.0 if row.get("isdiffpos") in ("t", "1") else 0.0
    out[~np.isfinite(out)] = np.nan
    return out


def triplet(science: NDArray[Any], template: NDArray[Any], difference: NDArray[Any]) -> NDArray[np.float32]:
    """Stamps as the network takes them: (63, 63, 3), each channel divided by its own Frobenius norm.

    The public braai recipe (Duev et al. 2019): NaN to 0, stamps cut at a quadrant's edge padded with 1e-9 (here
    about the centre), norm per stamp. A stamp without any signal stays zero.
    """
    channels = []
    for stamp in (science, template, difference):
        image = np.nan_to_num(np.asarray(stamp, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if image.shape != (STAMP_SIDE, STAMP_SIDE):
            image = _padded(image)
        norm = float(np.linalg.norm(image))
        channels.append(image / norm if norm > 0 else image)
    return np.stack(channels, axis=-1).astype(np.float32)


def _padded(image: NDArray[np.float32]) -> NDArray[np.float32]:
    image = image[:STAMP_SIDE, :STAMP_SIDE]
    out = np.full((STAMP_SIDE, STAMP_SIDE), 1e-9, np.float32)
    out[: image.shape[0], : image.shape[1]] = image
    return out
