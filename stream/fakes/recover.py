"""Fakes through the very code of the stream: into a copy of a piece of a quadrant, subtracted, searched, compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.core.depth import DepthMap
from stream.core.errors import Permanent
from stream.core.flags import UNUSABLE_BITS
from stream.core.records import Candidate, Difference, Reference, ScienceImage, Streak, Table
from stream.extract import ExtractSettings, extract, find_streaks
from stream.extract.psffit import PsfGrid, fit_flux
from stream.extract.stamps import gather, gather_at
from stream.fakes.crop import crop_reference, crop_science
from stream.fakes.inject import inject
from stream.fakes.plan import MIN_SIDE, FakeSettings, choose_box, plan_fakes
from stream.fakes.table import OTHER, STREAK, empty_fakes
from stream.subtract import subtract

F64 = NDArray[np.float64]

MATCH_RADIUS = 2.0  # px between a fake and its candidate: a fifth of it at S/N 5, room for blends
_FIT_HALF = 8  # px: holds the PSF's weight at any seeing
_EDGE = 30  # px of a piece's border whose other candidates are not counted


def run_fakes(
    science: ScienceImage,
    reference: Reference,
    depth: DepthMap,
    ps1: Table,
    extraction: ExtractSettings,
    settings: FakeSettings,
) -> Table | None:
    """Inject, subtract, search and compare on one piece of a quadrant.

    Returns
    -------
    Table or None
        ``FAKE_DTYPE`` in px of the whole quadrant: the fakes, then the candidates there that are none (kind ``other``).
        None where the piece cannot be subtracted (no overlap with the reference, no usable pixel) or the image is too
        small for one: what the quadrant's own record says holds for its fakes too.
    """
    pid = science.quadrant.pid
    box = choose_box(pid, science.data.shape, settings)
    if min(box.shape) < MIN_SIDE:
        return None
    piece = crop_science(science, box)
    part = crop_reference(reference, piece)
    if part is None:
        return None
    fakes = plan_fakes(piece, depth, box, ps1, pid, settings)
    faked = inject(piece, fakes, pid % 2**63)
    try:
        difference = subtract(faked, part)
        candidates = extract(faked, part, difference, extraction)
        streaks = find_streaks(faked, difference)
    except Permanent:
        return None
    judged = judge(fakes, faked, difference, candidates, streaks)
    others = other_candidates(fakes, faked, candidates)
    table = np.concatenate([judged, others])
    table["x"] += box.x0
    table["y"] += box.y0
    ny, nx = faked.data.shape
    table["area"] = (ny - 2 * _EDGE) * (nx - 2 * _EDGE)
    return table


def judge(
    fakes: Table,
    science: ScienceImage,
    difference: Difference,
    candidates: Sequence[Candidate],
    streaks: Sequence[Streak],
) -> Table:
    """What became of each fake; ``science`` is the image with the fakes in it."""
    out = fakes.copy()
    if not len(out):
        return out
    out["snr"] = fakes["flux"] / true_errors(difference, fakes["x"], fakes["y"])
    ix, iy = np.rint(fakes["x"]).astype(int), np.rint(fakes["y"]).astype(int)
    out["masked"] = (gather_at(difference.mask, ix, iy, 0) & np.uint16(UNUSABLE_BITS)) != 0
    places = _places(candidates)
    for k, fake in enumerate(fakes):
        if fake["kind"] == STREAK:
            found = _streak_at(fake, science, streaks)
            if found is not None:
                out["detected"][k] = out["sent"][k] = out["positive"][k] = True
                out["fit_flux"][k], out["fit_err"][k] = found.flux, found.sigflux
            continue
        near = np.flatnonzero(np.hypot(places[:, 0] - fake["x"], places[:, 1] - fake["y"]) <= MATCH_RADIUS)
        near = near[[candidates[i].fields["isdiffpos"] == "t" for i in near.tolist()]]
        if not len(near):
            continue
        best = candidates[max(near.tolist(), key=lambda i: candidates[i].fields["scorr"])]
        _take(out, k, best)
    return out


def true_errors(difference: Difference, x: F64, y: F64) -> F64:
    """1-sigma error (DN) of a PSF fit at places: what a source there can be measured to; NaN where nothing can."""
    ix, iy = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    model = PsfGrid(difference.psf, difference.data.shape).select(x, y).render(x - ix, y - iy, 2 * _FIT_HALF + 1)
    variance = gather(difference.sigma, ix, iy, _FIT_HALF) ** 2
    good = np.isfinite(variance)
    _, error, weight = fit_flux(np.zeros_like(variance), np.where(good, variance, 0.0).astype(np.float32), good, model)
    return np.where(weight > 0.5, error, np.nan)


def _places(candidates: Sequence[Candidate]) -> F64:
    """Pixel places (n, 2), first is 0."""
    return np.array([(c.fields["xpos"] - 1, c.fields["ypos"] - 1) for c in candidates], float).reshape(-1, 2)


def _take(table: Table, k: int, candidate: Candidate) -> None:
    extra = candidate.extra
    table["detected"][k], table["sent"][k] = True, candidate.rejected is None
    table["rejected"][k], table["positive"][k] = candidate.rejected or "", candidate.fields["isdiffpos"] == "t"
    if extra["flux"] is not None and extra["fluxerr"] is not None:
        table["fit_flux"][k], table["fit_err"][k] = extra["flux"], extra["fluxerr"]


def _streak_at(fake: Table, science: ScienceImage, streaks: Sequence[Streak]) -> Streak | None:
    """The streak whose middle lies on a faked one, the brightest if several."""
    for streak in sorted(streaks, key=lambda s: -s.snr):
        x, y = science.astrometry.wcs.all_world2pix([streak.ra1, streak.ra2], [streak.dec1, streak.dec2], 0, quiet=True)
        if np.hypot(x.mean() - fake["x"], y.mean() - fake["y"]) < MATCH_RADIUS + 0.25 * float(fake["length"]):
            return streak
    return None


def other_candidates(fakes: Table, science: ScienceImage, candidates: Sequence[Candidate]) -> Table:
    """The candidates that no fake explains, away from the piece's border: what is there, real or not."""
    places = _places(candidates)
    ny, nx = science.data.shape
    inner = (places >= _EDGE).all(axis=1) & (places[:, 0] < nx - _EDGE) & (places[:, 1] < ny - _EDGE)
    chosen = [i for i in np.flatnonzero(inner).tolist() if not _explained(fakes, places[i])]
    table = empty_fakes(len(chosen))
    table["kind"] = OTHER
    for k, i in enumerate(chosen):
        candidate = candidates[i]
        table["x"][k], table["y"][k] = places[i]
        table["mag"][k] = np.nan if candidate.fields["magpsf"] is None else candidate.fields["magpsf"]
        _take(table, k, candidate)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["snr"] = np.abs(table["fit_flux"]) / table["fit_err"]
    return table


def _explained(fakes: Table, place: F64) -> bool:
    """Whether a candidate lies on a fake, beside it within its PSF, or along its trail."""
    if not len(fakes):
        return False
    away = np.hypot(fakes["x"] - place[0], fakes["y"] - place[1])
    return bool((away <= 0.5 * fakes["length"] + 6.0).any())
