"""The detector: flat field, cosmic rays, full well, gain, non-linearity, cross-talk, bias and readout.

Each effect is one function, and ``read_out`` and its callers apply them in the order of nature and electronics
(``interfaces.md`` §1). Arrays are float32; what belongs to the amplifier is fixed by the sky's seed, what changes
with an exposure is drawn from the generator given.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stream.core import identity
from stream.core.camera import Camera, read_order
from stream.simulate.plan import seeded

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]
FloatT = TypeVar("FloatT", np.float32, np.float64)

ADC_MAX = 65535
POISSON_BELOW = 30.0  # e-: below this a normal draw shows in the distribution's skewness
PIXEL_FLAT = 0.004  # r.m.s. of pixel-to-pixel sensitivity
FLAT_TILT = 0.03  # large-scale response: slopes and vignetting over half a quadrant
COSMIC_RATE = 1.6e-7  # hits per pixel and second: 45 in 30 s on a full quadrant
READOUT_SECONDS = 8.0  # half of which a pixel waits in the mean, collecting cosmic rays in a bias frame too
BLEED_BACKWARDS = 0.7  # share of the excess charge that goes away from the amplifier, to rows read later
TRAIL = (2e-3, 1.2)  # charge left behind by the last image pixel: share in overscan column 0, decay in columns
ROW_DRIFT = 1.5  # DN, amplitude of the smooth drift of the bias level with the row number
ROW_JITTER = 0.1  # DN
CROSSTALK = 1e-4  # largest coefficient between amplifiers
SIDE_GLOW = (4.0, 70.0)  # DN and px: baseline + A exp(-x / p0), x counted from the amplifier
BAND = 128  # rows handled at a time where a whole-image scratch array would only cost memory traffic


@dataclass(frozen=True, slots=True)
class Amplifier:
    """Electronics of one readout channel.

    ``gain`` e-/DN, ``readnoise`` e-, ``bias`` DN, ``full_well`` e-, ``saturate`` raw DN with the bias in (what the
    header says: half a percent below where a full well lands), ``a`` and ``b`` the linearity coefficients in
    DN_true = x / (a x^2 + b x + 1).
    """

    rcid: int
    gain: float
    readnoise: float
    bias: float
    full_well: float
    saturate: float
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Defects:
    """Pixels that misbehave for good: flat indices into the stored image.

    ``hot`` leak ``leak`` e-/s; ``dead`` have the sensitivity ``response``; ``columns`` are dead or hot from a row
    on, their pixels are in ``dead`` or ``hot`` too.
    """

    hot: I64
    leak: F32
    dead: I64
    response: F32
    columns: tuple[tuple[int, int, int, str], ...]  # x, first y, last y, hot or dead


@lru_cache(maxsize=1)
def _linearity() -> dict[tuple[int, int], list[tuple[float, float, float]]]:
    text = resources.files("stream.core").joinpath("data/linearity.csv").read_text()
    table: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        entry = (float(row["valid_from_mjd"]), float(row["a"]), float(row["b"]))
        table.setdefault((int(row["ccdid"]), int(row["amp_id"])), []).append(entry)
    return {key: sorted(entries) for key, entries in table.items()}


def linearity(rcid: int, jd: float) -> tuple[float, float]:
    """Coefficients A and B of a readout channel at a date."""
    ccdid, qid = identity.ccd_qid_of(rcid)
    mjd = jd - 2_400_000.5
    entries = [entry for entry in _linearity()[ccdid, qid - 1] if entry[0] <= mjd]
    return entries[-1][1:] if entries else _linearity()[ccdid, qid - 1][0][1:]


def measured_of_true(true: NDArray[FloatT], a: float, b: float) -> NDArray[FloatT]:
    """The DN that the electronics give for a true DN: the inverse of x / (a x^2 + b x + 1), in the stable form."""
    p = 1.0 - b * true
    result: NDArray[FloatT] = 2.0 * true / (p + np.sqrt(p * p - 4.0 * a * true * true))
    return result


@lru_cache(maxsize=256)
def amplifier(seed: int, rcid: int, jd: float) -> Amplifier:
    """The electronics of a readout channel at a date."""
    rng = seeded(seed, "amplifier", rcid)
    gain = round(rng.uniform(5.9, 6.5), 2)
    readnoise = round(rng.uniform(8.8, 11.0), 1)
    bias = rng.uniform(900.0, 1900.0)
    a, b = linearity(rcid, jd)
    full_dn = rng.uniform(54_000.0, 58_500.0)
    top = bias + float(measured_of_true(np.array([full_dn]), a, b)[0])
    return Amplifier(rcid, gain, readnoise, bias, full_dn * gain, math.floor(0.995 * top), a, b)


@lru_cache(maxsize=8)
def defects(seed: int, camera: Camera, rcid: int) -> Defects:
    """Hot and dead pixels and columns of a quadrant."""
    rng = seeded(seed, "defects", rcid)
    nx, ny = camera.nx, camera.ny
    share = nx * ny / (3072 * 3080)
    n_hot, n_dead = 8 + int(rng.poisson(250 * share)), 8 + int(rng.poisson(150 * share))
    hot, dead = rng.integers(0, nx * ny, n_hot), rng.integers(0, nx * ny, n_dead)
    leak = np.exp(rng.uniform(np.log(15.0), np.log(3000.0), n_hot))
    response = rng.uniform(0.0, 0.4, n_dead)
    columns = []
    for kind in ("dead", "hot") if rng.uniform() < 0.5 or share > 0.5 else ("dead",):
        x, first = int(rng.integers(20, nx - 20)), int(rng.integers(0, ny // 2))
        columns.append((x, first, ny - 1, kind))
        pixels = np.arange(first, ny) * nx + x
        if kind == "dead":
            dead, response = np.append(dead, pixels), np.append(response, np.full(len(pixels), 0.02))
        else:
            hot, leak = np.append(hot, pixels), np.append(leak, np.full(len(pixels), 40.0))
    return Defects(hot, leak.astype(np.float32), dead, response.astype(np.float32), tuple(columns))


def flat_field(seed: int, camera: Camera, rcid: int, fid: int) -> F32:
    """Relative response of every pixel, median 1: vignetting and slopes, dust rings, pixel-to-pixel noise, defects."""
    rng = seeded(seed, "flat", rcid, fid)
    ny, nx = camera.shape
    u = np.linspace(-1, 1, nx, dtype=np.float32)
    v = np.linspace(-1, 1, ny, dtype=np.float32)
    c = rng.normal(0, FLAT_TILT, 5).astype(np.float32)
    flat = seeded(seed, "pixels", rcid).standard_normal((ny, nx), dtype=np.float32)
    flat *= np.float32(PIXEL_FLAT)
    flat += (1.0 + c[0] * v - abs(c[1]) * v * v)[:, None] + (c[2] * u - abs(c[3]) * u * u)[None, :]
    flat += (c[4] * v)[:, None] * u[None, :]
    for _ in range(4):
        _dust_ring(flat, rng)
    flat /= np.float32(np.median(flat[::3, ::3]))
    bad = defects(seed, camera, rcid)
    flat.reshape(-1)[bad.dead] = bad.response
    return flat


def _dust_ring(flat: F32, rng: np.random.Generator) -> None:
    """A doughnut of two percent where dust on the window shades the beam."""
    ny, nx = flat.shape
    x, y, outer = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0.02, 0.06) * nx
    depth = rng.uniform(0.01, 0.025)
    low, high = max(0, int(y - 2 * outer)), min(ny, int(y + 2 * outer))
    left, right = max(0, int(x - 2 * outer)), min(nx, int(x + 2 * outer))
    r = np.hypot(np.arange(low, high)[:, None] - y, np.arange(left, right)[None, :] - x) / outer
    flat[low:high, left:right] *= (1 - depth * np.exp(-0.5 * ((r - 0.8) / 0.25) ** 2)).astype(np.float32)


def bias_structure(seed: int, camera: Camera, rcid: int) -> tuple[F32, F32]:
    """Fixed bias pattern (DN) beyond its level, as a row (nx) and a column (ny) that add: side glow, columns, ramp.

    In stored order. The overscan sees the column, but not the row.
    """
    rng = seeded(seed, "bias", rcid)
    _, qid = identity.ccd_qid_of(rcid)
    flip_x, flip_y = read_order(qid)
    row = rng.normal(0, 0.35, camera.nx)
    row += rng.uniform(0.5, 1.0) * SIDE_GLOW[0] * np.exp(-np.arange(camera.nx) / SIDE_GLOW[1])
    column = rng.uniform(0.5, 2.5) * np.exp(-np.arange(camera.ny) / (0.05 * camera.ny))
    return (row[::-1] if flip_x else row).astype(np.float32), (column[::-1] if flip_y else column).astype(np.float32)


def photon_noise(rng: np.random.Generator, electrons: F32) -> None:
    """Replace expected electrons by a draw: normal where they are many, Poisson where they are few."""
    for start in range(0, electrons.shape[0], BAND):
        band = electrons[start : start + BAND]
        low = np.flatnonzero(band < POISSON_BELOW)
        expected = np.maximum(band.reshape(-1)[low], 0) if low.size else None
        noise = rng.standard_normal(band.shape, dtype=np.float32)
        noise *= np.sqrt(np.maximum(band, 0))
        band += noise
        if expected is not None:
            band.reshape(-1)[low] = rng.poisson(expected)


def leak_charge(electrons: F32, bad: Defects, exptime: float) -> None:
    """Add what hot pixels leak in the exposure and half of the readout."""
    electrons.reshape(-1)[bad.hot] += bad.leak * np.float32(exptime + READOUT_SECONDS / 2)


def cosmic_rays(rng: np.random.Generator, electrons: F32, exptime: float) -> list[tuple[float, float, int]]:
    """Add cosmic rays (e-): straight tracks one pixel wide, some with a worm's bend.

    Returns
    -------
    list of (x, y, npix)
        Mean place and number of pixels of every hit that lies on the image.
    """
    ny, nx = electrons.shape
    hits = []
    for _ in range(int(rng.poisson(COSMIC_RATE * nx * ny * (exptime + READOUT_SECONDS / 2)))):
        x, y = rng.uniform(0, nx), rng.uniform(0, ny)
        angle, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.06)
        n = 2 + int(rng.exponential(6.0))  # half-pixel steps
        charge = math.exp(rng.normal(math.log(700.0), 0.7))  # e- per step; muons leave some 80 e- per micron
        turns = angle + bend * np.arange(n)
        xs = np.floor(x + np.cumsum(0.5 * np.cos(turns))).astype(int)
        ys = np.floor(y + np.cumsum(0.5 * np.sin(turns))).astype(int)
        inside = (xs >= 0) & (xs < nx) & (ys >= 0) & (ys < ny)
        if not inside.any():
            continue
        pixels = ys[inside] * nx + xs[inside]
        np.add.at(
            electrons.reshape(-1), pixels, np.float32(charge) * rng.gamma(4.0, 0.25, len(pixels)).astype(np.float32)
        )
        hits.append((float(xs[inside].mean()), float(ys[inside].mean()), len(np.unique(pixels))))
    return hits


def bleed(electrons: F32, full_well: float, qid: int) -> int:
    """Cut at full well; the excess fills neighbours in the column, most of it away from the amplifier.

    Returns the number of pixels at full well.
    """
    columns = np.flatnonzero(electrons.max(axis=0) > full_well)
    flip_y = read_order(qid)[1]
    count = 0
    for x in columns:
        column = electrons[::-1, x] if flip_y else electrons[:, x]
        count += _bleed_column(column, full_well)
    return count


def _bleed_column(column: F32, full_well: float) -> int:
    """Spread the excess of one column (in read order), run by run."""
    over = np.flatnonzero(column > full_well)
    runs = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
    excesses = [float((column[run].astype(np.float64) - full_well).sum()) for run in runs]
    column[over] = full_well
    for run, excess in zip(runs, excesses, strict=True):
        _fill(column[run[-1] + 1 :], BLEED_BACKWARDS * excess, full_well)
        _fill(column[: run[0]][::-1], (1 - BLEED_BACKWARDS) * excess, full_well)
    return int((column >= full_well).sum())


def _fill(line: F32, charge: float, full_well: float) -> None:
    """Fill pixels one after the other up to full well until the charge is used up or the column ends."""
    start, step = 0, 256
    while charge > 0 and start < len(line):
        room = np.maximum(full_well - line[start : start + step].astype(np.float64), 0)
        before = np.concatenate([[0.0], np.cumsum(room)[:-1]])
        line[start : start + step] += np.clip(charge - before, 0, room).astype(np.float32)
        charge -= float(room.sum())
        start += step


def to_measured(electrons: F32, amp: Amplifier) -> None:
    """Electrons to the DN that the electronics give: gain, then non-linearity. In place."""
    for start in range(0, electrons.shape[0], BAND):
        band = electrons[start : start + BAND]
        band /= np.float32(amp.gain)
        band[:] = measured_of_true(band, amp.a, amp.b)


def crosstalk_matrix(seed: int, ccdid: int) -> F64:
    """Coefficients [to, from] between the four amplifiers of a CCD, of either sign; zero on the diagonal."""
    matrix = seeded(seed, "crosstalk", ccdid).uniform(-CROSSTALK, CROSSTALK, (4, 4))
    np.fill_diagonal(matrix, 0.0)
    return matrix


def crosstalk(images: list[F32], matrix: F64) -> None:
    """Add to each amplifier's DN a little of what the other three read at the same moment. In place."""
    views = []
    for qid, image in enumerate(images, start=1):
        flip_x, flip_y = read_order(qid)
        views.append(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
    for start in range(0, images[0].shape[0], BAND):
        bands = [view[start : start + BAND] for view in views]
        originals = [band.copy() for band in bands]
        for to, band in enumerate(bands):
            added = sum(np.float32(matrix[to, source]) * originals[source] for source in range(4) if source != to)
            band += added


def floating_bias(rng: np.random.Generator, camera: Camera, qid: int) -> F32:
    """Bias level of every row (stored order) about its mean: smooth drift and jitter, DN."""
    t = np.linspace(0, 1, camera.ny)
    drift = ROW_DRIFT * (rng.normal() * (t - 0.5) + 0.5 * rng.normal() * np.sin(2 * np.pi * (t + rng.uniform())))
    wander = ndimage.gaussian_filter1d(rng.normal(0, 1, camera.ny), 0.05 * camera.ny, mode="nearest")
    drift += 0.3 * ROW_DRIFT * wander / max(float(wander.std()), 1e-9)
    drift += rng.normal(0, ROW_JITTER, camera.ny)
    level = drift + rng.normal(0, 1.5)  # the level as a whole changes between exposures
    return (level[::-1] if read_order(qid)[1] else level).astype(np.float32)


def read_out(
    rng: np.random.Generator, measured: F32, amp: Amplifier, pattern: tuple[F32, F32], camera: Camera
) -> tuple[U16, U16]:
    """Measured DN without bias to raw image (ny, nx) and overscan (ny, n_overscan): bias, read noise, digitising.

    Column 0 of the overscan was read right after the row's last image pixel and has some of its charge.
    ``measured`` is used as scratch.
    """
    _, qid = identity.ccd_qid_of(amp.rcid)
    sigma = np.float32(amp.readnoise / amp.gain)
    level = floating_bias(rng, camera, qid) + np.float32(amp.bias) + pattern[1]
    last = measured[:, 0] if read_order(qid)[0] else measured[:, -1]
    decay = (TRAIL[0] * np.exp(-np.arange(camera.n_overscan) / TRAIL[1])).astype(np.float32)
    overscan = last[:, None] * decay[None, :] + level[:, None]
    overscan += sigma * rng.standard_normal(overscan.shape, dtype=np.float32)
    image = np.empty(measured.shape, np.uint16)
    for start in range(0, measured.shape[0], BAND):
        band = measured[start : start + BAND]
        noise = rng.standard_normal(band.shape, dtype=np.float32)
        noise *= sigma
        noise += band
        noise += pattern[0][None, :]
        noise += level[start : start + BAND, None]
        image[start : start + BAND] = digitise(noise)
    return image, digitise(overscan)


def digitise(dn: F32) -> U16:
    """Round and clip to the converter's range."""
    np.rint(dn, out=dn)
    return np.clip(dn, 0, ADC_MAX, out=dn).astype(np.uint16)
