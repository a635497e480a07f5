"""One simulated exposure measured by the project's own science, beside the truth: what the rows of a table come from.

``measure`` is the unit of work of ``ops.bench.measurement``: raw packet, ``make_science``, truth, and the peers that
are asked for, all on the same calibrated pixels. What it returns is small enough to travel between processes.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ops.bench.fields import CCD, QID
from stream.archive import ProductStore, StoreInputs
from stream.astrometry import position_sigma, sky_of
from stream.calibrate import calibrate
from stream.core.camera import FULL
from stream.core.errors import Permanent
from stream.core.flags import BAD_BITS, Mask
from stream.core.identity import rcid_of
from stream.core.psf import PsfModel
from stream.core.records import Astrometry, CalibratedImage, RawQuadrant, ScienceImage, Table, ZeroPoint
from stream.ingest import read_packet, read_quadrant
from stream.pipeline import ScienceSettings, Stopwatch, footprint_cone, make_science
from stream.simulate.optics import PsfField, wcs_of

F64 = NDArray[np.float64]
BOOL = NDArray[np.bool_]
INT = NDArray[np.intp]
POINTS = ("star", "variable", "transient")
# Smooth additive light is in the sky; what lies in it is measured.
HARMFUL = int(BAD_BITS) & ~int(Mask.HALO | Mask.CROSSTALK | Mask.GHOST)
SAME_PLACE, SAME_MAG = 0.5, 0.75  # a match: within so many FWHM, and so many mag
PHASES = ((-0.25, 0.25, -0.25, 0.25), (-0.25, -0.25, 0.25, 0.25))  # sub-pixel places x and y at which PSFs are fitted
TRUTH_COLUMNS = ["truth_id", "kind", "exposure", "rcid", "x", "y", "ra", "dec", "mag", "colour", "flux"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What one program found: places (px, first is 0), fluxes (DN) and errors, what it may be trusted with."""

    name: str
    x: F64
    y: F64
    flux: F64
    sigma: F64
    good: BOOL  # not on a defect
    seconds: float = float("nan")  # CPU
    # Sky places minus true ones (arcsec, east and north) at the true pixel places of the point sources, if it knows.
    sky_error: tuple[F64, F64] | None = None
    note: str = ""
    # Of the image only the square of ``half`` px to each side of its middle was measured.
    half: float = float("inf")

    def covers(self, x: F64, y: F64) -> BOOL:
        """Which places lie in the part that it measured."""
        return np.asarray(from_middle(x, y) <= self.half)


@dataclass(slots=True)
class Frame:
    """One exposure. ``truth`` are the sources that shine on it, point sources first (``n_points``), columns as in the
    truth tables; ``clean`` of them lie on no defect; ``snr`` is the true one of a point source."""

    name: str
    field_name: str
    seeing: float
    conditions: dict[str, Any]
    truth: dict[str, F64]
    n_points: int
    clean: BOOL
    snr: F64
    catalogues: dict[str, Catalogue] = field(default_factory=dict)
    sources: Table | None = None
    zeropoint: ZeroPoint | None = None
    ps1: Table | None = None
    astrometry: Astrometry | None = None
    psf: PsfModel | None = None
    sky_sigma: float = float("nan")
    gain: float = float("nan")
    maglim: float = float("nan")
    bound: F64 = field(default_factory=lambda: np.zeros(0))  # px, Cramer-Rao bound of x of the point sources
    # Stated errors of the mapping (arcsec, east and north) at the point sources' true pixel places.
    stated: tuple[F64, F64] | None = None
    # Where the PSF fit sees the point sources minus where the centroid of their light is, px along x and y.
    seen_off: tuple[F64, F64] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""


@lru_cache(maxsize=3)
def _truth(folder: Path, rcid: int) -> tuple[Any, dict[str, dict[str, Any]]]:
    table = pq.read_table(folder / "truth" / "sources.parquet", columns=TRUTH_COLUMNS)
    rows = pq.read_table(folder / "truth" / "quadrants.parquet").to_pylist()
    return table.filter(np.asarray(table["rcid"]) == rcid), {
        row["exposure"]: row for row in rows if row["rcid"] == rcid
    }


@lru_cache(maxsize=3)
def _inputs(folder: Path) -> StoreInputs:
    return StoreInputs(ProductStore(str(folder / "store")))


