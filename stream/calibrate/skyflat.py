"""The low-frequency flat: what the dome's lamp tells wrongly about the sky, learned from the sky and from stars.

A dome flat corrects pixels and dust to a tenth of a per cent, but lamp and screen light the camera otherwise than the
sky does, by about 1 % over a quadrant. The night sky itself is flat (nearly): many exposures of different fields,
flat-fielded, their sources left out, show the same residual pattern, which multiplies the dome flat.

The sky is not quite flat: moonlight, twilight and airglow have gradients, bright stars have halos. An exposure's own
*plane* is taken out before exposures are compared; what is left must agree with the others, or the exposure is left
out, with the reason; so are moonlit ones. The pattern's own plane then is the mean of the exposures' planes, each
without the slope that airglow has at that place of the sky (0.3 % over half a quadrant at airmass 1.15, and always
towards the horizon), as far as it is more than chance: with measured tilt t and error e, it enters as t (1 - e^2 /
t^2). Stars know better: ``with_star_residuals`` takes what their magnitudes say by detector position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import erfa  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from stream.core.camera import FULL, quadrant_centre
from stream.core.cells import cell_centres, cell_means, cell_medians, filled, spread_cells
from stream.core.errors import CalibrationError
from stream.core.flags import BAD_BITS, Mask
from stream.core.instrument import calid_of
from stream.core.records import F32, CalibratedImage, CalibrationFrame, Exposure, Row

F64 = NDArray[np.float64]
CELL = 64  # px
SOURCE_SIGMA = 3.0  # pixels above the local sky by more are sources, with their neighbours
MIN_SKY, MAX_SKY = 20.0, 15_000.0  # DN: below, read noise and bias errors rule; above, it is twilight
MAX_GRADIENT = 0.10  # relative, over half a quadrant: moonlight or cloud that no plane describes to 0.1 %
MAX_MOON = 0.25  # lit share of a moon above the horizon: more makes gradients that all exposures of a night share
SITE_LONGITUDE, SITE_LATITUDE = -116.8597, 33.3573  # deg (ztf-facts 1.3)
LAYER, EXTINCTION = 0.96, 0.17  # airglow: (R / (R + 100 km))^2 nearly; mag of sky light lost per airmass, V to i
MIN_CLEAN = 0.2  # share of a cell's pixels that must be free of sources
MIN_KNOWN = 0.5  # share of cells that must be free of sources and halos
MAX_RESIDUAL = 0.006  # r.m.s. of an exposure about the others' pattern, beyond its noise: halo, cloud, ghost
CLIP = 3.0
MIN_EXPOSURES = 5


@dataclass(frozen=True, slots=True)
class SkySample:
    """The sky of one exposure in cells of 64 px: ``cells`` (rows, columns) relative, its plane taken out, NaN on
    sources; ``tilt`` the plane's relative slope over half a quadrant in x and y, airglow's taken off; ``noise`` of a
    cell, relative."""

    exposure: Exposure
    rcid: int
    shape: tuple[int, int]
    cells: F32
    tilt: tuple[float, float]
    level: float
    noise: float


def sky_sample(image: CalibratedImage) -> SkySample:
    """The sky of an exposure that was calibrated without a low-frequency flat."""
    shape = image.data.shape[0], image.data.shape[1]
    clean = np.where((image.mask & np.uint16(BAD_BITS & ~int(Mask.CROSSTALK))) == 0, image.data, np.float32(np.nan))
    smooth = spread_cells(filled(cell_medians(clean, CELL)), CELL, shape)
    over = clean - smooth
    sigma = 1.4826 * float(np.nanmedian(np.abs(over[::5, ::5])))
    source = ~(np.abs(over) <= SOURCE_SIGMA * sigma)
    for axis in (0, 1):  # their rims stay below the threshold
        for shift in (-2, -1, 1, 2):
            source |= np.roll(source, shift, axis)
    clean[source] = np.nan
    cells = cell_medians(clean, CELL)
    cells[cell_means((~np.isnan(clean)).astype(np.float32), CELL) < MIN_CLEAN] = np.nan
    level = float(np.nanmedian(cells)) if np.isfinite(cells).any() else math.nan
    relative = cells / np.float32(level)
    plane, slopes = _plane(relative, shape)
    glow = airglow_slopes(image.quadrant.exposure, image.quadrant.rcid, shape)
    tilt = slopes[0] - glow[0], slopes[1] - glow[1]
    # A cell's median of some thousand pixels: 1.25 sigma / root n.
    noise = 1.25 * sigma / level / (CELL * math.sqrt(0.5))
    return SkySample(image.quadrant.exposure, image.quadrant.rcid, shape, relative / plane, tilt, level, noise)


def airglow_slopes(exposure: Exposure, rcid: int, shape: tuple[int, int]) -> tuple[float, float]:
    """Relative slope of dark sky over half a quadrant in x and y at the place where an exposure was taken.

    A thin layer at 100 km shines with the length of the path through it (van Rhijn) and is dimmed by the air below.
    Zero where the pointing is not known.
    """
    if not (math.isfinite(exposure.ra) and math.isfinite(exposure.dec)):
        return 0.0, 0.0
    ra, dec = quadrant_centre(exposure.ra, exposure.dec, rcid)
    half_x, half_y = (n / 2 * FULL.pixel_scale / 3600.0 for n in shape[::-1])
    east = half_x / max(math.cos(math.radians(dec)), 0.02)
    # x grows to the west, y to the south.
    x = _airglow(ra - east, dec, exposure.jd_mid) / _airglow(ra + east, dec, exposure.jd_mid)
    y = _airglow(ra, dec - half_y, exposure.jd_mid) / _airglow(ra, dec + half_y, exposure.jd_mid)
    return (x - 1) / 2, (y - 1) / 2


def _airglow(ra: float, dec: float, jd: float) -> float:
    """Brightness of dark sky at a place (deg) over that of the zenith."""
    hour = erfa.era00(jd, 0.0) + math.radians(SITE_LONGITUDE - ra)
    d, site = math.radians(dec), math.radians(SITE_LATITUDE)
    sine = math.sin(site) * math.sin(d) + math.cos(site) * math.cos(d) * math.cos(hour)
    path = 1 / math.sqrt(1 - LAYER * (1 - max(sine, 0.05) ** 2))
    return path * 10 ** (-0.4 * EXTINCTION * (path - 1))


def _grid(shape: tuple[int, int]) -> tuple[F64, F64]:
    """Place of every cell of an image in units of half a quadrant from its middle, x and y."""
    y, x = ((cell_centres(n, CELL) - (n - 1) / 2) / (n / 2) for n in shape)
    u, v = np.meshgrid(x, y)
    return u, v


def _plane(cells: F32, shape: tuple[int, int]) -> tuple[F32, tuple[float, float]]:
    """Plane through the relative cells of an image, clipped, and its slopes."""
    u, v = _grid(shape)
    design = np.stack([np.ones(cells.size), u.ravel(), v.ravel()], axis=1)
    values = cells.ravel().astype(np.float64)
    use = np.isfinite(values)
    solution = np.array([1.0, 0.0, 0.0])
    for _ in range(4):
        if np.count_nonzero(use) < 3:
            break
        solution = np.linalg.lstsq(design[use], values[use], rcond=None)[0]
        off = values - design @ solution
        sigma = 1.4826 * float(np.median(np.abs(off[use])))
        use = np.isfinite(values) & (np.abs(off) <= CLIP * max(sigma, 1e-6))
    plane = (design @ solution).reshape(cells.shape)
    return plane.astype(np.float32), (float(solution[1] / solution[0]), float(solution[2] / solution[0]))


def build_loflat(samples: Sequence[SkySample]) -> CalibrationFrame:
    """The low-frequency flat of one channel and filter from the skies of many exposures.

    Parameters
    ----------
    samples : sequence of SkySample
        Five good ones at least, of one channel and filter; better twenty, of different fields.

    Returns
    -------
    CalibrationFrame
        ``data`` median 1, smooth over 64 px; ``unc`` relative. ``qa``: ``tilt``, ``tilt_unc`` (x, y; relative, over
        half a quadrant), ``rejected`` (name to reason), ``n_fields``, ``gradient`` (largest difference), ``residual``
        (r.m.s. of an exposure about it), ``cell``.

    Raises
    ------
    CalibrationError
        Several channels or filters, or too few good exposures.
    """
    kinds = {(one.rcid, one.exposure.fid, one.shape) for one in samples}
    if len(kinds) > 1:
        raise CalibrationError(f"a sky flat is of one channel, filter and shape, got {sorted(kinds)}: sort them")
    ordered = sorted(samples, key=lambda one: (one.exposure.jd, one.exposure.name))
    rejected = {one.exposure.name: reason for one in ordered if (reason := _unfit(one)) is not None}
    good = [one for one in ordered if one.exposure.name not in rejected]
    pattern = np.ones((1, 1), np.float32)
    residual = math.nan
    while len(good) >= MIN_EXPOSURES:
        stack = np.stack([one.cells for one in good])
        pattern = filled(_clipped_mean(stack)[0])
        off = stack / pattern - 1
        off -= np.nanmedian(off, axis=(1, 2), keepdims=True)
        spread = np.sqrt(np.maximum(np.nanmean(off**2, axis=(1, 2)) - np.array([one.noise**2 for one in good]), 0))
        residual = float(np.median(spread))
        worst = int(np.argmax(spread))
        if not spread[worst] > max(MAX_RESIDUAL, 3 * residual):
            break
        rejected[good[worst].exposure.name] = f"differs from the others by {spread[worst]:.2%}: halo, cloud or ghost"
        good.pop(worst)
    if len(good) < MIN_EXPOSURES:
        where = ordered[0].rcid if ordered else None
        raise CalibrationError(
            f"sky flat of channel {where}: {len(good)} good exposures of {len(ordered)}, at least {MIN_EXPOSURES} "
            f"needed; rejected: {rejected or 'none'}: take more",
            rcid=where, n_frames=len(ordered), n_good=len(good),
        )  # fmt: skip
    mean, error = _clipped_mean(np.stack([one.cells for one in good]))
    tilt, tilt_unc = _common_tilt(good)
    u, v = _grid(good[0].shape)
    cells = (filled(mean) * (1 + tilt[0] * u + tilt[1] * v)).astype(np.float32)
    qa: Row = {
        "tilt": list(tilt), "tilt_unc": list(tilt_unc), "rejected": dict(sorted(rejected.items())),
        "n_rejected": len(rejected), "residual": residual,
        "n_fields": len({one.exposure.field for one in good}),
        "level": float(np.median([one.level for one in good])),
    }  # fmt: skip
    return _loflat(good[-1], cells, filled(error), len(good), qa | _times(good))


def _times(samples: Sequence[SkySample]) -> Row:
    return {"jd_start": samples[0].exposure.jd, "jd_end": samples[-1].exposure.jd}


def _unfit(sample: SkySample) -> str | None:
    """Why an exposure is no good for a sky flat, by itself."""
    if not MIN_SKY <= sample.level <= MAX_SKY:
        return f"sky of {sample.level:.0f} DN outside {MIN_SKY:.0f} .. {MAX_SKY:.0f}"
    known = float(np.mean(np.isfinite(sample.cells)))
    if known < MIN_KNOWN:
        return f"only {known:.0%} of the sky is free of sources"
    header = sample.exposure.header
    if header.get("MOONALT", -90.0) > 0 and abs(header.get("MOONILLF", 0.0)) > MAX_MOON:
        return f"moon {header['MOONALT']:.0f} degrees up, {abs(header['MOONILLF']):.0%} lit"
    steepest = math.hypot(*sample.tilt)
    return f"gradient of {steepest:.1%}: moonlight or cloud" if steepest > MAX_GRADIENT else None


def _clipped_mean(stack: F32) -> tuple[F32, F32]:
    """Mean along the first axis and its error, values beyond 3 sigma of the median left out; NaN where nothing is."""
    with np.errstate(all="ignore"):
        stack = stack / np.nanmedian(stack, axis=(1, 2), keepdims=True)
        known = np.isfinite(stack)
        empty = ~known.any(axis=0)
        centre = np.nanmedian(np.where(empty, np.float32(1), stack), axis=0)
        off = np.where(known, stack - centre, np.float32(np.nan))
        sigma = 1.4826 * float(np.nanmedian(np.abs(off)))
        keep = known & (np.abs(off) <= CLIP * max(sigma, 1e-7))
        count = keep.sum(axis=0)
        mean = np.where(count > 0, centre + np.where(keep, off, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    error = np.where(count > 0, sigma / np.sqrt(np.maximum(count, 1)), np.nan)
    return mean.astype(np.float32), error.astype(np.float32)


def _common_tilt(samples: Sequence[SkySample]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The tilt that all exposures share, as far as it is more than chance, and the error of their mean."""
    tilts = np.array([one.tilt for one in samples])
    middle = np.median(tilts, axis=0)
    scatter = np.maximum(1.4826 * np.median(np.abs(tilts - middle), axis=0), 1e-9)
    keep = np.abs(tilts - middle) <= CLIP * scatter
    count = np.maximum(keep.sum(axis=0), 1)
    mean = np.where(keep, tilts, 0).sum(axis=0) / count
    error = scatter / np.sqrt(count)
    used = mean * np.clip(1 - error**2 / np.maximum(mean**2, 1e-18), 0, None)
    return (float(used[0]), float(used[1])), (float(error[0]), float(error[1]))


