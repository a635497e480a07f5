"""Filters that no scene of stars excites, however they lie and blend, and that what particles leave does.

What the sky sends is a sum of point sources of the width w or more, none of them negative: stars, blends, galaxies,
trails, the sky itself. On a few pixels such scenes fill a convex cone. A particle's charge lies outside of it, and what
remains of it after the best non-negative fit of stars (of any number, anywhere) is a filter h: h . scene <= 0 for
every scene of the cone, h . particle > 0, and among all filters of which the first is true and whose noise is the same
it answers the particle most. (The residual of a projection onto a convex cone lies in the cone's polar; Lawson &
Hanson 1974 for the fit.) So the test asks whether *any* picture of the sky explains the pixels, without finding one.

The particles' shapes are points, straight pieces of tracks, and rectangles, as the curls that an electron draws before
it stops are at the scale of a pixel; all spread by the diffusion of the charge in the silicon.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import ndtr

from stream.core.records import F32

F64 = NDArray[np.float64]

RADIUS = 2  # px: windows are 5 x 5
SIZE = 2 * RADIUS + 1
CENTRE = SIZE * SIZE // 2
DIFFUSION = 0.3  # px: Gaussian spread of charge in thin silicon on its way to the gates, 5 of 15 um
BETA = 3.5  # of the Moffat discs that stars are
WIDTHS = tuple(1.3 * 1.03**k for k in range(20))  # px, FWHM that filters are made for; above 2.3 nothing is gained
_OFFSETS = np.arange(-RADIUS, RADIUS + 1)
_SAMPLE = 0.25  # px along a shape
_FINE = (np.arange(5) - 2) / 5  # a pixel's parts for its integral
_STARS = np.arange(-3.5, 3.6, 0.25)  # px, where the cone's stars lie along each axis: outside of the window too
_OFF_CENTRE = 0.6  # a shape is used where the middle pixel gets at least so much of its brightest one


def star(y: float, x: float, fwhm: float) -> F64:
    """Pixels (25,) of a star at an offset from the window's middle; ``fwhm`` has the pixel in it."""
    # A pixel's width adds 0.9 px in quadrature: measured on integrated discs.
    alpha2 = max(fwhm**2 - 0.81, 0.3) / 4 / (2 ** (1 / BETA) - 1)
    fine = (_OFFSETS[:, None] + _FINE).ravel()
    disc = (1 + ((fine - y)[:, None] ** 2 + (fine - x)[None, :] ** 2) / alpha2) ** -BETA
    return np.asarray(disc.reshape(SIZE, 5, SIZE, 5).sum(axis=(1, 3)).ravel())


def _charge(y: F64, x: F64) -> F64:
    """Pixels (25,) of charge left at places and spread by diffusion."""
    rows, columns = (
        ndtr((_OFFSETS + 0.5 - at[:, None]) / DIFFUSION) - ndtr((_OFFSETS - 0.5 - at[:, None]) / DIFFUSION)
        for at in (y, x)
    )
    return np.asarray((rows.T @ columns).ravel())


def _rectangle(length: float, width: float, shift: tuple[float, float], angle: float) -> tuple[F64, F64]:
    """Places in a rectangle of any direction; its middle lies ``shift`` (along, across) from the window's."""
    n, m = (round(side / _SAMPLE) + 1 for side in (length, width))
    along, across = (
        part.ravel() for part in np.meshgrid(np.linspace(-0.5, 0.5, n) * length, np.linspace(-0.5, 0.5, m) * width)
    )
    if n == 1:
        along = np.zeros_like(along)
    if m == 1:
        across = np.zeros_like(across)
    along, across = along + shift[0], across + shift[1]
    c, s = math.cos(angle), math.sin(angle)
    return along * s + across * c, along * c - across * s


def _shapes() -> tuple[list[tuple[F64, F64]], list[tuple[F64, F64]]]:
    """Thin shapes (points at 25 phases, pieces of lines in 8 directions), and broad ones: rectangles to 8 sides."""
    phases = np.linspace(-0.5, 0.5, 5)
    thin = [(np.array([y]), np.array([x])) for y in phases for x in phases]
    broad = []
    for k in range(8):
        angle = math.pi * k / 8
        for length, middles in ((1.0, (-0.5, 0.0, 0.5)), (2.0, (-0.5, 0.0, 0.5)), (4.0, (0.0,))):
            thin += [_rectangle(length, 0.0, (middle, 0.0), angle) for middle in middles]
        for width in (1.0, 2.0, 3.0):
            for length in (1.0, 3.0):
                broad += [_rectangle(length, width, (0.0, width / 2 - off), 2 * angle) for off in (0.0, 0.5)]
    return thin, broad


@lru_cache(maxsize=len(WIDTHS))
def filters(fwhm: float) -> tuple[F32, int]:
    """Filters of unit noise for stars of a width (px) or wider: (n, 25), read-only; how many, the first, are of thin
    shapes. 0.1 s, once a width."""
    stars = np.stack([star(y, x, fwhm) for y in _STARS for x in _STARS], axis=1)
    cone = np.column_stack([stars / np.linalg.norm(stars, axis=0), np.full(len(stars), 1 / SIZE)])
    thin, broad = ([_filter(cone, charge) for charge in _charges(shapes)] for shapes in _shapes())
    out = np.array(thin + broad, np.float32)
    out.flags.writeable = False
    return out, len(thin)


def _charges(shapes: list[tuple[F64, F64]]) -> list[F64]:
    """Pixels of the shapes whose middle one is among the brightest."""
    charges = [_charge(y, x) for y, x in shapes]
    return [charge / np.linalg.norm(charge) for charge in charges if charge[CENTRE] >= _OFF_CENTRE * charge.max()]


def _filter(cone: F64, charge: F64) -> F64:
    """What remains of a particle's charge after the best fit of stars, of unit noise."""
    rest = charge - cone @ nnls(cone, charge, maxiter=1000)[0]
    return np.asarray(rest / np.linalg.norm(rest))