def truth_of(folder: Path, exposure: str, rcid: int) -> tuple[dict[str, F64], int, dict[str, Any]]:
    """Sources of an exposure, points first, how many points, and its conditions."""
    table, quadrants = _truth(folder, rcid)
    rows = table.filter(np.asarray(table["exposure"]) == exposure)
    kind = np.asarray(rows["kind"])
    point = np.isin(kind, POINTS)
    order = np.concatenate([np.flatnonzero(point), np.flatnonzero(kind == "galaxy")])
    columns = {name: np.asarray(rows[name])[order] for name in TRUTH_COLUMNS if name not in ("kind", "exposure")}
    return columns, int(point.sum()), quadrants[exposure]


def raw_quadrant(path: Path, qid: int = QID) -> RawQuadrant:
    """A quadrant out of a packet; by default that of ``ops.bench.fields``."""
    packet = read_packet(path, FULL)
    return read_quadrant(next(q.payload for q in packet.quadrants if q.quadrant.qid == qid), FULL)


def science_of(folder: Path, path: Path, qid: int = QID) -> tuple[ScienceImage, CalibratedImage, Stopwatch]:
    """An exposure through the project's own science, with its times."""
    raw, inputs, watch = raw_quadrant(path, qid), _inputs(folder), Stopwatch()
    frames = inputs.calibration(raw.quadrant)
    image = calibrate(raw, frames)
    return make_science(image, inputs, ScienceSettings(), watch, frames.ghosts), image, watch


Peer = Callable[[ScienceImage, Frame, Path, Table], Catalogue]


@dataclass(frozen=True, slots=True)
class Unit:
    """One exposure to measure: folder of the field, packet, quadrant, peers that measure it too. What peers found is
    kept in ``cache`` and taken from there (delete it when calibration or masks have changed)."""

    folder: Path
    path: Path
    peers: tuple[Peer, ...] = ()
    cache: Path | None = None
    qid: int = QID


def measure(unit: Unit) -> Frame:
    """Everything about one exposure."""
    folder, path, qid = unit.folder, unit.path, unit.qid
    name = path.name.removesuffix(".fits.fz")
    truth, n_points, conditions = truth_of(folder, name, rcid_of(CCD, qid))
    frame = Frame(name, folder.name, conditions["seeing"], conditions, truth, n_points, np.zeros(0, bool), np.zeros(0))
    try:
        science, _, watch = science_of(folder, path, qid)
    except Permanent as error:
        frame.failure = f"{error.stage}: {error}"
        return frame
    cone = footprint_cone(science.astrometry, science.data.shape)
    inputs = _inputs(folder)
    frame.sources, frame.zeropoint, frame.ps1 = science.sources, science.zeropoint, inputs.ps1(*cone)
    frame.astrometry, frame.psf, frame.sky_sigma = science.astrometry, science.psf, science.background.sigma
    frame.gain, frame.maglim, frame.seconds = science.gain, science.maglim, dict(watch.seconds)
    _judge_truth(frame, science)
    frame.catalogues["ours"] = _ours(frame, science)
    frame.stated = position_sigma(science.astrometry, truth["x"][:n_points], truth["y"][:n_points])
    true_psf = PsfField(science.data.shape, **{k: tuple(v) for k, v in json.loads(conditions["psf"]).items()})
    frame.seen_off = centre_offset(science.psf, true_psf, truth["x"][:n_points], truth["y"][:n_points])
    for peer in unit.peers:
        kept = unit.cache / folder.name / f"{name}-{peer.__name__}.pickle" if unit.cache else None
        if kept and kept.exists():
            found = pickle.loads(kept.read_bytes())
        else:
            found = peer(science, frame, path, inputs.gaia(*cone))
        if kept and not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(pickle.dumps(found))
        frame.catalogues[found.name] = found
    return frame


def from_middle(x: F64, y: F64) -> F64:
    """How far places are from the middle of a quadrant along its axes, the larger of both, px."""
    return np.maximum(np.abs(x - (FULL.nx - 1) / 2), np.abs(y - (FULL.ny - 1) / 2))


def _judge_truth(frame: Frame, science: ScienceImage) -> None:
    """Which true sources lie on defects, their true S/N, and how well a place can be known at best."""
    ny, nx = science.data.shape
    x, y, flux = frame.truth["x"], frame.truth["y"], frame.truth["flux"]
    frame.clean = clean_places(science, x, y) & (flux > 0)
    area = np.median([noise_area_at(science.psf, px, py) for px in (nx / 4, 3 * nx / 4) for py in (ny / 4, 3 * ny / 4)])
    frame.snr = flux / np.sqrt(area * science.background.sigma**2 + np.maximum(flux, 0) / science.gain)
    frame.bound = np.full(len(x), np.nan)
    chosen = np.flatnonzero(frame.clean[: frame.n_points] & (frame.snr[: frame.n_points] > 5))
    frame.bound[chosen] = place_bound(science, x[chosen], y[chosen], flux[chosen])


