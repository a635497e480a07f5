"""Which fakes go where: the same ones for the same quadrant, whoever asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.depth import DepthMap
from stream.core.records import ScienceImage, Table
from stream.fakes.crop import Box
from stream.fakes.table import BRIGHT, HOST, NUCLEUS, POINT, STREAK, empty_fakes

F64 = NDArray[np.float64]
Rng = np.random.Generator

_EDGE = 40  # px of a piece's border that are not searched: kernels, windows and cut-outs need them
MIN_SIDE = 200  # px: a piece that is mostly border measures nothing
_APART = 28.0  # px between fakes: neither lies in the other's sky annulus
_GALAXY_SCORE = 0.35  # Pan-STARRS' star/galaxy score below which a source is taken for a galaxy
_GALAXY_MAG = 21.5  # fainter hosts are no different from empty sky
_BRIGHT_MAG = 15.5
_FAINT_SHARE = 0.75  # of the fakes within a magnitude or so of the limit, where completeness changes
_NEAR, _FAR = (-1.25, 0.6), (-5.0, -1.25)  # mag from the local limit


@dataclass(frozen=True, slots=True)
class FakeSettings:
    """How many fakes of which kind, on a piece of which side (px), in which share of the quadrants (0..1)."""

    share: float = 1.0
    side: int = 640
    most: float = 0.25  # a piece is never more than this share of the image, along each axis: a small one has none
    counts: tuple[tuple[str, int], ...] = ((NUCLEUS, 8), (HOST, 8), (BRIGHT, 4), (STREAK, 4), (POINT, 20))


def is_due(pid: int, share: float) -> bool:
    """Whether a quadrant gets fakes: that share of all pids, the same ones every time."""
    return float(np.random.default_rng([pid, 1]).random()) < share


def choose_box(pid: int, shape: tuple[int, ...], settings: FakeSettings) -> Box:
    """The piece of a quadrant that is searched: anywhere, by its pid."""
    rng = np.random.default_rng([pid, 2])
    ny, nx = shape
    height, width = (min(settings.side, int(settings.most * n)) for n in (ny, nx))
    y0, x0 = int(rng.integers(0, ny - height + 1)), int(rng.integers(0, nx - width + 1))
    return Box(x0, y0, x0 + width, y0 + height)


def plan_fakes(science: ScienceImage, depth: DepthMap, box: Box, ps1: Table, pid: int, settings: FakeSettings) -> Table:
    """The fakes of one piece.

    Parameters
    ----------
    science : ScienceImage
        The piece.
    depth : DepthMap
        Of the whole quadrant; ``box`` says where the piece lies in it.
    ps1 : Table
        ``PS1_DTYPE``: whose galaxies are hosts. May be empty.
    pid : int
        Seed.

    Returns
    -------
    Table
        ``FAKE_DTYPE``, the first part filled in; fewer than asked for where there is no room or no host.
    """
    rng = np.random.default_rng([pid, 3])
    galaxies, stars = _galaxies(science, ps1), _bright_stars(science)
    made: list[Table] = []
    taken = np.zeros((0, 2))
    for kind, count in settings.counts:
        fakes = _candidates(kind, 4 * count, science.data.shape, galaxies, stars, rng)
        for fake in fakes:
            if sum(f["kind"] == kind for f in made) >= count:
                break
            place = np.array([fake["x"], fake["y"]])
            if len(taken) and np.hypot(*(taken - place).T).min() < _APART + 0.5 * float(fake["length"]):
                continue
            made.append(fake)
            taken = np.vstack([taken, place])
    table = np.array(made, dtype=empty_fakes(0).dtype) if made else empty_fakes(0)
    return _with_light(table, science, depth, box, rng)


def _galaxies(science: ScienceImage, ps1: Table) -> F64:
    """Pixel places and magnitudes (n, 3) of the galaxies of a catalogue, brightest first."""
    fid = science.quadrant.exposure.fid
    mag = ps1[{1: "gMeanPSFMag", 2: "rMeanPSFMag", 3: "iMeanPSFMag"}[fid]].astype(float)
    with np.errstate(invalid="ignore"):
        chosen = ps1[(ps1["ps_score"] < _GALAXY_SCORE) & (mag > 0) & (mag < _GALAXY_MAG)]
        mag = mag[(ps1["ps_score"] < _GALAXY_SCORE) & (mag > 0) & (mag < _GALAXY_MAG)]
    if not len(chosen):
        return np.zeros((0, 3))
    x, y = science.astrometry.wcs.all_world2pix(chosen["raMean"], chosen["decMean"], 0, quiet=True)
    places = np.stack([x, y, mag], axis=1)[_inside(x, y, science.data.shape)]
    return places[np.lexsort((places[:, 0], places[:, 2]))]


def _bright_stars(science: ScienceImage) -> F64:
    """The same of the image's own bright sources."""
    s = science.sources
    with np.errstate(invalid="ignore", divide="ignore"):
        mag = science.zeropoint.magzp - 2.5 * np.log10(s["flux"])
    places: F64 = np.stack([s["x"], s["y"], mag], axis=1)[mag < _BRIGHT_MAG]
    return places[np.lexsort((places[:, 0], places[:, 2]))]


