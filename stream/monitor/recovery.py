"""What was injected and what was found: the simulator's truth against the alerts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.core.records import QuadrantReport

MATCH_RADIUS = 1.5  # arcsec: three times the centring error at S/N 5
POINT_SOURCES = ("transient", "asteroid")


@dataclass(frozen=True, slots=True)
class Injected:
    """Injected point sources of processed quadrants, one row a source and exposure.

    ``snr`` is 5 x 10^(0.4 (diffmaglim - mag)), what an isolated source of that magnitude should reach; ``found``
    whether an alert lies on it; ``usable`` whether a clean pixel was there to find it on.
    """

    kind: NDArray[np.str_]
    mag: NDArray[np.float64]
    snr: NDArray[np.float64]
    usable: NDArray[np.bool_]
    found: NDArray[np.bool_]

    def completeness(self, low: float, high: float = np.inf) -> tuple[int, int]:
        """How many usable sources of S/N in [low, high) were found, and how many there are."""
        chosen = self.usable & (self.snr >= low) & (self.snr < high)
        return int((chosen & self.found).sum()), int(chosen.sum())


def recovery(
    truth: Mapping[str, NDArray[Any]],
    reports: Iterable[QuadrantReport],
    alerts: Sequence[Mapping[str, Any]],
    usable: Mapping[tuple[str, int], NDArray[np.bool_]] | None = None,
) -> Injected:
    """Compare injected point sources with alerts.

    Parameters
    ----------
    truth : mapping of columns
        ``kind``, ``exposure``, ``rcid``, ``ra``, ``dec``, ``mag``, ``x``, ``y``, ``in_quadrant``.
    reports : iterable of QuadrantReport
        The quadrants that were searched; sources of others are left out.
    alerts : sequence of mappings
        ``candidate`` records.
    usable : mapping, optional
        By exposure name and rcid an image, True where a pixel is clean; without it everything counts as usable.
    """
    limits = {(r.name.rsplit("_q", 1)[0], r.rcid): r.diffmaglim for r in reports if r.diffmaglim is not None}
    places = list(zip(truth["exposure"].astype(str), truth["rcid"].astype(int), strict=True))
    wanted = np.isin(truth["kind"].astype(str), POINT_SOURCES) & truth["in_quadrant"].astype(bool)
    rows = [int(i) for i in np.flatnonzero(wanted) if places[i] in limits]
    limit = np.array([limits[places[i]] for i in rows], float)
    mag = truth["mag"][rows].astype(float)
    return Injected(
        truth["kind"][rows].astype(str),
        mag,
        5.0 * 10.0 ** (0.4 * (limit - mag)),
        np.array([_clean(truth, places[i], i, usable) for i in rows], np.bool_),
        _found(truth, rows, places, alerts),
    )


def _clean(
    truth: Mapping[str, NDArray[Any]],
    place: tuple[str, int],
    row: int,
    usable: Mapping[tuple[str, int], NDArray[np.bool_]] | None,
) -> bool:
    """Whether all of the 5 x 5 px about a source are clean, 10 px or more from the edge."""
    if usable is None or place not in usable:
        return True
    image = usable[place]
    x, y = round(float(truth["x"][row])), round(float(truth["y"][row]))
    inside = 10 <= x < image.shape[1] - 10 and 10 <= y < image.shape[0] - 10
    return inside and bool(image[y - 2 : y + 3, x - 2 : x + 3].all())


def _found(
    truth: Mapping[str, NDArray[Any]],
    rows: Sequence[int],
    places: Sequence[tuple[str, int]],
    alerts: Sequence[Mapping[str, Any]],
) -> NDArray[np.bool_]:
    by_place: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for alert in alerts:
        name = str(alert["pdiffimfilename"]).split("/")[-1].rsplit("_q", 1)[0]
        by_place.setdefault((name, int(alert["rcid"])), []).append((alert["ra"], alert["dec"]))
    trees = {place: cKDTree(_unit(np.array(positions))) for place, positions in by_place.items()}
    chord = 2 * np.sin(np.deg2rad(MATCH_RADIUS / 3600.0) / 2)
    found = np.zeros(len(rows), bool)
    for n, i in enumerate(rows):
        tree = trees.get(places[i])
        if tree is not None:
            distance, _ = tree.query(_unit(np.array([[truth["ra"][i], truth["dec"][i]]], float)))
            found[n] = distance[0] <= chord
    return found


def _unit(places: NDArray[np.float64]) -> NDArray[np.float64]:
    ra, dec = np.deg2rad(places[:, 0]), np.deg2rad(places[:, 1])
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
