"""Electronics: the serial register, gain, non-linearity, cross-talk, bias and the converter. Charge comes in, DN leave.

Each effect is one function; the order is that of nature (``interfaces.md`` §1). Arrays are float32; what belongs to the
amplifier is fixed by the sky's seed, what changes with an exposure is drawn from the generator given.
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
from stream.core.pocket import Pocket, distort
from stream.simulate.effects import Effects
from stream.simulate.fields import bands
from stream.simulate.plan import seeded

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
FloatT = TypeVar("FloatT", np.float32, np.float64)

ADC_MAX = 65535
TRAIL = (2e-3, 1.2)  # charge left behind by the last image pixel: share in overscan column 0, decay in columns
ROW_DRIFT = 1.5  # DN, amplitude of the smooth drift of the bias level with the row number
ROW_JITTER = 0.1  # DN
CROSSTALK = 1e-4  # largest coefficient between amplifiers
SIDE_GLOW = (4.0, 70.0)  # DN and px: baseline + A exp(-x / p0), x counted from the amplifier
SIDE_GLOW_SPREAD = 0.03  # r.m.s. by which it differs between exposures, relative


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
def amplifier(seed: int, rcid: int, jd: float, *, linear: bool = False) -> Amplifier:
    """The electronics of a readout channel at a date; ``linear`` has coefficients of zero."""
    rng = seeded(seed, "amplifier", rcid)
    gain = round(rng.uniform(5.9, 6.5), 2)
    readnoise = round(rng.uniform(8.8, 11.0), 1)
    bias = rng.uniform(900.0, 1900.0)
    a, b = (0.0, 0.0) if linear else linearity(rcid, jd)
    full_dn = rng.uniform(54_000.0, 58_500.0)
    top = bias + float(measured_of_true(np.array([full_dn]), a, b)[0])
    return Amplifier(rcid, gain, readnoise, bias, full_dn * gain, math.floor(0.995 * top), a, b)


def pocket_effect(electrons: F32, n_overscan: int, pocket: Pocket, qid: int) -> F32:
    """Let every row pass the register's pocket; in place. Returns what drips into the overscan, e- (ny, n_overscan)."""
    flip_x = read_order(qid)[0]
    ny, nx = electrons.shape
    rows = np.zeros((ny, nx + n_overscan), np.float32)
    rows[:, :nx] = electrons[:, ::-1] if flip_x else electrons
    rows = distort(rows, pocket)
    electrons[:] = rows[:, nx - 1 :: -1] if flip_x else rows[:, :nx]
    return np.ascontiguousarray(rows[:, nx:])


def to_measured(electrons: F32, amp: Amplifier) -> None:
    """Electrons to the DN that the electronics give: gain, then non-linearity. In place."""
    for rows in bands(len(electrons)):
        band = electrons[rows]
        band /= np.float32(amp.gain)
        if amp.a or amp.b:
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
    for rows in bands(len(images[0])):
        originals = np.stack([view[rows] for view in views])
        flat = originals.reshape(4, -1)
        added = (matrix.astype(np.float32) @ flat).reshape(originals.shape)
        for view, part in zip(views, added, strict=True):
            view[rows] += part


def bias_structure(seed: int, camera: Camera, rcid: int) -> tuple[F32, F32]:
    """Fixed bias pattern (DN) beyond its level, as a row (nx) and a column (ny) that add: columns, ramp.

    In stored order. The overscan sees the column, but not the row.
    """
    rng = seeded(seed, "bias", rcid)
    flip_y = read_order(identity.ccd_qid_of(rcid)[1])[1]
    row = rng.normal(0, 0.35, camera.nx)
    column = rng.uniform(0.5, 2.5) * np.exp(-np.arange(camera.ny) / (0.05 * camera.ny))
    return row.astype(np.float32), (column[::-1] if flip_y else column).astype(np.float32)