def noise_area_at(psf: PsfModel, x: float, y: float) -> float:
    """Pixels whose sky noise a PSF-weighted flux collects."""
    return float(1 / (psf.stamp(x, y).astype(float) ** 2).sum())


def centre_offset(model: PsfModel, true: PsfField, x: F64, y: F64, nodes: int = 7, size: int = 15) -> tuple[F64, F64]:
    """Where a fit of ``model`` sees stars of the true PSF minus their true places (px, along x and y), without noise.

    The centre of a lopsided PSF is a convention: the truth's is the centroid, that of the model another. The offset is
    smooth: fits (all pixels alike, four sub-pixel phases) on a grid of places, and a quadratic through them.
    """
    ny, nx = model.shape
    grid = [np.linspace(size, n - 1 - size, nodes) for n in (nx, ny)]
    gx, gy = (np.rint(g.ravel()) for g in np.meshgrid(*grid))
    px, py = (np.concatenate([g + phase for phase in phases]) for g, phases in ((gx, PHASES[0]), (gy, PHASES[1])))
    light = true.stamps(px, py, size).reshape(len(px), -1, 1).astype(float)
    off, step = np.zeros((2, len(px))), 0.02
    for _ in range(4):
        at, right, left, up, down = (
            # The nearest pixel stays the star's own, whatever the step: phases are far from its edges.
            model.stamps(px + off[0] + dx, py + off[1] + dy, size).reshape(len(px), -1).astype(float)
            for dx, dy in ((0, 0), (step, 0), (-step, 0), (0, step), (0, -step))
        )
        design = np.stack([at, (right - left) / (2 * step), (up - down) / (2 * step)], axis=-1)
        across = design.transpose(0, 2, 1)
        flux, *moved = np.linalg.solve(across @ design, across @ light)[:, :, 0].T
        off += np.stack(moved) / flux
    coefficients = np.linalg.lstsq(_quadratic(px, py, nx, ny), off.T, rcond=None)[0]
    out = _quadratic(x, y, nx, ny) @ coefficients
    return out[:, 0], out[:, 1]


def _quadratic(x: F64, y: F64, nx: int, ny: int) -> F64:
    u, v = 2 * x / nx - 1, 2 * y / ny - 1
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)


def place_bound(science: ScienceImage, x: F64, y: F64, flux: F64) -> F64:
    """Cramer-Rao bound (px) of the x of point sources: 1 / sqrt(sum (F dP/dx)^2 / variance)."""
    bound = np.empty(len(x))
    step = 0.02
    for start in range(0, len(x), 2000):
        part = slice(start, start + 2000)
        # Around the star's own nearest pixel, so that both stamps share their pixels.
        cx, cy = np.rint(x[part]), np.rint(y[part])
        inner = np.clip(x[part] - cx, -0.47, 0.47) + cx
        left, right = (science.psf.stamps(inner + s, y[part], 15).astype(float) for s in (-step, step))
        model = (left + right) / 2 * flux[part, None, None]
        slope = (right - left) / (2 * step) * flux[part, None, None]
        rms = science.background.rms[cy.astype(int).clip(0), cx.astype(int).clip(0)].astype(float)[:, None, None]
        bound[part] = 1 / np.sqrt((slope**2 / (rms**2 + np.maximum(model, 0) / science.gain)).sum(axis=(1, 2)))
    return bound


def clean_places(science: ScienceImage, x: F64, y: F64) -> BOOL:
    """Which places have no defect within 2 px and lie 12 px from the edge at least."""
    ny, nx = science.data.shape
    bad = (science.mask & np.uint16(HARMFUL)) != 0
    inside = (x > 12) & (x < nx - 13) & (y > 12) & (y < ny - 13)
    ix, iy = (np.rint(np.where(inside, v, 20)).astype(int) for v in (x, y))
    hit = np.zeros(len(x), bool)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            hit |= bad[iy + dy, ix + dx]
    return np.asarray(inside & ~hit)


def sky_errors(frame: Frame, ra: F64, dec: F64) -> tuple[F64, F64]:
    """Sky places (deg) of the point sources minus their true ones, arcsec to the east and north."""
    true_ra, true_dec = (frame.truth[k][: frame.n_points] for k in ("ra", "dec"))
    return (ra - true_ra) * np.cos(np.radians(true_dec)) * 3600, (dec - true_dec) * 3600


