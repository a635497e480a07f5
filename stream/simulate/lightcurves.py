"""How bright what varies is at a time: periodic and eruptive stars, faders, transients.

A source's ``mags`` are its own at rest: the mean of a pulsating star, the quiet level of an eruptive one, the light
of a fader before it faded, and of a transient its light at the Julian date ``anchor``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Table = NDArray[np.void]

VARIETIES = (
    "", "pulsator", "rr_lyrae", "eclipsing", "flare", "dwarf_nova", "fader", "supernova", "nuclear", "hostless",
)  # fmt: skip
PLAIN, PULSATOR, RR_LYRAE, ECLIPSING, FLARE, DWARF_NOVA, FADER, SUPERNOVA, NUCLEAR, HOSTLESS = range(len(VARIETIES))
PERIODIC = (PULSATOR, RR_LYRAE, ECLIPSING)
TRANSIENTS = (SUPERNOVA, NUCLEAR, HOSTLESS)

VANISHED = 35.0  # mag that nothing shows of: fainter is not told apart
RR_RISE = 0.15  # of the cycle, in which an RR Lyrae star brightens
ECLIPSE_HALF = 0.07  # of the cycle, half the width of an eclipse
PLATEAU = 0.4  # of the fall, that a dwarf nova's outburst stays at its top
ZERO_PHASE = 2_458_000.0  # Julian date of phase zero
# Light curves of (table, jd): mag to add to ``mags``.
Curve = Callable[[Table, float], F64]


def phases(table: Table, jd: float) -> F64:
    """Cycles since phase zero, 0 to 1."""
    period = np.where(table["period"] > 0, table["period"], 1.0).astype(float)
    return np.asarray(((jd - ZERO_PHASE) / period + table["phase"]) % 1.0)


def pulsation(table: Table, jd: float) -> F64:
    """A sine of half range ``amplitude``."""
    return np.asarray(table["amplitude"] * np.sin(2 * np.pi * phases(table, jd)))


def sawtooth(table: Table, jd: float) -> F64:
    """RR Lyrae: up in an eighth of the cycle, down in the rest; mean zero, half range ``amplitude``."""
    phase = phases(table, jd)
    shape = np.where(phase < RR_RISE, 1.0 - 2.0 * phase / RR_RISE, 2.0 * (phase - RR_RISE) / (1.0 - RR_RISE) - 1.0)
    return np.asarray(table["amplitude"] * shape)


def eclipses(table: Table, jd: float) -> F64:
    """Two eclipses a cycle, the deep one of depth ``2 amplitude``, the other of half of it."""
    phase = phases(table, jd)
    deep = np.maximum(0.0, 1.0 - np.minimum(phase, 1.0 - phase) / ECLIPSE_HALF)
    shallow = np.maximum(0.0, 1.0 - np.abs(phase - 0.5) / ECLIPSE_HALF)
    return np.asarray(2.0 * table["amplitude"] * (deep + 0.5 * shallow))


def flares(table: Table, jd: float) -> F64:
    """One flare: up by ``amplitude`` mag at ``t0``, the added light gone by 1/e in ``fall`` days."""
    age = jd - table["t0"]
    light = np.where(age >= 0, np.exp(-np.maximum(age, 0.0) / np.maximum(table["fall"], 1e-6)), 0.0)
    return np.asarray(-2.5 * np.log10(1.0 + (10 ** (0.4 * table["amplitude"].astype(float)) - 1.0) * light))


def outbursts(table: Table, jd: float) -> F64:
    """Dwarf novae: every ``period`` days from ``t0``, up by ``amplitude`` mag in ``rise`` days, down in ``fall``."""
    fall, rise = table["fall"].astype(float), table["rise"].astype(float)
    age = np.mod(jd - table["t0"], np.where(table["period"] > 0, table["period"], np.inf).astype(float))
    up = np.minimum(age / np.maximum(rise, 1e-6), 1.0 - (age - rise - PLATEAU * fall) / np.maximum(fall, 1e-6))
    return np.asarray(-table["amplitude"] * np.clip(up, 0.0, 1.0))


def fading(table: Table, jd: float) -> F64:
    """Down by ``amplitude`` mag about ``t0``, within some ``fall`` days."""
    floor = 10 ** (-0.4 * table["amplitude"].astype(float))
    x = np.clip((jd - table["t0"]) / np.maximum(table["fall"], 1e-6), -50, 50)
    return np.asarray(-2.5 * np.log10(floor + (1.0 - floor) / (1.0 + np.exp(x))))


def explosions(table: Table, jd: float) -> F64:
    """Bazin et al. (2011)'s rise and fall: exp(-t / fall) / (1 + exp(-t / rise)) with t from ``t0``."""
    return np.asarray(-2.5 * (_bazin(table, np.full(len(table), jd)) - _bazin(table, table["anchor"])))


def _bazin(table: Table, jd: F64) -> F64:
    """Log10 of the light at a time, up to a constant."""
    t = jd - table["t0"]
    rise, fall = table["rise"].astype(float), table["fall"].astype(float)
    return np.asarray((-t / fall - np.logaddexp(0.0, -t / rise)) / np.log(10.0))


CURVES: dict[int, Curve] = {
    PULSATOR: pulsation,
    RR_LYRAE: sawtooth,
    ECLIPSING: eclipses,
    FLARE: flares,
    DWARF_NOVA: outbursts,
    FADER: fading,
    SUPERNOVA: explosions,
    NUCLEAR: explosions,
    HOSTLESS: explosions,
}


def magnitudes_at(table: Table, jd: float, fid: int) -> tuple[F64, F64]:
    """PS1 magnitude in the filter at a time, and the colour that the zero point's colour term takes."""
    mags = table["mags"].astype(float)
    m = mags[:, fid - 1].copy()
    for variety in np.unique(table["variety"][table["variety"] != PLAIN]):
        some = np.flatnonzero(table["variety"] == variety)
        m[some] += CURVES[int(variety)](table[some], jd)
    colour = mags[:, 0] - mags[:, 1] if fid in (1, 2) else mags[:, 1] - mags[:, 2]
    return np.minimum(m, VANISHED), colour
