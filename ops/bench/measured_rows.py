"""The rows of the measurement's table out of frames that were measured: one figure a program and field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.bench.measured import Frame, Matches, is_real, isolated, match, spread, wcs_error
from ops.bench.rows import Row
from stream.core.camera import FULL
from stream.core.errors import PhotometryError
from stream.core.records import SOURCE_DTYPE, Table, ZeroPoint
from stream.photometry import fit_zeropoint
from stream.photometry.zeropoint import NAMES
from stream.simulate.catalogs import PS1_IDENTIFIERS

F64 = NDArray[np.float64]
INT = NDArray[np.intp]
Figures = dict[str, float]
OURS = "ours"
MAG_BINS = np.arange(12.0, 22.51, 0.25)
SNR_BINS = np.array([3.0, 3.5, 4, 4.5, 5.5, 6.5, 8, 10, 15, 25, 50, 100])
AT_FIVE = 3  # the bin 4.5 to 5.5 of ``SNR_BINS``
BRIGHT, GOOD, VERY_BRIGHT = 100.0, 10.0, 1000.0
MAX_BRIGHT_ERROR = 0.004  # mag: photon error of the stars whose repeatability is asked for
CORNER = 400.0  # px
DRAWN = 4  # catalogues an exposure
BUDGET = {"astrometry": 0.05, "background and detection": 0.25, "psf": 0.08, "photometry": 0.15, "zeropoint": 0.02}
STEPS = {"background and detection": ("background", "detect")}


@dataclass(slots=True)
class Line:
    """A row of the table, and what other programs reach."""

    field_name: str
    row: Row
    peers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """A catalogue's pairs of one frame and the numbers that the figures are made of (point sources on clean places)."""

    frame: Frame
    name: str
    pairs: Matches  # of all true sources
    truth: INT  # of the clean, good point sources
    row: INT
    ratio: F64
    pull: F64
    east: F64  # arcsec; NaN where no sky place is known
    north: F64
    centring: F64  # px from the true place, in x
    snr: F64


def samples(frames: Sequence[Frame], name: str) -> list[Sample]:
    """What a program found on the frames that it measured."""
    return [sample(frame, name) for frame in frames if not frame.failure and name in frame.catalogues]


def sample(frame: Frame, name: str) -> Sample:
    """One frame's."""
    c, t = frame.catalogues[name], frame.truth
    pairs = match(frame, c)
    use = (pairs.truth < frame.n_points) & frame.clean[pairs.truth] & c.good[pairs.row]
    i, j = pairs.truth[use], pairs.row[use]
    dx, dy = c.x[j] - t["x"][i], c.y[j] - t["y"][i]
    east, north = np.full((2, len(i)), np.nan)
    if name == OURS and frame.sources is not None:  # the catalogue's own places, its stars' colours in them
        ra, dec = frame.sources["ra"][j], frame.sources["dec"][j]
        east, north = (ra - t["ra"][i]) * np.cos(np.radians(dec)) * 3600, (dec - t["dec"][i]) * 3600
    elif c.sky_error is not None:  # x grows to the west, y to the south
        east = c.sky_error[0][i] - dx * FULL.pixel_scale
        north = c.sky_error[1][i] - dy * FULL.pixel_scale
    flux = t["flux"][i]
    # The response's slopes are the zero-point map's: what a flux says of a star is said through it.
    factor = map_factor(frame.zeropoint, t["x"][i], t["y"][i])
    pull = (c.flux[j] * factor - flux) / (c.sigma[j] * factor)
    return Sample(frame, name, pairs, i, j, c.flux[j] / flux, pull, east, north, dx, frame.snr[i])


def pooled(parts: Sequence[Sample], value: Callable[[Sample], F64], low: float, high: float = np.inf) -> F64:
    """A number of the stars of all frames with true S/N in a range."""
    values = [value(s)[(s.snr > low) & (s.snr <= high)] for s in parts]
    return np.concatenate(values) if values else np.zeros(0)