def _inside(x: F64, y: F64, shape: tuple[int, int]) -> NDArray[np.bool_]:
    ny, nx = shape
    return (x > _EDGE) & (x < nx - 1 - _EDGE) & (y > _EDGE) & (y < ny - 1 - _EDGE)


def _candidates(kind: str, n: int, shape: tuple[int, ...], galaxies: F64, stars: F64, rng: Rng) -> Table:
    """Places for fakes of one kind, more than are needed, in an order of chance."""
    ny, nx = shape
    table = empty_fakes(n)
    table["kind"] = kind
    table["x"], table["y"] = rng.uniform(_EDGE, nx - 1 - _EDGE, n), rng.uniform(_EDGE, ny - 1 - _EDGE, n)
    hosts = {NUCLEUS: galaxies, HOST: galaxies, BRIGHT: stars}.get(kind)
    if kind == STREAK:
        table["length"], table["angle"] = 5.0 * 12.0 ** rng.random(n), rng.uniform(0, 180, n)
    if hosts is None:
        return table
    if not len(hosts):
        return table[:0]
    # Bright hosts are few and tell most: every second place is taken from the brighter tenth.
    first = rng.integers(0, max(len(hosts) // 10, 1), n)
    chosen = hosts[np.where(rng.random(n) < 0.5, first, rng.integers(0, len(hosts), n))]
    away = {NUCLEUS: np.zeros(n), HOST: rng.uniform(1.5, 6.0, n), BRIGHT: rng.uniform(6.0, 25.0, n)}[kind]
    angle = rng.uniform(0, 2 * np.pi, n)
    table["x"], table["y"] = chosen[:, 0] + away * np.cos(angle), chosen[:, 1] + away * np.sin(angle)
    table["host_mag"], table["host_px"] = chosen[:, 2], away
    return table[_inside(table["x"], table["y"], (ny, nx))]


def _with_light(table: Table, science: ScienceImage, depth: DepthMap, box: Box, rng: Rng) -> Table:
    """Magnitudes about the local limit; without one there (a masked region) about the deepest of the piece."""
    limit = depth.at(table["x"] + box.x0, table["y"] + box.y0)
    known = depth.limit[np.isfinite(depth.limit)]
    limit = np.where(np.isfinite(limit), limit, np.median(known) if len(known) else science.maglim)
    near = rng.random(len(table)) < _FAINT_SHARE
    offset = np.where(near, rng.uniform(*_NEAR, len(table)), rng.uniform(*_FAR, len(table)))
    # A trail's light lies on more noise: as much as the area it covers exceeds a point's.
    spread = 1.25 * np.log10(1.0 + table["length"] / (1.5 * science.seeing)) + 0.5 * (table["length"] > 0)
    table["limit"], table["mag"] = limit, limit + offset - spread
    table["flux"] = 10 ** (-0.4 * (table["mag"] - science.zeropoint.magzp))
    return table
