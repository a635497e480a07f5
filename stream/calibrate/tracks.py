"""Tracks of satellites and aircraft: long straight trails, found on the image itself (mask bit 0).

A trail of one sigma a pixel is invisible in any pixel and plain in the sum along it. So: (1) the sky-subtracted image
is binned 8 x 8, which loses nothing of a trail's significance per length, and cut at a few sigma, so that a star
counts no more than any pixel; (2) a Radon transform sums it along all lines, and a line stands out against its
parallels; (3) what stands out is followed at full resolution: medians across 64 px of length tell, block by block,
whether there is light, how wide it is and where it ends. Only that step decides. A row of stars, the edge of a halo,
a galaxy have a few blocks; a bleed or a bad column has no width; a diffraction spike ends near its star and fades
away from it.

Where in the order: after the sky is known (a trail of any brightness is a small part of a mesh, its median does not
feel it) and before sources are detected, so that no fragment of a trail becomes a star that astrometry, the PSF or the
zero point would use. Pixels of particles and defects are flagged before and do not take part.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.radon import Line, clipped, extended, lengths, line_of, radon, strongest
from stream.core.compiled import compiled
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import F32, U16, Background, Track

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BIN = 8  # px: finer finds fainter trails (the star's share of the noise falls) and costs with the square
CUT = (-3.0, 3.5)  # sigma of a bin: what a star may count at most
MIN_CHORD = 320.0  # px on the image that a line must have to be summed
PARALLEL = 9  # bins to the neighbours that a line is compared with: farther than a trail, nearer than a gradient
PEAK = 7.0  # of the contrast's noise; of 10^6 lines, noise reaches 5.5
MAX_CANDIDATES, MAX_TRACKS = 8, 6
BLOCK = 64  # px along the line: medians of so many resist stars
NARROW, WIDE = 20, 72  # px to each side that are looked at; aircraft are out of focus, 25 px wide and more
BOX = 5  # px summed across: nearly all of a trail in good seeing, most of one in bad
MAX_BAD = 0.1  # share of bad pixels about the middle with which a block can still be judged
FINE_BOX = 3  # px summed across to find a trail's middle
# The light of a block of BOX x BLOCK px as medians have it, in sigma of a pixel: 1.2533 / sqrt(BLOCK BOX).
BLOCK_NOISE = 1.2533 / math.sqrt(BLOCK * BOX)
BLOCK_CUT, BLOCK_PRICE = 6.0, 1.5  # a block counts at most so much, and costs so much: gaps end a trail
MIN_LENGTH = 400.0  # px; shorter trails are detections of the streak search
MIN_SHARE = 0.7  # of a trail's blocks that must show light of 2 sigma
MIN_SIGNIFICANCE = 9.0  # of a trail as a whole
MIN_FWHM = 1.3  # px: a star's image is never less than 1.5
# Along a row or column (within AXIS of its slope) even that may be a defect of one column, met between two pixels.
AXIS, MIN_AXIS_FWHM = 0.003, 2.3
AIRCRAFT_FWHM = 9.0  # px; satellites are as sharp as stars
FLASH = 0.6  # r.m.s. of the light along a trail over its mean: tumbling satellites
STRIP = 0.2  # sigma of a pixel: the masked strip reaches to where the mean light falls below
MIN_HALF_STRIP = 4.0  # px
# Pixels that were saturated in one cell of 32 px by which a star is known to have spikes; its spikes reach at most so
# far, in units of the square root of that number.
CELL, SPIKE_PIXELS, SPIKE_REACH = 32, 30, 45.0
BLIND_BITS = BAD_BITS & ~int(Mask.HALO | Mask.GHOST | Mask.TRACK)


class _Trail(NamedTuple):
    """A line that was followed: its ends, the light of its blocks (sigma per px, mean over BOX), its cross profile."""

    line: Line
    light: F64
    profile: F64  # at offsets -reach..reach, sigma per px
    fwhm: float


def find_tracks(data: F32, background: Background, mask: U16) -> tuple[Track, ...]:
    """Long straight trails.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        Calibrated image in DN, sky in.
    background : Background
    mask : ndarray, (ny, nx), uint16
        Defects known so far: such pixels do not take part.

    Returns
    -------
    tuple of Track
        Strongest first; empty where there is none, or the image is too small for one.
    """
    ny, nx = data.shape
    if math.hypot(nx, ny) < MIN_LENGTH or min(nx, ny) < 4 * BIN or not background.sigma > 0:
        return ()
    bins = _binned(data, background, mask)
    stars: F64 | None = None  # looked for when there is a trail
    found: list[Track] = []
    for _ in range(MAX_CANDIDATES):
        line = _strongest_line(bins)
        if line is None or len(found) == MAX_TRACKS:
            break
        trail = _follow(data, background, mask, line, NARROW)
        if trail is not None and _is_wide(trail.profile):
            trail = _follow(data, background, mask, trail.line, WIDE) or trail
        if trail is not None and stars is None:
            stars = _spiky_stars(mask)
        if trail is not None and stars is not None and not _is_spike(trail, stars):
            found.append(_track(trail, background.sigma))
            _erase(bins, trail.line, found[-1].width / 2)
        else:
            _erase(bins, line, BIN)
    return tuple(found)


def mask_tracks(mask: U16, tracks: tuple[Track, ...]) -> U16:
    """The mask with bit 0 on the strips of tracks; the same array where there is none."""
    if not tracks:
        return mask
    out = mask.copy()
    for track in tracks:
        rows, columns = strip_pixels(mask.shape[0], mask.shape[1], Line(*_ends(track)), track.width / 2)
        out[rows, columns] |= np.uint16(Mask.TRACK)
    return out


def _ends(track: Track) -> tuple[float, float, float, float]:
    return track.x1, track.y1, track.x2, track.y2


def strip_pixels(ny: int, nx: int, line: Line, half_width: float) -> tuple[I64, I64]:
    """Rows and columns of the pixels within ``half_width`` of a line from end to end."""
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    length = math.hypot(dx, dy)
    if length == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    flat = abs(dx) >= abs(dy)  # walk along x, or along y
    (a1, b1), (a2, b2) = ((line.x1, line.y1), (line.x2, line.y2)) if flat else ((line.y1, line.x1), (line.y2, line.x2))
    size = nx if flat else ny
    first, last = max(math.ceil(min(a1, a2) - 0.5), 0), min(math.floor(max(a1, a2) + 0.5), size - 1)
    along = np.arange(first, last + 1)
    centre = b1 + (along - a1) * (b2 - b1) / (a2 - a1)
    reach = half_width * length / abs(dx if flat else dy)
    steps = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    across = np.rint(centre).astype(np.int64)[:, None] + steps
    inside = (np.abs(across - centre[:, None]) <= reach) & (across >= 0) & (across < (ny if flat else nx))
    walked = np.broadcast_to(along[:, None], across.shape)[inside]
    return (across[inside], walked) if flat else (walked, across[inside])


def _binned(data: F32, background: Background, mask: U16) -> F32:
    """Means of cells over the sky, in units of their noise, cut; 0 where there is nothing good."""
    my, mx = (n // BIN for n in data.shape)
    sums, lost = np.empty((my, mx), np.float32), np.empty((my, mx), np.float32)
    _summed(np.ascontiguousarray(data), np.ascontiguousarray(mask), np.uint16(BLIND_BITS), sums, lost)
    good = np.float32(BIN * BIN) - lost
    middle = slice(BIN // 2, None, BIN)
    level = background.level[middle, middle][:my, :mx]
    with np.errstate(invalid="ignore", divide="ignore"):
        bins = (sums / good - level) * np.sqrt(good) / np.float32(background.sigma)
    bins[~np.isfinite(bins) | (lost > BIN * BIN / 2)] = 0.0
    np.clip(bins, *CUT, out=bins)
    return np.asarray(bins, np.float32)


@compiled
def _summed(data: F32, mask: U16, blind: np.uint16, sums: F32, lost: F32) -> None:
    """Sums of the pixels of cells without one of the bits ``blind``, and how many have one or no value."""
    ny, nx = sums.shape
    column, gone = np.empty(nx * BIN, np.float32), np.empty(nx * BIN, np.float32)
    for row in range(ny):
        column[:], gone[:] = 0.0, 0.0
        for y in range(row * BIN, (row + 1) * BIN):
            for x in range(nx * BIN):
                value = data[y, x]
                good = (mask[y, x] & blind) == 0 and np.isfinite(value)
                column[x] += value if good else np.float32(0.0)
                gone[x] += np.float32(0.0) if good else np.float32(1.0)
        for cell in range(nx):
            total, bad = np.float32(0.0), np.float32(0.0)
            for x in range(cell * BIN, (cell + 1) * BIN):
                total += column[x]
                bad += gone[x]
            sums[row, cell], lost[row, cell] = total, bad


def _strongest_line(bins: F32) -> Line | None:
    """The line (px) that stands out most against its parallels, if noise cannot explain it."""
    shape = (bins.shape[0], bins.shape[1])
    sums = radon(bins)
    roots, usable = _chords(shape)
    found, contrast = strongest(sums, roots, usable, PARALLEL)
    # Of independent bins, two parallels taken off: the transform's own scatter would be that of a bright trail.
    noise = math.sqrt(1.5) * float(bins.std())
    if not contrast > PEAK * noise > 0:
        return None
    place = np.unravel_index(found, sums.shape)
    line = line_of((int(place[0]), int(place[1]), int(place[2])), shape, sums.shape)
    middle = (BIN - 1) / 2  # centre of a bin
    return Line(*(BIN * v + middle for v in (line.x1, line.y1, line.x2, line.y2)))


@lru_cache(maxsize=4)
def _chords(shape: tuple[int, int]) -> tuple[F32, NDArray[np.bool_]]:
    """Square roots of the numbers of bins on every line, and which lines are long enough to be summed."""
    number = lengths(shape)
    return np.sqrt(np.maximum(number, np.float32(1.0))), number >= min(MIN_CHORD / BIN, 0.6 * min(shape))


def _erase(bins: F32, line: Line, half_width: float) -> None:
    """Take a line out of the binned image, so that the next one can be seen."""
    middle = (BIN - 1) / 2
    scaled = Line(*((v - middle) / BIN for v in (line.x1, line.y1, line.x2, line.y2)))
    rows, columns = strip_pixels(bins.shape[0], bins.shape[1], scaled, half_width / BIN + 1.5)
    bins[rows, columns] = 0.0


def _follow(data: F32, background: Background, mask: U16, line: Line, reach: int) -> _Trail | None:
    """The trail along a line at full resolution; None where the light is not that of a trail."""
    shape = (data.shape[0], data.shape[1])
    trail = None
    for _ in range(2):  # the second time about the place that the first one found
        whole = extended(line, shape)
        strip = None if whole is None else _strip(data, background, mask, whole, reach)
        if whole is None or strip is None:
            return None
        shifts = _best_shifts(strip, BOX, max(12, reach // 2))
        shifts = _best_shifts(strip, FINE_BOX, 3, shifts)
        trail = _judged(strip, whole, shifts, reach)
        line = _shifted(whole, *shifts)
        if max(abs(shift) for shift in shifts) < 1.5:
            break
    return trail


def _strip(data: F32, background: Background, mask: U16, line: Line, reach: int) -> F64 | None:
    """Medians (blocks, offsets across) of light over the sky along a line, in sigma; None for a short line."""
    ny, nx = data.shape
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    blocks = int(length / BLOCK)
    if blocks < 4:
        return None
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    along = (np.arange(blocks * BLOCK) + 0.5) * length / (blocks * BLOCK)
    across = np.arange(-reach, reach + 1)
    x = np.rint((line.x1 + ux * along)[:, None] - uy * across).astype(np.int64)
    y = np.rint((line.y1 + uy * along)[:, None] + ux * across).astype(np.int64)
    outside = (x < 0) | (x >= nx) | (y < 0) | (y >= ny)
    flat = np.clip(y, 0, ny - 1) * nx + np.clip(x, 0, nx - 1)
    values = (data.reshape(-1)[flat] - background.level.reshape(-1)[flat]) / np.float32(background.sigma)
    bad = outside | ((mask.reshape(-1)[flat] & np.uint16(BLIND_BITS)) != 0) | ~np.isfinite(values)
    values[bad] = 0.0
    strip = np.asarray(np.median(values.reshape(blocks, BLOCK, len(across)), axis=1), np.float64)
    # Nothing is known where a saturated star lies on the line.
    middle = bad[:, np.abs(across) <= NARROW // 2].reshape(blocks, -1)
    strip[middle.mean(axis=1) > MAX_BAD] = 0.0
    return strip


def _boxed(strip: F64, box: int = BOX) -> F64:
    """Means over ``box`` px across (blocks, offsets - box + 1) less the block's own level."""
    sums = np.cumsum(np.pad(strip, ((0, 0), (1, 0))), axis=1)
    return (sums[:, box:] - sums[:, :-box]) / box - np.median(strip, axis=1, keepdims=True)