def side_glow(seed: int, camera: Camera, rcid: int, expid: int) -> F32:
    """Glow of the amplifier along every row (DN; nx, stored order): exponential over its first 300 columns.

    As strong as the channel's, a little different in every exposure.
    """
    rng = seeded(seed, "glow", rcid)
    size = rng.uniform(0.5, 1.0) * SIDE_GLOW[0] * (1 + SIDE_GLOW_SPREAD * seeded(seed, "glow", rcid, expid).normal())
    row = size * np.exp(-np.arange(camera.nx) / SIDE_GLOW[1])
    flip_x = read_order(identity.ccd_qid_of(rcid)[1])[0]
    return (row[::-1] if flip_x else row).astype(np.float32)


def floating_bias(rng: np.random.Generator, camera: Camera, qid: int) -> F32:
    """Bias level of every row (stored order) about its mean: smooth drift and jitter, DN."""
    t = np.linspace(0, 1, camera.ny)
    drift = ROW_DRIFT * (rng.normal() * (t - 0.5) + 0.5 * rng.normal() * np.sin(2 * np.pi * (t + rng.uniform())))
    wander = ndimage.gaussian_filter1d(rng.normal(0, 1, camera.ny), 0.05 * camera.ny, mode="nearest")
    drift += 0.3 * ROW_DRIFT * wander / max(float(wander.std()), 1e-9)
    drift += rng.normal(0, ROW_JITTER, camera.ny)
    level = drift + rng.normal(0, 1.5)  # the level as a whole changes between exposures
    return (level[::-1] if read_order(qid)[1] else level).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """What the electronics add, DN: ``rows`` (ny) to image and overscan, ``columns`` (nx) to the image."""

    rows: F32
    columns: F32


def bias_of(rng: np.random.Generator, seed: int, camera: Camera, amp: Amplifier, expid: int, effects: Effects) -> Bias:
    """The bias of an exposure: level, fixed pattern, side glow, floating level."""
    rows = np.full(camera.ny, amp.bias, np.float32)
    columns = np.zeros(camera.nx, np.float32)
    if effects.bias_structure:
        row, column = bias_structure(seed, camera, amp.rcid)
        rows += column
        columns += row
    if effects.side_glow:
        columns += side_glow(seed, camera, amp.rcid, expid)
    if effects.floating_bias:
        rows += floating_bias(rng, camera, identity.ccd_qid_of(amp.rcid)[1])
    return Bias(rows, columns)


def trailed_charge(measured: F32, n_overscan: int, qid: int) -> F32:
    """DN (ny, n_overscan) that the last pixel of every row leaves in the overscan read right after it."""
    last = measured[:, 0] if read_order(qid)[0] else measured[:, -1]
    decay = (TRAIL[0] * np.exp(-np.arange(n_overscan) / TRAIL[1])).astype(np.float32)
    return np.asarray(last[:, None] * decay[None, :], np.float32)


def read_out(rng: np.random.Generator, measured: F32, overscan: F32, bias: Bias, sigma: float) -> tuple[U16, U16]:
    """Measured DN without bias to raw image (ny, nx) and overscan (ny, n_overscan): bias, read noise, digitising.

    ``sigma`` is the read noise in DN. ``measured`` and ``overscan`` are used as scratch.
    """
    overscan += bias.rows[:, None]
    if sigma > 0:
        overscan += np.float32(sigma) * rng.standard_normal(overscan.shape, dtype=np.float32)
    image = np.empty(measured.shape, np.uint16)
    for rows in bands(len(measured)):
        band = measured[rows]
        if sigma > 0:
            noise = rng.standard_normal(band.shape, dtype=np.float32)
            noise *= np.float32(sigma)
            band += noise
        band += bias.columns[None, :]
        band += bias.rows[rows, None]
        image[rows] = digitise(band)
    return image, digitise(overscan)


def digitise(dn: F32) -> U16:
    """Round and clip to the converter's range."""
    np.rint(dn, out=dn)
    return np.clip(dn, 0, ADC_MAX, out=dn).astype(np.uint16)
