"""Many quadrants' fakes as figures: completeness, depth, fluxes, and what is found that is no fake."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.records import Row
from stream.fakes.table import KINDS, OTHER, STREAK

F64 = NDArray[np.float64]

SNR_BINS = (3.0, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 10.0, 15.0, 30.0, math.inf)
HOST_BINS = (-math.inf, 16.0, 18.0, 20.0, math.inf)
_PIXEL_SCALE = 1.01  # arcsec
_FIT_SNR = 8.0  # fluxes are judged from here on: below, what noise pushes under the threshold is missing


def completeness(rows: Sequence[Row], sent: bool) -> float | None:
    """Share of fakes that were found (``sent``: and would have left), those on unusable pixels left out."""
    fair = [row for row in rows if not row["masked"] and row["snr"] is not None]
    if not fair:
        return None
    return float(np.mean([row["sent" if sent else "detected"] for row in fair]))


def summarise(rows: Iterable[Row]) -> Row:
    """Figures of fakes (rows of ``fakes.parquet``).

    Returns
    -------
    dict
        ``n``, ``quadrants``; ``by_kind``, ``by_snr``, ``by_magnitude`` (from the local limit), ``by_host``,
        ``by_rcid``: lists of what, number, found, sent (shares, fakes on unusable pixels left out); ``limit_offset``
        (mag between the local 5-sigma limit and that at which half of the isolated points are sent; positive: deeper);
        ``flux_bias`` and ``flux_pull`` of points above S/N 8; ``others``: sent candidates that are no fakes per square
        degree, and ``purity``: fakes among what was sent (of a sky with as many transients as fakes; real events
        that happen to lie in the pieces count as impure).
    """
    table = list(rows)
    fakes = [row for row in table if row["kind"] in KINDS]
    points = [row for row in fakes if row["kind"] != STREAK]
    others = [row for row in table if row["kind"] == OTHER]
    bias, pull = _fluxes(points)
    area = sum({row["pid"]: row["area"] for row in table}.values()) * (_PIXEL_SCALE / 3600.0) ** 2
    impure = sum(row["sent"] for row in others)
    good = sum(row["sent"] for row in fakes)
    return {
        "n": len(fakes),
        "quadrants": len({row["pid"] for row in table}),
        "by_kind": _groups(fakes, lambda row: row["kind"], KINDS),
        "by_snr": _binned(points, lambda row: row["snr"], SNR_BINS),
        "by_magnitude": _binned(points, _below_limit, tuple(np.arange(-5.0, 1.1, 0.5))),
        "by_host": _binned([r for r in points if r["kind"] in ("host", "nucleus")], lambda r: r["host_mag"], HOST_BINS),
        "by_rcid": _groups(fakes, lambda row: row["rcid"], sorted({row["rcid"] for row in fakes})),
        "limit_offset": limit_offset([row for row in points if row["kind"] == "point"]),
        "flux_bias": bias,
        "flux_pull": pull,
        "others_per_sq_deg": impure / area if area > 0 else None,
        "purity": good / (good + impure) if good + impure else None,
    }


def _below_limit(row: Mapping[str, Any]) -> float | None:
    """How much fainter than the local limit a fake is, mag."""
    return None if row["mag"] is None or row["limit"] is None else float(row["mag"] - row["limit"])


def _line(what: str | int | float, rows: Sequence[Row]) -> Row:
    return {
        "what": what, "n": len(rows), "found": completeness(rows, sent=False), "sent": completeness(rows, sent=True),
    }  # fmt: skip


def _groups(rows: Sequence[Row], key: Callable[[Row], Any], keys: Iterable[Any]) -> list[Row]:
    return [_line(k, [row for row in rows if key(row) == k]) for k in keys]


def _binned(rows: Sequence[Row], key: Callable[[Row], float | None], edges: Sequence[float]) -> list[Row]:
    """One line a bin that holds anything."""
    values = np.array([np.nan if key(row) is None else key(row) for row in rows], float)
    lines = []
    for low, high in itertools.pairwise(edges):
        chosen = [row for row, v in zip(rows, values.tolist(), strict=True) if low <= v < high]
        if chosen:
            lines.append(_line(f"{low:g} to {high:g}", chosen))
    return lines


def limit_offset(rows: Sequence[Row]) -> float | None:
    """Where half are sent, in mag fainter than the local 5-sigma limit, by a logistic curve through found and missed
    (Newton's iteration); None with fewer than 50 fakes or without both."""
    fair = [row for row in rows if not row["masked"] and _below_limit(row) is not None]
    x = np.array([_below_limit(row) for row in fair], float)
    y = np.array([row["sent"] for row in fair], float)
    near = np.abs(x) < 1.5
    x, y = x[near], y[near]
    if len(x) < 50 or y.min() == y.max():
        return None
    a, b = 0.0, -5.0  # log odds a + b x
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(a + b * x, -30, 30)))
        w = np.maximum(p * (1 - p), 1e-9)
        normal = np.array([[w.sum(), (w * x).sum()], [(w * x).sum(), (w * x * x).sum()]])
        step = np.linalg.solve(normal, [(y - p).sum(), ((y - p) * x).sum()])
        a, b = a + step[0], b + np.clip(step[1], -5, 5)
        if np.abs(step).max() < 1e-6:
            break
    return float(-a / b) if b < 0 else None


def _fluxes(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Median of measured over true flux minus 1, and the robust spread of the pulls."""
    known = [
        (row["flux"], row["fit_flux"], row["fit_err"])
        for row in rows
        if row["detected"] and row["fit_flux"] is not None and row["snr"] is not None and row["snr"] >= _FIT_SNR
    ]
    if len(known) < 10:
        return None, None
    flux, fit, err = np.array(known, float).T
    pulls = (fit - flux) / err
    spread = 1.4826 * float(np.median(np.abs(pulls - np.median(pulls))))
    return float(np.median(fit / flux) - 1), spread