def _best_shifts(strip: F64, box: int, reach: int, start: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """How far (px across) the line's two ends must be moved to have the most light under it: by whole pixels, at
    most ``reach`` from ``start``."""
    # A logarithm of bright light: one bright block must not decide, and the middle of a bright trail still shows.
    boxed = np.arcsinh(_boxed(strip, box) / BLOCK_NOISE)
    blocks, places = boxed.shape
    steps = np.arange(-reach, reach + 1)
    ends = [first + steps for first in start]
    fraction = (np.arange(blocks) + 0.5) / blocks
    at = ends[0][:, None, None] * (1 - fraction) + ends[1][None, :, None] * fraction
    column = np.clip(np.rint(at).astype(np.int64) + places // 2, 0, places - 1)
    score = boxed[np.arange(blocks), column].sum(axis=2)
    first, last = np.unravel_index(int(score.argmax()), score.shape)
    return float(ends[0][first]), float(ends[1][last])


def _shifted(line: Line, first: float, last: float) -> Line:
    length = math.hypot(line.x2 - line.x1, line.y2 - line.y1)
    ux, uy = (line.x2 - line.x1) / length, (line.y2 - line.y1) / length
    return Line(line.x1 - uy * first, line.y1 + ux * first, line.x2 - uy * last, line.y2 + ux * last)


def _judged(strip: F64, whole: Line, shifts: tuple[float, float], reach: int) -> _Trail | None:
    """The trail in a strip, if it is one."""
    blocks = len(strip)
    fraction = (np.arange(blocks) + 0.5) / blocks
    offset = np.rint(shifts[0] * (1 - fraction) + shifts[1] * fraction).astype(np.int64)
    boxed = _boxed(strip)
    light = boxed[np.arange(blocks), np.clip(offset + boxed.shape[1] // 2, 0, boxed.shape[1] - 1)]
    snr = light / BLOCK_NOISE
    first, last = _best_run(np.clip(snr, -BLOCK_CUT, BLOCK_CUT) - BLOCK_PRICE)
    line = _shifted(whole, *shifts)
    step = math.hypot(line.x2 - line.x1, line.y2 - line.y1) / blocks
    run = snr[first:last]
    if (last - first) * step < min(MIN_LENGTH, 0.9 * blocks * step) or last - first < 4:
        return None
    cut = np.clip(run, -BLOCK_CUT, BLOCK_CUT)
    if np.mean(run > 2.0) < MIN_SHARE or float(cut.sum()) < MIN_SIGNIFICANCE * math.sqrt(len(run)):
        return None
    # Its look is that of the fainter three quarters of it: not of the flashes, nor of a star on it.
    shown = light[first:last]
    plain = (shown > 0.2 * np.median(shown)) & (shown <= np.percentile(shown, 75))
    profile = _profile(strip[first:last][plain], offset[first:last][plain], reach)
    fwhm = _fwhm(profile)
    if fwhm < (MIN_AXIS_FWHM if _along_an_axis(line) else MIN_FWHM):
        return None
    # To the image's edge where it ends within two blocks of it, and half a block beyond what was seen elsewhere.
    start = 0.0 if first <= 2 else (first - 0.5) / blocks
    end = 1.0 if last >= blocks - 2 else (last + 0.5) / blocks
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    part = Line(line.x1 + start * dx, line.y1 + start * dy, line.x1 + end * dx, line.y1 + end * dy)
    return _Trail(part, light[first:last], profile, fwhm)


def _along_an_axis(line: Line) -> bool:
    dx, dy = abs(line.x2 - line.x1), abs(line.y2 - line.y1)
    return min(dx, dy) <= AXIS * max(dx, dy)


def _best_run(values: F64) -> tuple[int, int]:
    """First and one past the last element of the run with the largest sum."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    lowest = np.minimum.accumulate(total)
    last = int((total - lowest).argmax())
    return int(total[: last + 1].argmin()), last


def _profile(strip: F64, offset: I64, reach: int) -> F64:
    """Mean cross profile of a run of blocks, each moved to its centre; NaN where none reaches."""
    places = np.arange(-reach, reach + 1)[None, :] + offset[:, None] + reach
    inside = (places >= 0) & (places < strip.shape[1])
    values = np.take_along_axis(strip, np.clip(places, 0, strip.shape[1] - 1), axis=1)
    values = values - np.median(strip, axis=1, keepdims=True)
    number = inside.sum(axis=0)
    return np.where(
        number >= max(len(strip) / 2, 1), np.where(inside, values, 0.0).sum(axis=0) / np.maximum(number, 1), np.nan
    )


def _fwhm(profile: F64) -> float:
    """Full width at half maximum (px) of a profile about its middle: its light over its peak, as for a Gaussian."""
    middle = len(profile) // 2
    known = np.nan_to_num(profile)
    peak = middle - 3 + int(known[middle - 3 : middle + 4].argmax())
    half = known[peak] / 2
    right = int(np.argmax(np.append(known[peak:], -1.0) < half))
    left = int(np.argmax(np.append(known[peak::-1], -1.0) < half))
    if known[peak] <= 0:
        return 0.0
    # Between the last pixel above the half and the first below it.
    out = 0.0
    for step, way in ((right, known[peak:]), (left, known[peak::-1])):
        upper, lower = way[step - 1], way[step] if step < len(way) else 0.0
        out += step - 1 + (upper - half) / max(upper - lower, 1e-12)
    return float(out)


def _is_wide(profile: F64) -> bool:
    """Whether the light of a trail reaches the side of what was looked at."""
    return bool(_half_strip(profile) > 0.6 * (len(profile) // 2))


def _half_strip(profile: F64) -> float:
    """How far from its middle (px) a trail's light is above what matters."""
    known = np.nan_to_num(profile)
    middle = len(known) // 2
    smooth = np.convolve(known, np.ones(3) / 3, mode="same")
    reach = 0
    for side in (smooth[middle:], smooth[middle::-1]):
        below = np.append(side, -1.0) < STRIP
        reach = max(reach, int(np.argmax(below & np.append(below[1:], True))))
    return float(reach)


def _spiky_stars(mask: U16) -> F64:
    """Stars with diffraction spikes: x, y (px) and reach of the spikes (px), (n, 3)."""
    nx = mask.shape[1]
    y, x = np.divmod(np.flatnonzero(mask & np.uint16(Mask.SATURATED)), nx)
    if not len(y):
        return np.zeros((0, 3))
    across = -(-nx // CELL)
    cell = (y // CELL) * across + x // CELL
    number = np.bincount(cell)
    full = np.flatnonzero(number >= SPIKE_PIXELS)
    places = [np.bincount(cell, v)[full] / number[full] for v in (x, y)]
    return np.stack([*places, SPIKE_REACH * np.sqrt(number[full])], axis=1)


def _is_spike(trail: _Trail, stars: F64) -> bool:
    """Whether a trail is nothing but spikes of saturated stars on it: no light is left away from them."""
    line = trail.line
    dx, dy = line.x2 - line.x1, line.y2 - line.y1
    length = math.hypot(dx, dy)
    if not len(stars):
        return False
    rx, ry = stars[:, 0] - line.x1, stars[:, 1] - line.y1
    across = np.abs(rx * dy - ry * dx) / length
    on = across <= CELL
    if not on.any():
        return False
    at = (np.arange(len(trail.light)) + 0.5) / len(trail.light) * length
    along = (rx * dx + ry * dy)[on] / length
    distance = np.abs(at[:, None] - along)
    near = (distance < stars[on, 2]).any(axis=1)
    far = trail.light[~near] / BLOCK_NOISE
    if len(far) * BLOCK < MIN_LENGTH / 2:
        # All of it lies near such stars: a trail is as bright far from them as near, a spike fades with the square of
        # the distance. The nearest third is the star's own light.
        order = np.argsort(distance.min(axis=1))
        third = max(len(order) // 3, 1)
        return bool(np.median(trail.light[order[-third:]]) < 0.6 * np.median(trail.light[order[third:-third]]))
    return bool(np.mean(far > 2.0) < MIN_SHARE)


def _track(trail: _Trail, sigma: float) -> Track:
    """The record of a trail, with a name for what made it."""
    mean = float(np.mean(trail.light))
    scatter = math.sqrt(max(float(np.var(trail.light)) - BLOCK_NOISE**2, 0.0))
    if trail.fwhm > AIRCRAFT_FWHM:
        kind = "aircraft"
    else:
        kind = "flashing satellite" if scatter > FLASH * max(mean, 1e-9) else "satellite"
    half = max(_half_strip(trail.profile) + 1.0, 1.5 * trail.fwhm, MIN_HALF_STRIP)
    light = float(np.nansum(np.maximum(trail.profile, 0.0))) * sigma
    return Track(kind, trail.line.x1, trail.line.y1, trail.line.x2, trail.line.y2, 2 * half, trail.fwhm, light)


__all__ = ["clipped", "find_tracks", "mask_tracks", "strip_pixels"]
