"""What a candidate of a simulated night is: real, false or undecided, judged by the simulator's truth tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

REAL, BOGUS, UNDECIDED = 1, 0, -1
# A candidate is the truth's source if they lie within this many arcsec: three times the centring error at S/N 5.
MATCH_RADIUS = 1.5
# Closer to a real source than this (arcsec, two seeing widths), a candidate may be made of its light: not taught.
NEAR_RADIUS = 5.0
# The source's own change in units of the candidate's error from which it counts as what was found.
MIN_CHANGE = 3.0
PIXEL_SCALE = 1.0125  # arcsec
# Truth kinds that can be real in a difference image.
POINT_KINDS = ("transient", "variable", "asteroid")
POGSON = 1.0857362

F64 = NDArray[np.float64]
Truth = Mapping[str, NDArray[Any]]
Place = tuple[str, int]  # exposure without the CCD, rcid


def exposure_key(name: str) -> str:
    """``ztf_YYYYMMDDdddddd_FFFFFF_zr`` of any product or packet name of that exposure."""
    return "_".join(name.split("/")[-1].split("_")[:4])


def label_candidates(candidates: Sequence[Mapping[str, Any]], truth: Truth) -> NDArray[np.int8]:
    """Label packets' ``candidate`` records.

    Parameters
    ----------
    candidates : sequence of mappings
        ``pdiffimfilename``, ``rcid``, ``ra``, ``dec``, ``xpos``, ``ypos`` (FITS pixels), ``magpsf``, ``sigmapsf``,
        ``isdiffpos``.
    truth : mapping of columns
        The simulator's ``sources`` table.

    Returns
    -------
    ndarray, (n,), int8
        ``REAL``: within 1.5" of a transient, variable or asteroid whose flux differs from the reference's by more
        than three of the candidate's errors, with the candidate's sign; or on a streak's trail. ``UNDECIDED``: on such
        a source but not by so much or of the other sign, or within 5" of one that is real. ``BOGUS``: all others.
    """
    labels = np.full(len(candidates), BOGUS, np.int8)
    by_place: dict[Place, list[int]] = defaultdict(list)
    for i, row in enumerate(candidates):
        by_place[exposure_key(str(row["pdiffimfilename"])), int(row["rcid"])].append(i)
    sources = _sources_by_place(truth)
    before = _reference_light(truth)
    for place, rows in by_place.items():
        if place in sources:
            chosen = [candidates[i] for i in rows]
            labels[rows] = _label_quadrant(chosen, truth, sources[place], before)
    return labels


def _sources_by_place(truth: Truth) -> dict[Place, NDArray[np.int64]]:
    """Rows of what can be real, by exposure and quadrant."""
    kinds = truth["kind"].astype(str)
    wanted = np.flatnonzero(np.isin(kinds, (*POINT_KINDS, "streak")) & (truth["role"].astype(str) == "sci"))
    rows: dict[Place, list[int]] = defaultdict(list)
    for i in wanted.tolist():
        rows[exposure_key(str(truth["exposure"][i])), int(truth["rcid"][i])].append(i)
    return {place: np.array(chosen) for place, chosen in rows.items()}


def _reference_light(truth: Truth) -> dict[tuple[int, int], float]:
    """Mean light (10^(-0.4 mag)) of each variable over the reference exposures, by identifier and quadrant."""
    chosen = (truth["role"].astype(str) == "ref") & (truth["kind"].astype(str) == "variable")
    light: dict[tuple[int, int], list[float]] = defaultdict(list)
    columns = (truth["truth_id"][chosen].tolist(), truth["rcid"][chosen].tolist(), truth["mag"][chosen].tolist())
    for truth_id, rcid, mag in zip(*columns, strict=True):
        light[truth_id, rcid].append(10 ** (-0.4 * mag))
    return {key: float(np.mean(values)) for key, values in light.items()}


def _label_quadrant(
    rows: Sequence[Mapping[str, Any]],
    truth: Truth,
    sources: NDArray[np.int64],
    before: Mapping[tuple[int, int], float],
) -> NDArray[np.int8]:
    labels = np.full(len(rows), BOGUS, np.int8)
    flux = 10 ** (-0.4 * np.array([row["magpsf"] for row in rows], float))
    error = flux * np.array([row["sigmapsf"] for row in rows], float) / POGSON
    sign = np.array([1.0 if row["isdiffpos"] in ("t", "1") else -1.0 for row in rows])
    streaks = truth["kind"][sources].astype(str) == "streak"
    points = sources[~streaks]
    if len(points):
        places = _unit(np.array([(row["ra"], row["dec"]) for row in rows], float))
        tree = cKDTree(_unit(np.stack([truth["ra"][points], truth["dec"][points]], 1).astype(float)))
        change = _change(truth, points, before)
        for i, near in enumerate(tree.query_ball_point(places, _chord(NEAR_RADIUS))):
            if near:
                distance = np.linalg.norm(tree.data[near] - places[i], axis=1)
                labels[i] = _decide(distance, sign[i] * change[near] / error[i])
    pixels = np.array([(row["xpos"] - 1, row["ypos"] - 1) for row in rows], float)
    for k in sources[streaks]:
        ends = [float(truth[name][k]) for name in ("x1", "y1", "x2", "y2")]
        distance = _segment_distance(pixels, ends) * PIXEL_SCALE
        labels[(distance > MATCH_RADIUS) & (distance <= NEAR_RADIUS) & (labels == BOGUS)] = UNDECIDED
        labels[distance <= MATCH_RADIUS] = REAL
    return labels


def _decide(distance: F64, significance: F64) -> int:
    """A candidate's label from its chords to the sources around it and how much each changed, in its errors."""
    on, real = distance <= _chord(MATCH_RADIUS), significance > MIN_CHANGE
    if (on & real).any():
        return REAL
    changed = np.abs(significance) > MIN_CHANGE
    return UNDECIDED if on.any() or changed.any() else BOGUS


def _change(truth: Truth, rows: NDArray[np.int64], before: Mapping[tuple[int, int], float]) -> F64:
    """Light of each source minus that in the reference; transients and asteroids are not in it."""
    now = 10 ** (-0.4 * truth["mag"][rows].astype(float))
    keys = zip(truth["truth_id"][rows].tolist(), truth["rcid"][rows].tolist(), strict=True)
    change: F64 = now - np.array([before.get(key, 0.0) for key in keys])
    return change


def _segment_distance(places: F64, ends: Sequence[float]) -> F64:
    """Distance (px) of places, (n, 2), from the segment (x1, y1, x2, y2)."""
    start, along = np.array(ends[:2]), np.array(ends[2:]) - np.array(ends[:2])
    length2 = float(along @ along)
    t = np.clip((places - start) @ along / length2, 0, 1) if length2 > 0 else np.zeros(len(places))
    distance: F64 = np.linalg.norm(places - start - t[:, None] * along, axis=1)
    return distance


def _chord(arcsec: float) -> float:
    return float(2 * np.sin(np.deg2rad(arcsec / 3600.0) / 2))


def _unit(places: F64) -> F64:
    r, d = np.deg2rad(places[:, 0]), np.deg2rad(places[:, 1])
    vectors: F64 = np.stack([np.cos(d) * np.cos(r), np.cos(d) * np.sin(r), np.sin(d)], axis=-1)
    return vectors
