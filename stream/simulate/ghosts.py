"""Light of bright stars where no star is: far aureoles, halos, counter-moving ghosts, diffraction spikes.

Brightness is a share of the star's flux, so that nothing needs a list of exceptions; what falls below the noise costs
nothing because it is not painted.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from stream.core.ghosts import GHOST_VMAG, GhostGeometry, sees
from stream.simulate import fields
from stream.simulate.optics import Place
from stream.simulate.plan import seeded
from stream.simulate.truth import Columns

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

HALO_RADIUS = 367.0  # arcsec, measured around stars of V <= 6.5 in real masks
HALO_VMAG = 7.0  # a little beyond what gets a mask: nothing ends at a catalogue's limit
HALO_LIGHT = 3e-8  # of the star's flux per pixel: 10 DN for V = 5
GHOST_LIGHT = 5e-8
FAINTEST = 0.1  # DN per pixel: halos and ghosts below a fiftieth of the sky's noise are left out
EDGE = 4.0  # px over which a disc's edge fades
# Diffraction at the spider: light per px of each of four arms at r px is SPIKE_LIGHT / r^2 of the star's flux, some
# 1e-6 in a pixel 27 px from the saturated stars of the real cut-outs.
SPIKE_LIGHT = 2.5e-3
SPIKE_FAINTEST = 0.4  # DN, where an arm ends
SPIKE_START = 12.0  # px: inside it is part of the PSF, whose 25 px count as the star
# The far aureole: FAR_LIGHT / (r^2 + 15^2) of the flux per pixel, which joins the PSF's own wings at 20 px and
# is what the saturated stars of the real cut-outs show out to 60 px (docs/simulator.md).
FAR_LIGHT, FAR_CORE, FAR_REACH, FAR_STEP = 7e-4, 15.0, 480, 8


@lru_cache(maxsize=4)
def true_geometry(seed: int) -> GhostGeometry:
    """Where this camera's ghosts fall and how bright they are: within some percent of the nominal."""
    rng = seeded(seed, "ghosts")
    scale, radius, inner = 1 + rng.uniform(-0.05, 0.05, 3)
    xi0, eta0 = rng.uniform(-0.05, 0.05, 2)
    return GhostGeometry(
        -float(scale), float(xi0), float(eta0), 180.0 * float(radius), 60.0 * float(inner),
        GHOST_LIGHT * float(1 + rng.uniform(-0.05, 0.05)),
    )  # fmt: skip