def _ours(frame: Frame, science: ScienceImage) -> Catalogue:
    s = science.sources
    x, y = (frame.truth[k][: frame.n_points] for k in ("x", "y"))
    ra, dec = sky_of(science.astrometry, x, y)
    good = clean_places(science, s["x"], s["y"]) & np.isfinite(s["flux"]) & (s["sigflux"] > 0)
    seconds = sum(frame.seconds.get(step, 0.0) for step in ("background", "detect", "psf", "photometry"))
    return Catalogue("ours", s["x"], s["y"], s["flux"], s["sigflux"], good, seconds, sky_errors(frame, ra, dec))


def wcs_error(frame: Frame, n: int = 33) -> tuple[F64, F64]:
    """The solution's sky places minus those of the true WCS (without air) on a grid of the quadrant, arcsec."""
    assert frame.astrometry is not None
    wcs = wcs_of(json.loads(frame.conditions["wcs"]))
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, FULL.nx - 1, n), np.linspace(0, FULL.ny - 1, n)))
    ra, dec = sky_of(frame.astrometry, x, y)
    true_x, true_y = wcs.to_pixel(ra, dec)
    return (true_x - x) * FULL.pixel_scale, (true_y - y) * FULL.pixel_scale


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of true sources and a catalogue's rows that are each other's nearest and alike in brightness."""

    truth: INT
    row: INT


def match(frame: Frame, catalogue: Catalogue) -> Matches:
    """True sources (points and galaxies) and what was found: within half a FWHM, mutual, alike within 0.75 mag."""
    t = frame.truth
    shining = np.flatnonzero((t["flux"] > 0) & catalogue.covers(t["x"], t["y"]))
    rows = np.flatnonzero(np.isfinite(catalogue.x) & np.isfinite(catalogue.y) & (catalogue.flux > 0))
    if not len(shining) or not len(rows):
        return Matches(shining[:0], rows[:0])
    true_tree = cKDTree(np.column_stack([t["x"][shining], t["y"][shining]]))
    found_tree = cKDTree(np.column_stack([catalogue.x[rows], catalogue.y[rows]]))
    distance, nearest = found_tree.query(true_tree.data, distance_upper_bound=SAME_PLACE * max(frame.seeing, 2.0))
    _, back = true_tree.query(found_tree.data)
    some = np.isfinite(distance)
    some[some] = back[nearest[some]] == np.flatnonzero(some)
    i, j = shining[some], rows[nearest[some]]
    alike = np.abs(2.5 * np.log10(catalogue.flux[j] / t["flux"][i])) < SAME_MAG
    return Matches(i[alike], j[alike])


def is_real(frame: Frame, catalogue: Catalogue) -> BOOL:
    """Which rows of a catalogue stand for light that is there: a true source within half a FWHM (a galaxy within one)
    with a third of the flux at least."""
    t, reach = frame.truth, max(frame.seeing, 2.0)
    real = np.zeros(len(catalogue.x), bool)
    rows = np.flatnonzero(np.isfinite(catalogue.x) & np.isfinite(catalogue.y))
    if not len(rows):
        return real
    tree = cKDTree(np.column_stack([t["x"], t["y"]]))
    near = tree.query_ball_point(np.column_stack([catalogue.x[rows], catalogue.y[rows]]), reach)
    for row, neighbours in zip(rows, near, strict=True):
        k = np.asarray(neighbours, int)
        close = np.hypot(t["x"][k] - catalogue.x[row], t["y"][k] - catalogue.y[row])
        allowed = np.where(k < frame.n_points, SAME_PLACE, 1.0) * reach
        real[row] = bool(t["flux"][k[close <= allowed]].sum() > catalogue.flux[row] / 3)
    return real


def isolated(frame: Frame, share: float = 0.02) -> BOOL:
    """Which point sources have no neighbour of ``share`` of their flux within 4 FWHM."""
    t, n = frame.truth, frame.n_points
    tree = cKDTree(np.column_stack([t["x"], t["y"]]))
    near = tree.query_ball_point(np.column_stack([t["x"][:n], t["y"][:n]]), 4 * frame.seeing)
    return np.array([t["flux"][k].sum() < (1 + share) * t["flux"][i] for i, k in enumerate(near)])


def spread(values: F64) -> float:
    """1.48 times the median absolute deviation from the median."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")