def position_figures(parts: Sequence[Sample]) -> Figures:
    """Errors of sky places (mas, 1.48 x median absolute, mean of the axes) and of the mapping itself."""
    out: Figures = {}
    for name, low in (("bright", BRIGHT), ("good", GOOD)):
        errors = [pooled(parts, lambda s, a=axis: getattr(s, a), low) for axis in ("east", "north")]  # type: ignore[misc]
        out[name] = 1000 * float(np.mean([1.4826 * np.median(np.abs(e)) for e in errors])) if len(errors[0]) else np.nan
    ratio = pooled(parts, lambda s: s.centring / s.frame.bound[s.truth], GOOD, BRIGHT)
    out["centring"] = spread(ratio[np.isfinite(ratio)])
    rms, corners = [], []
    for s in parts:
        errors_at = s.frame.catalogues[s.name].sky_error
        if errors_at is None:
            continue
        x, y = (s.frame.truth[k][: s.frame.n_points] for k in ("x", "y"))
        on = (x > -0.5) & (x < FULL.nx - 0.5) & (y > -0.5) & (y < FULL.ny - 0.5)
        both = np.stack(errors_at)
        rms.append(float(np.sqrt(np.mean(both[:, on] ** 2))))
        for cx in (0, FULL.nx):
            for cy in (0, FULL.ny):
                there = on & (np.abs(x - cx) < CORNER) & (np.abs(y - cy) < CORNER)
                if there.sum() >= 3:
                    corners.append(float(np.hypot(*np.median(both[:, there], axis=1))))
    out["wcs"], out["corner"] = (1000 * float(f(v)) if v else np.nan for f, v in ((np.median, rms), (np.max, corners)))
    return out


def stated_pulls(frames: Sequence[Frame]) -> tuple[float, float]:
    """Errors of the mapping at true stars over their stated errors: robust sigma about zero of an exposure, and r.m.s.
    without those beyond 5; medians of exposures.

    The map is of the places that PSF fits give, so it is asked there where a fit without noise sees the star. Where
    refraction is most of the error its distribution is that of the stars' colours, flatter than a Gaussian: the robust
    sigma is then larger than the r.m.s., which is what is stated."""
    values = []
    for frame in frames:
        errors = frame.catalogues[OURS].sky_error if not frame.failure else None
        if errors is None or frame.stated is None or frame.seen_off is None:
            continue
        x, y = (frame.truth[k][: frame.n_points] for k in ("x", "y"))
        on = (x > -0.5) & (x < FULL.nx - 0.5) & (y > -0.5) & (y < FULL.ny - 0.5)
        # x grows to the west, y to the south.
        pulls = (np.stack(errors) - np.stack(frame.seen_off) * FULL.pixel_scale)[:, on] / np.stack(frame.stated)[:, on]
        some = pulls[np.abs(pulls) < 5]
        values.append((1.4826 * float(np.nanmedian(np.abs(pulls))), float(np.sqrt(np.mean(some**2)))))
    if not values:
        return float("nan"), float("nan")
    robust, rms = np.median(values, axis=0).tolist()
    return robust, rms


