"""Made-up false candidates that widen the network's training: bad subtractions and cosmic rays on examples' stamps.

The project's own pipeline registers to hundredths of a pixel, so its nights hold few dipoles; another night, or
another camera, may be full of them. Everything works on triplets as ``features.triplet`` makes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import STAMP_SIDE

F32 = NDArray[np.float32]
CENTRE = STAMP_SIDE // 2
# A star is looked for so far (px) from the centre: what wraps around when it is moved there stays at the rim.
REACH = 18
# In noise: fainter stars leave no residual to speak of.
MIN_STAR = 15.0
# Peaks of the made residuals in noise: from the search's threshold to a bright star's.
PEAKS = (6.0, 80.0)
COSMIC_SHARE = 0.3


def make_artefacts(triplets: NDArray[Any], rng: np.random.Generator) -> F32:
    """A false candidate at the centre of each example's surroundings, (n, 63, 63, 3).

    Three in ten are cosmic rays on the science stamp. The others sit on the brightest star near the centre: half of
    them dipoles (the star moved between the stamps), half rings (its PSF differed); without a star, a cosmic ray again.
    """
    return np.stack([_artefact(np.sinh(one.astype(np.float32)), rng) for one in triplets])


def _artefact(stamps: F32, rng: np.random.Generator) -> F32:
    """One example in units of noise, changed, and compressed again."""
    star = _brightest(stamps[..., 1])
    if rng.random() < COSMIC_SHARE or stamps[star][1] < MIN_STAR or stamps[star][0] < MIN_STAR:
        changed = _cosmic_ray(stamps, rng)
    else:
        changed = _bad_subtraction(_centred(stamps, star), rng)
    out: F32 = np.arcsinh(changed)
    return out


def _brightest(image: F32) -> tuple[int, int]:
    """Brightest pixel near the centre."""
    inner = image[CENTRE - REACH : CENTRE + REACH + 1, CENTRE - REACH : CENTRE + REACH + 1]
    y, x = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return int(y) + CENTRE - REACH, int(x) + CENTRE - REACH


def _centred(stamps: F32, place: tuple[int, int]) -> F32:
    return np.roll(stamps, (CENTRE - place[0], CENTRE - place[1]), (0, 1))


def _bad_subtraction(stamps: F32, rng: np.random.Generator) -> F32:
    """Add the gradient (dipole) or the curvature (ring) of the star at the centre to the difference."""
    down, right = np.gradient(stamps[..., 0])
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        residual = np.cos(angle) * right + np.sin(angle) * down
    else:
        residual = np.gradient(down, axis=0) + np.gradient(right, axis=1)
        residual *= rng.choice((-1.0, 1.0))
    near = residual[CENTRE - 3 : CENTRE + 4, CENTRE - 3 : CENTRE + 4]
    y, x = np.unravel_index(int(np.argmax(near)), near.shape)
    peak = max(float(near[y, x]), 1e-3)
    out = stamps.copy()
    out[..., 2] += residual * np.float32(np.exp(rng.uniform(*np.log(PEAKS))) / peak)
    return _centred(out, (CENTRE - 3 + int(y), CENTRE - 3 + int(x)))


def _cosmic_ray(stamps: F32, rng: np.random.Generator) -> F32:
    """A walk of one to seven bright pixels on science and difference, where the field was moved at random."""
    out = np.roll(stamps, rng.integers(-REACH, REACH + 1, 2), (0, 1))
    y, x = CENTRE, CENTRE
    step = rng.integers(-1, 2, 2)
    peak = np.float32(np.exp(rng.uniform(*np.log(PEAKS))))
    for _ in range(int(rng.integers(1, 8))):
        out[y, x, [0, 2]] += peak * np.float32(rng.uniform(0.5, 1.0))
        step = rng.integers(-1, 2, 2) if rng.random() < 0.3 else step
        y, x = int(np.clip(y + step[0], 0, STAMP_SIDE - 1)), int(np.clip(x + step[1], 0, STAMP_SIDE - 1))
    return out