def _loflat(newest: SkySample, cells: F32, unc: F32, n: int, qa: Row) -> CalibrationFrame:
    exposure, shape = newest.exposure, newest.shape
    data = spread_cells(cells, CELL, shape)
    median = np.float32(np.median(data[::8, ::8]))
    return CalibrationFrame(
        "loflat", newest.rcid, exposure.fid, exposure.nid, exposure.night, data / median,
        spread_cells(unc, CELL, shape), np.zeros(shape, np.uint16), n,
        calid_of("loflat", exposure.nid, newest.rcid, exposure.fid),
        {"cell": CELL, "gradient": float(cells.max() - cells.min()), "n_frames": n, **qa},
    )  # fmt: skip


def residual_map(
    x: F64, y: F64, residual: F64, sigma: F64, shape: tuple[int, int], cell: int = 256, prior: float = 0.003
) -> F32:
    """A smooth map (mag) of stars' residuals by detector position.

    Parameters
    ----------
    x, y : ndarray, (n,), float64
        Places (first pixel is 0).
    residual, sigma : ndarray, (n,), float64
        Measured minus true magnitude, and its error.
    shape : (int, int)
        Of the quadrant.
    cell : int
        px over which the map is smooth.
    prior : float
        mag; a cell of few stars is drawn to zero as if its true value scattered by so much.

    Returns
    -------
    ndarray, (ny, nx), float32
        Zero in the mean.
    """
    rows, columns = -(-shape[0] // cell), -(-shape[1] // cell)
    good = np.isfinite(residual) & np.isfinite(sigma) & (sigma > 0)
    centre = float(np.median(residual[good])) if good.any() else 0.0
    spread = 1.4826 * float(np.median(np.abs(residual[good] - centre))) if good.any() else 0.0
    good &= np.abs(residual - centre) <= 5 * max(spread, 1e-6)
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    use = good & inside
    place = (y[use] // cell).astype(int) * columns + (x[use] // cell).astype(int)
    weight = 1 / sigma[use] ** 2
    total = np.bincount(place, weight, rows * columns)
    mean = np.bincount(place, weight * (residual[use] - centre), rows * columns) / (total + 1 / prior**2)
    cells = mean.reshape(rows, columns).astype(np.float32)
    return spread_cells(cells - np.float32(cells.mean()), cell, shape)


def with_star_residuals(frame: CalibrationFrame, residual: F32, n_stars: int) -> CalibrationFrame:
    """A low-frequency flat corrected by what stars say.

    Parameters
    ----------
    frame : CalibrationFrame
        The low-frequency flat with which the magnitudes were measured (all ones where there was none).
    residual : ndarray, (ny, nx), float32
        Measured minus true magnitude by detector position (``residual_map``): where stars come out too faint, the flat
        says too much response.
    n_stars : int
        Goes into ``qa``.
    """
    data = frame.data * np.float32(10) ** (np.float32(-0.4) * residual)
    data /= np.float32(np.median(data[::8, ::8]))
    return replace(frame, data=data, qa=frame.qa | {"n_stars": n_stars, "star_rms": float(np.std(residual))})