def flux_figures(parts: Sequence[Sample]) -> Figures:
    """Pulls at S/N 5 to 100 and the bias of bright isolated stars: overall, by phase, by place, by exposure."""
    pulls = pooled(parts, lambda s: s.pull, 5, 100)
    # Below S/N 10 what is found is found because its noise is positive; above it nearly all true stars are found.
    unbiased = pooled(parts, lambda s: s.pull, GOOD, BRIGHT)
    alone = {id(s.frame): isolated(s.frame) for s in parts}
    single = pooled(parts, lambda s: np.where(alone[id(s.frame)][s.truth], s.pull, np.nan), BRIGHT, VERY_BRIGHT)
    ratio, phase, place, of = [], [], [], []
    for k, s in enumerate(parts):
        use = (s.snr > BRIGHT) & alone[id(s.frame)][s.truth]
        x, y = (s.frame.truth[a][s.truth[use]] for a in ("x", "y"))
        flat = map_factor(s.frame.zeropoint, x, y)
        ratio.append(s.ratio[use] * flat)
        phase.append(4 * np.floor((y % 1) * 4).astype(int) + np.floor((x % 1) * 4).astype(int))
        place.append(4 * (y * 4 // FULL.ny).astype(int).clip(0, 3) + (x * 4 // FULL.nx).astype(int).clip(0, 3))
        of.append(np.full(int(use.sum()), k))
    values = np.concatenate(ratio) if ratio else np.zeros(0)
    groups = {"phase": phase, "place": place, "exposure": of}
    bias = 100 * (float(np.median(values)) - 1) if len(values) else np.nan
    out = {"pull": spread(pulls), "pull_mean": _mean(pulls), "pull_mean10": _mean(unbiased), "bias": bias,
           "pull_bright": spread(single[np.isfinite(single)]), "n": float(len(values))}  # fmt: skip
    for name, label in groups.items():
        labels = np.concatenate(label) if label else np.zeros(0, int)
        medians = [np.median(values[labels == k]) - 1 for k in np.unique(labels) if (labels == k).sum() >= 20]
        out[name] = 100 * float(max(medians, key=abs)) if medians else np.nan
    return out


def _mean(pulls: F64) -> float:
    inside = pulls[np.abs(pulls) < 5]
    return float(inside.mean()) if len(inside) else float("nan")


def map_factor(zeropoint: ZeroPoint | None, x: F64, y: F64) -> F64:
    """What the zero-point map multiplies fluxes with."""
    return np.ones(len(x)) if zeropoint is None else 10 ** (-0.4 * (zeropoint.at(x, y) - zeropoint.magzp))


def found_figures(parts: Sequence[Sample]) -> dict[str, F64]:
    """Completeness by true S/N and magnitude (clean point sources), purity by measured S/N: means over frames."""
    complete, pure, by_mag = [], [], []
    for s in parts:
        frame, c = s.frame, s.frame.catalogues[s.name]
        found = np.zeros(len(frame.snr), bool)
        found[s.pairs.truth] = True
        points = frame.clean & (np.arange(len(frame.snr)) < frame.n_points)
        points &= c.covers(frame.truth["x"], frame.truth["y"])
        complete.append(_shares(frame.snr[points], found[points], SNR_BINS))
        by_mag.append(_shares(frame.truth["mag"][points], found[points], MAG_BINS))
        area = float(np.median(np.maximum((frame.truth["flux"] / frame.snr)[points] ** 2, 0))) / frame.sky_sigma**2
        noise = np.sqrt(area * frame.sky_sigma**2 + np.maximum(c.flux, 0) / frame.gain)
        pure.append(_shares((c.flux / noise)[c.good], is_real(frame, c)[c.good], SNR_BINS))
    return {"completeness": _sum(complete), "purity": _sum(pure), "by_mag": _sum(by_mag)}


def _shares(value: F64, hit: NDArray[np.bool_], bins: F64) -> F64:
    """Hits and trials by bin, (2, n)."""
    return np.stack([np.histogram(value[hit], bins)[0], np.histogram(value, bins)[0]])


def _sum(parts: Sequence[F64]) -> F64:
    total = np.sum(parts, axis=0) if parts else np.zeros((2, 1))
    share: F64 = total[0] / np.where(total[1] > 0, total[1], np.nan)
    return share


def zeropoint_figures(frames: Sequence[Frame]) -> Figures:
    """Zero points against the true ones, mmag, and their pulls.

    Exposures of a field share their calibrators' own errors, so that their pulls are nearly one number: for the pulls
    the catalogue is measured anew, ``DRAWN`` times an exposure.
    """
    errors, pulls, seen = [], [], []
    rng = np.random.default_rng(5)
    for frame in frames:
        zp = frame.zeropoint
        if frame.failure or zp is None:
            continue
        errors.append(zp.magzp - frame.conditions["magzp"])
        drawn = [_refitted(frame, remeasured(frame, rng)) for _ in range(DRAWN)]
        pulls += [(z.magzp - frame.conditions["magzp"]) / z.magzpunc for z in drawn]
        seen.append(zp.magzprms)
    e = np.array(errors)
    if not len(e):
        return dict.fromkeys(("rms", "worst", "pull", "magzprms", "between"), np.nan)
    between = 1000 * float(np.std(e, ddof=1)) if len(e) > 1 else np.nan
    return {"between": between, "rms": 1000 * float(np.sqrt(np.mean(e**2))), "worst": 1000 * float(np.abs(e).max()),
            "pull": float(np.sqrt(np.mean(np.square(pulls)))), "magzprms": 1000 * float(np.median(seen))}  # fmt: skip


def remeasured(frame: Frame, rng: np.random.Generator) -> Table:
    """The catalogue as another survey of the same sky would have it: true magnitudes of the exposure's point sources,
    the listed errors drawn anew."""
    assert frame.ps1 is not None
    out, t, fid = frame.ps1.copy(), frame.truth, int(frame.conditions["fid"])
    ids = t["truth_id"][: frame.n_points]
    order = np.argsort(ids)
    listed = out["objID"] - PS1_IDENTIFIERS
    row = order[np.searchsorted(ids[order], listed).clip(0, len(ids) - 1)]
    known = ids[row] == listed
    band, blue, red, _ = NAMES[fid]
    mag = t["mag"][row]
    other, sign = (red, -1.0) if band == blue else (blue, 1.0)
    for name, true in ((band, mag), (other, mag + sign * t["colour"][row])):
        error = out[f"{name}MeanPSFMagErr"]
        measured = known & (error > 0)
        out[f"{name}MeanPSFMag"][measured] = (true + error * rng.normal(size=len(out)))[measured]
    return out


def _refitted(frame: Frame, ps1: Table) -> ZeroPoint:
    assert frame.sources is not None
    return fit_zeropoint(frame.sources, ps1, int(frame.conditions["fid"]), (FULL.ny, FULL.nx))


def calibrated(parts: Sequence[Sample]) -> tuple[NDArray[np.int64], F64, F64]:
    """Calibrated magnitudes of the same stars in every frame: truth_id (n,), magnitudes minus true ones and photon
    errors (frames, n); stars that are missing in a frame are NaN there."""
    ids = np.unique(np.concatenate([s.frame.truth["truth_id"][s.truth] for s in parts]))
    offset, error = np.full((2, len(parts), len(ids)), np.nan)
    for k, s in enumerate(parts):
        t, c = s.frame.truth, s.frame.catalogues[s.name]
        zp = s.frame.zeropoint if s.name == OURS else _peer_zeropoint(s)
        if zp is None:
            continue
        column = np.searchsorted(ids, t["truth_id"][s.truth])
        mag = zp.at(c.x[s.row], c.y[s.row]) + zp.clrcoeff * t["colour"][s.truth] - 2.5 * np.log10(c.flux[s.row])
        offset[k, column] = mag - t["mag"][s.truth]
        error[k, column] = 1.0857 * c.sigma[s.row] / c.flux[s.row]
    return ids, offset, error


def _peer_zeropoint(s: Sample) -> ZeroPoint | None:
    """A peer's fluxes through our fit, at true sky places."""
    t, c = s.frame.truth, s.frame.catalogues[s.name]
    rows: Table = np.zeros(len(s.row), SOURCE_DTYPE)
    for name, values in {"x": c.x[s.row], "y": c.y[s.row], "flux": c.flux[s.row], "sigflux": c.sigma[s.row],
                         "snr": c.flux[s.row] / c.sigma[s.row], "ra": t["ra"][s.truth],
                         "dec": t["dec"][s.truth]}.items():  # fmt: skip
        rows[name] = values
    assert s.frame.ps1 is not None
    try:
        return fit_zeropoint(rows, s.frame.ps1, int(s.frame.conditions["fid"]), (FULL.ny, FULL.nx))
    except PhotometryError:
        return None


def repeat_figures(parts: Sequence[Sample]) -> Figures:
    """Scatter of bright stars' calibrated magnitudes between exposures, mmag: r.m.s. of a star, median of stars."""
    if len(parts) < 2:
        return {"repeat": np.nan, "offset": np.nan, "stars": 0.0}
    _, offset, error = calibrated(parts)
    with np.errstate(all="ignore"):
        seen = np.isfinite(offset).sum(axis=0)
        bright = (seen >= max(len(parts) - 2, 2)) & (np.nanmedian(error, axis=0) < MAX_BRIGHT_ERROR)
    if not bright.any():
        return {"repeat": np.nan, "offset": np.nan, "stars": 0.0}
    chosen, count = offset[:, bright], seen[bright]
    rms = np.sqrt(np.nanmean((chosen - np.nanmean(chosen, axis=0)) ** 2, axis=0) * count / (count - 1))
    return {"repeat": 1000 * float(np.median(rms)), "offset": 1000 * float(np.nanmedian(chosen)),
            "stars": float(bright.sum())}  # fmt: skip


def lines(field_name: str, frames: Sequence[Frame]) -> list[Line]:
    """All rows of one field."""
    names = list(dict.fromkeys(name for frame in frames for name in frame.catalogues))
    parts = {name: samples(frames, name) for name in names}
    rows: list[Line] = []

    def add(what: str, target: str, values: dict[str, float], shown: str, hold: Callable[[float], bool] | None,
            detail: str = "") -> None:  # fmt: skip
        """Append one row: the value of each program, shown as ``shown``, ours judged by ``hold``."""
        own = values.get(OURS, np.nan)
        ok = bool(hold(own)) if hold and np.isfinite(own) else None
        peers = {name: shown.format(value) for name, value in values.items() if name != OURS and np.isfinite(value)}
        rows.append(
            Line(
                field_name,
                Row(what, target, shown.format(own) if np.isfinite(own) else "not measured", ok, detail),
                peers,
            )
        )

    where = {name: position_figures(p) for name, p in parts.items()}
    flux = {name: flux_figures(p) for name, p in parts.items()}
    found = {name: found_figures(p) for name, p in parts.items()}

    def of(figures: dict[str, Figures], key: str) -> dict[str, float]:
        return {name: f[key] for name, f in figures.items()}

    add("positions, S/N > 100", "15 mas", of(where, "bright"), "{:.1f} mas", lambda v: v <= 15)
    add("positions, S/N > 10", "40 mas", of(where, "good"), "{:.1f} mas", lambda v: v <= 40)
    add("centring over the Cramer-Rao bound", "1.15", of(where, "centring"), "{:.3f}", lambda v: v <= 1.15,
        "S/N 10 to 100, pixel places (the air is in the truth)")  # fmt: skip
    add("sky places over the quadrant, r.m.s.", "15 mas", of(where, "wcs"), "{:.1f} mas", lambda v: v <= 15,
        "at every true star, the air's displacement counted; median exposure")  # fmt: skip
    add("sky places, worst corner", "40 mas", of(where, "corner"), "{:.1f} mas", lambda v: v <= 40,
        "worst of all exposures and corners (400 px)")  # fmt: skip
    pulls, pulls_rms = stated_pulls(frames)
    add("sky places, pulls of the stated errors", "0.9 to 1.1", {OURS: pulls}, "{:.2f}", lambda v: 0.9 <= v <= 1.1,
        f"1.48 x median absolute (r.m.s. {pulls_rms:.2f}), true stars of any colour, both axes; median exposure; asked "
        "where a fit of the PSF model without noise sees the star: the truth is the light's centroid, up to 15 mas "
        "from the model's own centre, which PSF places and the map share")  # fmt: skip
    bare = [np.sqrt(np.nanmean(np.square(wcs_error(f)))) * 1000 for f in frames if f.astrometry is not None]
    add("WCS against the true one without air", "-", {OURS: float(np.median(bare)) if bare else np.nan}, "{:.1f} mas",
        None, "grid over the quadrant; contains the air that the solution follows")  # fmt: skip
    repeat = {name: repeat_figures(p) for name, p in parts.items()}
    n_stars = repeat.get(OURS, {}).get("stars", 0.0)
    add("bright-star repeatability", "10 mmag", of(repeat, "repeat"), "{:.1f} mmag", lambda v: v <= 10,
        f"{n_stars:.0f} stars of photon error < 4 mmag, own zero points and maps")  # fmt: skip
    zp = zeropoint_figures(frames)
    add("zero point against truth, worst", "10 mmag", {OURS: zp["worst"]}, "{:.1f} mmag", lambda v: v <= 10,
        f"r.m.s. {zp['rms']:.1f} mmag, of pulls, the catalogue's errors drawn anew, {zp['pull']:.2f}; "
        f"between exposures, whose calibrators are the same, {zp['between']:.1f} mmag; "
        f"MAGZPRMS {zp['magzprms']:.0f} mmag")  # fmt: skip
    add("flux pulls S/N 5 to 100, robust sigma", "0.95 to 1.10", of(flux, "pull"), "{:.3f}",
        lambda v: 0.95 <= v <= 1.10, "fluxes through the zero-point map")  # fmt: skip
    own = flux.get(OURS, {})
    add("flux pulls S/N 5 to 100, mean", "< 0.1", of(flux, "pull_mean"), "{:+.3f}", lambda v: abs(v) < 0.1,
        f"of what is found; where nearly all true stars are, S/N 10 to 100: "
        f"{own.get('pull_mean10', np.nan):+.3f}")  # fmt: skip
    add("flux pulls S/N 100 to 1000, robust sigma", "-", of(flux, "pull_bright"), "{:.3f}", None,
        "stars without a neighbour of 2 % within 4 FWHM")  # fmt: skip
    add("PSF flux bias", "< 0.5 %", of(flux, "bias"), "{:+.2f} %", lambda v: abs(v) < 0.5,
        f"{own.get('n', 0):.0f} isolated stars, S/N > 100")  # fmt: skip
    for key, what in (("phase", "sub-pixel phase (of 16)"), ("place", "place (of 16)"), ("exposure", "exposure")):
        add(f"PSF flux bias, worst {what}", "< 0.5 %", of(flux, key), "{:+.2f} %", lambda v: abs(v) < 0.5)
    five = {name: 100 * float(f["completeness"][AT_FIVE]) for name, f in found.items()}
    sure = {name: 100 * float(f["purity"][AT_FIVE]) for name, f in found.items()}
    rival = five.get("source-extractor", 0.0), sure.get("source-extractor", 0.0)
    judged = "source-extractor" in five
    add("completeness at S/N 5", "as source-extractor", five, "{:.1f} %", (lambda v: v >= rival[0]) if judged else None)
    add("purity at S/N 5", "as source-extractor", sure, "{:.1f} %", (lambda v: v >= rival[1]) if judged else None)
    if field_name == "dense":
        rows.append(_crowded({name: f["by_mag"] for name, f in found.items()}))
    return rows + time_lines(field_name, frames)


def overall(by_field: dict[str, list[Frame]]) -> list[Line]:
    """Figures of all fields together: the pulls of the zero points."""
    frames = [frame for frames in by_field.values() for frame in frames]
    each = [zeropoint_figures(frames)["pull"] ** 2 for frames in by_field.values()]
    value = float(np.sqrt(np.nanmean(each))) if len(each) else np.nan
    shown = f"{value:.2f}" if np.isfinite(value) else "not measured"
    return [Line("all", Row(
        "zero point, pulls of the stated errors, r.m.s.", "0.7 to 1.3", shown,
        0.7 <= value <= 1.3 if np.isfinite(value) else None,
        f"{len(frames)} exposures of {len(by_field)} fields, fields weighted alike",
    ))]  # fmt: skip


def _crowded(by_mag: dict[str, F64]) -> Line:
    """Completeness where source-extractor finds half."""
    centres = (MAG_BINS[1:] + MAG_BINS[:-1]) / 2
    if "source-extractor" not in by_mag:
        return Line("dense", Row("crowded field", "80 %", "source-extractor not installed", None))
    theirs = by_mag["source-extractor"]
    after = np.flatnonzero((theirs < 0.5) & (centres > 15))
    if not len(after):
        return Line("dense", Row("crowded field", "80 %", "source-extractor finds half everywhere", None))
    k = int(after[0])
    values = {name: 100 * float(share[k]) for name, share in by_mag.items()}
    peers = {name: f"{value:.1f} %" for name, value in values.items() if name != OURS}
    own = values.get(OURS, float("nan"))
    return Line("dense", Row(
        "completeness where source-extractor finds half", "80 %", f"{own:.1f} %", own >= 80, f"at mag {centres[k]:.2f}"
    ), peers)  # fmt: skip


def time_lines(field_name: str, frames: Sequence[Frame]) -> list[Line]:
    """CPU seconds by step: the least over the exposures, which a busy machine disturbs least."""
    runs = [frame.seconds for frame in frames if not frame.failure]
    rows: list[Line] = []
    share = 3.0 if field_name == "dense" else 1.0  # 40,000 sources may take three times the budget
    for step, budget in BUDGET.items():
        values = [sum(run.get(k, 0.0) for k in STEPS.get(step, (step,))) for run in runs]
        if values:
            limit = budget * (share if step == "photometry" else 1.0)
            rows.append(Line(field_name, Row(
                f"time: {step}", f"{limit:g} s", f"{min(values):.3f} s", min(values) <= limit,
                f"median of exposures {np.median(values):.3f} s"
            )))  # fmt: skip
    whole: dict[str, list[float]] = {}
    for frame in frames:
        for name, c in frame.catalogues.items():
            if np.isfinite(c.seconds):
                whole.setdefault(name, []).append(c.seconds)
    if OURS in whole:
        peers = {name: f"{min(v):.2f} s" for name, v in whole.items() if name != OURS}
        rows.append(Line(field_name, Row(
            "time: sky to fluxes", "-", f"{min(whole[OURS]):.2f} s", None, "background, detection, PSF, photometry"
        ), peers))  # fmt: skip
    return rows


def summary(frames: Sequence[Frame]) -> dict[str, Any]:
    """What a field was like."""
    good = [f for f in frames if not f.failure]
    return {
        "exposures": len(frames), "failed": [f"{f.name}: {f.failure}" for f in frames if f.failure],
        "seeing": [round(f.seeing, 2) for f in good], "maglim": [round(f.maglim, 2) for f in good],
        "sources": [len(f.catalogues[OURS].x) for f in good],
    }  # fmt: skip