def paint_far_light(image: F32, x: F64, y: F64, flux: F64) -> None:
    """Add the far aureoles of all sources: their light, binned by 8 px, spread by one convolution."""
    if len(x) == 0:
        return
    ny, nx = image.shape
    margin = FAR_REACH // FAR_STEP
    gx, gy = (n // FAR_STEP + 2 * margin + 1 for n in (nx, ny))
    # Bin b of an axis is centred at (b - margin) FAR_STEP + (FAR_STEP - 1) / 2 px; light is shared between neighbours.
    first = (FAR_STEP - 1) / 2 - margin * FAR_STEP
    px, py = (x - first) / FAR_STEP, (y - first) / FAR_STEP
    inside = (px >= 0) & (px < gx - 1) & (py >= 0) & (py < gy - 1)
    px, py, light = px[inside], py[inside], flux[inside]
    bx, by = px.astype(int), py.astype(int)
    tx, ty = px - bx, py - by
    grid = np.zeros(gx * gy)
    for sx, wx in ((0, 1 - tx), (1, tx)):
        for sy, wy in ((0, 1 - ty), (1, ty)):
            grid += np.bincount((by + sy) * gx + bx + sx, light * wx * wy, gx * gy)
    kernel = _far_kernel()
    size = [fft.next_fast_len(n + len(kernel) - 1, real=True) for n in (gy, gx)]
    product = fft.rfft2(grid.reshape(gy, gx).astype(np.float32), size) * fft.rfft2(kernel, size)
    spread = fft.irfft2(product, size)[margin : margin + gy, margin : margin + gx]
    used = spread[margin - 1 : gy - margin + 1, margin - 1 : gx - margin + 1]
    fields.add(image, fields.spread(used, image.shape, (FAR_STEP - 1) / 2 - FAR_STEP, FAR_STEP))


@lru_cache(maxsize=1)
def _far_kernel() -> F32:
    """The far aureole per pixel on a grid of ``FAR_STEP`` px, fading to nothing at ``FAR_REACH`` and inside the PSF."""
    margin = FAR_REACH // FAR_STEP
    r = FAR_STEP * np.hypot(*np.mgrid[-margin : margin + 1, -margin : margin + 1])
    fade = np.clip(1.0 - r / FAR_REACH, 0.0, 1.0) * (1.0 - np.exp(-((r / 14.0) ** 4)))
    return np.asarray(FAR_LIGHT * fade / (r**2 + FAR_CORE**2), np.float32)


def paint_disc(image: F32, x: float, y: float, radii: tuple[float, float], light: float) -> int:
    """Add a disc of ``light`` DN per px between an inner and an outer radius (px); returns the pixels it reaches."""
    ny, nx = image.shape
    inner, outer = radii
    reach = outer + EDGE
    low, high = max(0, math.floor(y - reach)), min(ny, math.ceil(y + reach) + 1)
    left, right = max(0, math.floor(x - reach)), min(nx, math.ceil(x + reach) + 1)
    if low >= high or left >= right:
        return 0
    r2 = (np.arange(low, high, dtype=np.float32)[:, None] - np.float32(y)) ** 2
    r2 = r2 + (np.arange(left, right, dtype=np.float32) - np.float32(x)) ** 2
    r = np.sqrt(r2)
    disc = np.clip((np.float32(outer) - r) / np.float32(EDGE) + np.float32(0.5), 0, 1)
    if inner > 0:
        disc *= np.clip((r - np.float32(inner)) / np.float32(EDGE) + np.float32(0.5), 0, 1)
    image[low:high, left:right] += np.float32(light) * disc
    return int(np.count_nonzero(disc))


def paint_halos(image: F32, stars: Columns, place: Place) -> list[Columns]:
    """Add the co-moving reflections of bright stars, discs about the stars themselves.

    ``stars`` holds truth_id, v, flux (DN) and x, y (px) of bright stars anywhere. Returns the halos' truth.
    """
    radius = HALO_RADIUS / place.camera.pixel_scale
    rows = []
    for k in np.flatnonzero((stars["v"] <= HALO_VMAG) & (HALO_LIGHT * stars["flux"] > FAINTEST)):
        x, y, light = float(stars["x"][k]), float(stars["y"][k]), HALO_LIGHT * float(stars["flux"][k])
        npix = paint_disc(image, x, y, (0.0, radius), light)
        if npix:
            rows.append(_row("halo", stars, int(k), x, y, npix, light, {"radius": radius}))
    return rows


def paint_ghosts(image: F32, stars: Columns, place: Place, geometry: GhostGeometry) -> list[Columns]:
    """Add the counter-moving reflections; ``stars`` as for halos, with xi and eta (deg) in the focal plane.

    Returns the truth of those that reach this quadrant.
    """
    rows = []
    scale = place.camera.pixel_scale
    inner, outer = geometry.inner_radius / scale, geometry.radius / scale
    seen = sees(stars["xi"], stars["eta"]) & (stars["v"] <= GHOST_VMAG)
    xs, ys = place.pixels_of(*geometry.place(stars["xi"], stars["eta"]))
    for k in np.flatnonzero(seen & (geometry.fraction * stars["flux"] > FAINTEST)):
        light = geometry.fraction * float(stars["flux"][k])
        npix = paint_disc(image, float(xs[k]), float(ys[k]), (inner, outer), light)
        if npix:
            shape = {"radius": outer, "inner_radius": inner}
            rows.append(_row("ghost", stars, int(k), float(xs[k]), float(ys[k]), npix, light, shape))
    return rows


def paint_spikes(image: F32, stars: Columns, angle: float, fwhm: float) -> list[Columns]:
    """Add four arms along and across ``angle`` (rad from x towards y) to every star bright enough to show them.

    ``stars`` holds truth_id, flux, x and y of any stars.
    """
    rows = []
    sigma = fwhm / 2.355
    peak = SPIKE_LIGHT / (math.sqrt(2 * math.pi) * sigma)
    lengths = np.sqrt(peak * np.maximum(stars["flux"], 0) / SPIKE_FAINTEST)
    ny, nx = image.shape
    for k in np.flatnonzero(lengths > 3 * SPIKE_START):
        x, y, length = float(stars["x"][k]), float(stars["y"][k]), float(lengths[k])
        if not (-length < x < nx + length and -length < y < ny + length):
            continue
        npix = sum(
            _arm(image, (x, y), angle + quarter * math.pi / 2, length, float(stars["flux"][k]), sigma)
            for quarter in range(4)
        )
        if npix:
            row = _row("spikes", stars, int(k), x, y, npix, SPIKE_LIGHT, {"length": length})
            rows.append({**row, "angle": math.degrees(angle)})
    return rows


def _arm(image: F32, place: tuple[float, float], angle: float, length: float, flux: float, sigma: float) -> int:
    """One arm of a spike from a star outwards; returns its pixels on the image."""
    c, s = math.cos(angle), math.sin(angle)
    flat = abs(c) >= abs(s)
    target = image if flat else image.T
    (x0, y0), (run, rise) = (place, (c, s)) if flat else (place[::-1], (s, c))
    sign = 1 if run > 0 else -1
    ends = sorted((x0 + sign * SPIKE_START * 0.3, x0 + length * run))
    along = np.arange(max(0, math.ceil(ends[0])), min(target.shape[1] - 1, math.floor(ends[1])) + 1)
    if not len(along):
        return 0
    r = (along - x0) / run
    centre = y0 + r * rise
    reach = math.ceil(4 * sigma) + 1
    rows = np.rint(centre).astype(int)[None, :] + np.arange(-reach, reach + 1)[:, None]
    light = flux * SPIKE_LIGHT / r**2 * (1 - np.exp(-((r / SPIKE_START) ** 4)))
    distance = (rows - centre[None, :]) * abs(run)
    values = light / (math.sqrt(2 * math.pi) * sigma) * np.exp(-0.5 * (distance / sigma) ** 2)
    inside = (rows >= 0) & (rows < target.shape[0])
    columns = np.broadcast_to(along[None, :], rows.shape)
    target[rows[inside], columns[inside]] += values[inside].astype(np.float32)
    return int(np.count_nonzero(values[inside] > SPIKE_FAINTEST / 2))


def _row(
    kind: str, stars: Columns, k: int, x: float, y: float, npix: int, light: float, shape: dict[str, float]
) -> Columns:
    return {
        "kind": kind, "truth_id": int(stars["truth_id"][k]), "x": x, "y": y, "npix": npix, "strength": light,
        "parameters": json.dumps(shape),
    }  # fmt: skip
