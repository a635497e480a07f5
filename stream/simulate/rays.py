"""Charged particles in the silicon: muons, Compton electrons that curl like worms, short hits; charge diffuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

COSMIC_RATE = 1.6e-7  # hits per pixel and second: 45 in 30 s on a full quadrant
KINDS = ("muon", "worm", "spot")
SHARES = (0.4, 0.35, 0.25)
THICKNESS = 1.0  # of the sensitive silicon in px, 15 um
STEP = 0.25  # px along a path
MUON = 1200.0  # e- per px of path: 80 e-/um (minimum ionising)
LONGEST = 200.0  # px
DIFFUSION = 0.3  # px: Gaussian spread of charge on its way to the gates
FAINTEST = 5.0  # e-, what a pixel must get to be in the truth


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One particle: its kind, mean place (px), flat indices of the pixels and the e- it put there."""

    kind: str
    x: float
    y: float
    pixels: I32
    values: F32


def cosmic_rays(rng: np.random.Generator, electrons: F32, seconds: float) -> list[Hit]:
    """Add the particles of so many seconds (exposure and mean time until readout); returns those on the image."""
    ny, nx = electrons.shape
    hits = []
    for _ in range(int(rng.poisson(COSMIC_RATE * nx * ny * seconds))):
        kind = KINDS[int(rng.choice(3, p=SHARES))]
        xs, ys, charge = {"muon": _muon, "worm": _worm, "spot": _spot}[kind](rng)
        hit = _deposit(electrons, kind, xs + rng.uniform(-0.5, nx - 0.5), ys + rng.uniform(-0.5, ny - 0.5), charge)
        if hit is not None:
            hits.append(hit)
    return hits


def _muon(rng: np.random.Generator) -> tuple[F64, F64, F64]:
    """A straight track: as long as the silicon is thick times tan of the angle; grazing ones are rare and long."""
    cosine = max(rng.uniform() ** (1 / 3), 1e-3)  # flux ~ cos^2, area seen ~ cos
    length = min(THICKNESS * math.sqrt(1 / cosine**2 - 1), LONGEST)
    path = math.hypot(length, THICKNESS)
    n = max(1, math.ceil(path / STEP))
    angle = rng.uniform(0, 2 * math.pi)
    along = (np.arange(n) + 0.5) / n * length
    # Energy loss fluctuates with a long tail (Landau): a gamma of shape 4 over a px, and knock-on electrons.
    charge = MUON * path / n * rng.gamma(4 * STEP, 1 / (4 * STEP), n)
    return along * math.cos(angle), along * math.sin(angle), charge


def _worm(rng: np.random.Generator) -> tuple[F64, F64, F64]:
    """A Compton electron: scattered ever more as it slows down, and ionising more towards its end."""
    n = 8 + int(min(rng.exponential(32.0), 400))
    left = 1.0 - (np.arange(n) + 0.5) / n  # of its range
    turns = rng.normal(0, 1, n) * 0.3 / np.sqrt(left + 0.03)
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    # It also leaves the plane of the detector; what is seen of a step is its projection.
    flat = np.abs(np.cos(np.cumsum(turns[::-1]) * 0.5))
    charge = 0.8 * MUON * STEP / np.sqrt(left + 0.05) * rng.gamma(4 * STEP, 1 / (4 * STEP), n)
    return np.cumsum(STEP * flat * np.cos(angles)), np.cumsum(STEP * flat * np.sin(angles)), charge


def _spot(rng: np.random.Generator) -> tuple[F64, F64, F64]:
    """All charge in one place: an X-ray, an alpha particle, a muon from straight above."""
    return np.zeros(1), np.zeros(1), np.array([math.exp(rng.normal(math.log(1500.0), 0.8))])


def _deposit(electrons: F32, kind: str, xs: F64, ys: F64, charge: F64) -> Hit | None:
    """Spread the charge of a path's points over the pixels around them; None if no pixel of the image gets any."""
    ny, nx = electrons.shape
    margin = math.ceil(4 * DIFFUSION) + 1
    left, low = math.floor(xs.min()) - margin, math.floor(ys.min()) - margin
    right, high = math.ceil(xs.max()) + margin, math.ceil(ys.max()) + margin
    edges_x, edges_y = np.arange(left, right + 2) - 0.5, np.arange(low, high + 2) - 0.5
    weight_x = np.diff(ndtr((edges_x[None, :] - xs[:, None]) / DIFFUSION), axis=1)
    weight_y = np.diff(ndtr((edges_y[None, :] - ys[:, None]) / DIFFUSION), axis=1)
    stamp = (weight_y * charge[:, None]).T @ weight_x
    rows, columns = np.nonzero(stamp > FAINTEST)
    y, x = rows + low, columns + left
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    if not inside.any():
        return None
    values = stamp[rows[inside], columns[inside]].astype(np.float32)
    x, y = x[inside], y[inside]
    electrons[y, x] += values
    return Hit(kind, float(x.mean()), float(y.mean()), (y * nx + x).astype(np.int32), values)
