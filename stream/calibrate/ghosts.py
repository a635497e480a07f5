"""Ghosts of bright stars (mask bit 5): predicted from the geometry of the reflection, and that geometry from images.

A ghost moves against its star, so only the boresight's place on the sky is needed to predict it. The pointing in the
header is good to some arcminutes, a ghost's radius is three: the boresight is taken from the solved quadrant and the
nominal layout of the camera. What the layout is wrong by (0.02 deg) is the same in all exposures of a channel and
ends in the geometry's offset, so each channel has its own.

``calibrate_ghosts``: every star that should have a ghost on a quadrant votes with the light that a ring of the
nominal size collects at each place (sky binned 16 x 16 by medians, which stars do not move), over all exposures;
the best scale and offset start a least-squares fit in which each ghost has its own brightness on a plane of sky.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy import ndimage, optimize

from stream.calibrate.halos import gnomonic
from stream.core.camera import deproject, quadrant_layout
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.ghosts import FIELD_HALF_SIDE, GHOST_VMAG, GhostGeometry, sees
from stream.core.records import F32, U16, ScienceImage, Table

F64 = NDArray[np.float64]

CELL = 16  # px; the scale on which smooth light is judged
# Less light than this, in units of the sky's noise in a cell, is nothing that anybody could find. Star fluxes are
# predicted from V, to some tenths of a magnitude: the limit is a little below one.
FAINTEST = 0.7
NEAR = 2.2  # a ghost's surroundings, in its radii: the plane of sky under it
SCALES = np.linspace(-1.06, -0.94, 25)
OFFSETS = np.arange(-0.15, 0.151, 0.015)  # deg: a third of a ghost's radius
# How far from the nominal values a reflection can be: weak priors for a channel that saw one star only.
PRIOR = {"scale": 0.05, "offset": 0.1, "radius": 0.1}
MIN_GHOSTS = 2  # significant ones, for a fit that is worth its name
MIN_SNR = 5.0


@dataclass(frozen=True, slots=True)
class FocalPlane:
    """Where a solved image lies in the camera's field.

    ``boresight`` (ra, dec; deg). ``to_pixel`` (2, 3): px = to_pixel @ (xi, eta, 1), affine, good to 3 arcsec.
    """

    boresight: tuple[float, float]
    to_pixel: F64

    def pixels(self, xi: F64, eta: F64) -> tuple[F64, F64]:
        """Pixel places (first is 0) of offsets (deg) from the boresight."""
        x, y = self.to_pixel @ np.stack([np.ravel(xi), np.ravel(eta), np.ones(np.size(xi))])
        return x.reshape(np.shape(xi)), y.reshape(np.shape(xi))


def focal_plane(wcs: WCS, rcid: int, shape: tuple[int, ...], pointing: tuple[float, float]) -> FocalPlane:
    """The focal plane of a solved image of a readout channel; ``pointing`` (deg) starts the search for the boresight.

    The WCS has its CRPIX at the quadrant's centre, as all of the survey and of ours have, cut-outs too.
    """
    xi, eta = (float(v) for v in quadrant_layout()[rcid])
    crpix = wcs.wcs.crpix
    ra, dec = (float(v) for v in wcs.all_pix2world(crpix[0], crpix[1], 1))
    ra0, dec0 = pointing if np.isfinite(pointing).all() else (ra, dec)
    for _ in range(6):
        # Where the quadrant's centre would be, against where it is: the boresight moves by as much.
        dx, dy = gnomonic(ra, dec, *deproject(ra0, dec0, xi, eta))
        ra0, dec0 = deproject(ra0, dec0, math.degrees(dx), math.degrees(dy))
    ny, nx = shape
    pixels = np.array([[x, y] for x in (0.1 * nx, 0.9 * nx) for y in (0.1 * ny, 0.9 * ny)])
    plane = np.degrees([gnomonic(a, d, ra0, dec0) for a, d in wcs.all_pix2world(pixels, 0)])
    design = np.column_stack([plane, np.ones(len(plane))])
    return FocalPlane((ra0, dec0), np.linalg.lstsq(design, pixels, rcond=None)[0].T)


@dataclass(frozen=True, slots=True)
class GhostStars:
    """Stars that can have a ghost: offsets from the boresight (deg) and expected flux (DN)."""

    xi: F64
    eta: F64
    flux: F64


def ghost_stars(bright: Table, plane: FocalPlane, magzp: float) -> GhostStars:
    """The stars of V <= 7 that shine into the camera; flux from V as if it were the band's magnitude."""
    good = np.isfinite(bright["ra"]) & np.isfinite(bright["dec"]) & (bright["vmag"] <= GHOST_VMAG)
    rows = bright[good]
    ra0, dec0 = plane.boresight
    d, d0 = np.radians(rows["dec"]), math.radians(dec0)
    a = np.radians(rows["ra"] - ra0)
    cosine = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)
    front = cosine > math.cos(math.radians(2 * FIELD_HALF_SIDE))
    rows, a, d, cosine = rows[front], a[front], d[front], cosine[front]
    xi = np.degrees(np.cos(d) * np.sin(a) / cosine)
    eta = np.degrees((np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / cosine)
    inside = sees(xi, eta)
    flux = 10 ** (0.4 * (magzp - rows["vmag"].astype(float)))
    return GhostStars(xi[inside], eta[inside], flux[inside])


def mask_ghosts(
    mask: U16, plane: FocalPlane, stars: GhostStars, geometry: GhostGeometry, sigma: float, pixel_scale: float
) -> U16:
    """The mask with bit 5 where a ghost is brighter than the noise of the sky in 16 x 16 px.

    Parameters
    ----------
    mask : ndarray, (ny, nx), uint16
        Not changed; returned as it is where no ghost reaches in.
    plane, stars : FocalPlane, GhostStars
    geometry : GhostGeometry
    sigma : float
        Noise of a sky pixel, DN.
    pixel_scale : float
        arcsec per px.
    """
    ny, nx = mask.shape
    shown = geometry.fraction * stars.flux > FAINTEST * sigma / CELL
    x, y = plane.pixels(*geometry.place(stars.xi[shown], stars.eta[shown]))
    inner, outer = geometry.inner_radius / pixel_scale, geometry.radius / pixel_scale
    out = mask
    for x0, y0 in zip(x, y, strict=True):
        left, right = max(math.floor(x0 - outer), 0), min(math.ceil(x0 + outer) + 1, nx)
        low, high = max(math.floor(y0 - outer), 0), min(math.ceil(y0 + outer) + 1, ny)
        if left >= right or low >= high:
            continue
        out = mask.copy() if out is mask else out
        r2 = (np.arange(left, right) - x0) ** 2 + (np.arange(low, high)[:, None] - y0) ** 2
        out[low:high, left:right][(r2 <= outer**2) & (r2 >= inner**2)] |= np.uint16(Mask.GHOST)
    return out


@dataclass(frozen=True, slots=True)
class GhostSample:
    """What one exposure says about ghosts: its sky in cells of 16 px (DN, NaN where unknown), its place, its stars."""

    cells: F32
    noise: float  # of a cell, DN
    plane: FocalPlane
    stars: GhostStars
    pixel_scale: float


def ghost_sample(science: ScienceImage, bright: Table, pixel_scale: float) -> GhostSample:
    """The sample of a science image; ``bright`` must reach over the whole camera's field."""
    ny, nx = (n // CELL for n in science.data.shape)
    exposure = science.quadrant.exposure
    plane = focal_plane(science.astrometry.wcs, science.quadrant.rcid, science.data.shape, (exposure.ra, exposure.dec))
    blocks = science.data[: ny * CELL, : nx * CELL].reshape(ny, CELL, nx, CELL).transpose(0, 2, 1, 3)
    cells = np.median(blocks.reshape(ny, nx, CELL * CELL), axis=2).astype(np.float32)
    noise = 1.2533 * science.background.sigma / CELL
    return GhostSample(cells, noise, plane, ghost_stars(bright, plane, science.zeropoint.magzp), pixel_scale)


def calibrate_ghosts(samples: Sequence[GhostSample], start: GhostGeometry | None = None) -> GhostGeometry:
    """The geometry of a channel's ghosts from images of it, most useful from several fields.

    Parameters
    ----------
    samples : sequence of GhostSample
        Of one readout channel.
    start : GhostGeometry, optional
        Nominal values.

    Raises
    ------
    CalibrationError
        Fewer than two ghosts stand out: more exposures with bright stars in the field are needed.
    """
    start = start or GhostGeometry()
    start = _vote(samples, start)
    for _ in range(2):
        patches = _patches(samples, start)
        if len(patches) < MIN_GHOSTS:
            break
        start = _fit(patches, start)
    shown = [a for a in (_amplitude(patch, start) for patch in _patches(samples, start)) if a[0] > MIN_SNR * a[1]]
    if len(shown) < MIN_GHOSTS:
        raise CalibrationError(
            f"{len(shown)} ghosts stand out of {len(samples)} exposures, the geometry needs {MIN_GHOSTS}: give "
            "exposures whose field has stars of V < 6 opposite to this quadrant",
            n_ghosts=len(shown),
        )  # fmt: skip
    return replace(start, fraction=float(np.median([a[2] for a in shown])))


def _response(sample: GhostSample, geometry: GhostGeometry) -> F64:
    """Light in a ring less its surroundings, centred on each cell (DN); 0 where nothing is known."""
    from scipy import signal  # a sixth of a quadrant worker's start, and this is not done there

    radius, inner = (v / sample.pixel_scale / CELL for v in (geometry.radius, geometry.inner_radius))
    reach = math.ceil(1.6 * radius)
    r = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    known = np.isfinite(sample.cells)
    values = np.where(known, sample.cells - np.nanmedian(sample.cells), 0.0)
    # Single cells under bright stars must not vote.
    values = np.clip(values, -20 * sample.noise, 60 * sample.noise)
    means = []
    for part in ((r >= inner) & (r <= radius), (r > 1.1 * radius) & (r <= 1.6 * radius)):
        light, number = (signal.fftconvolve(v, part.astype(float), mode="same") for v in (values, known.astype(float)))
        means.append(np.where(number > 0.25 * part.sum(), light / np.maximum(number, 1.0), np.nan))
    return np.asarray(np.nan_to_num(means[0] - means[1]))


def _vote(samples: Sequence[GhostSample], start: GhostGeometry) -> GhostGeometry:
    """Scale and offset at which the most light lies under the predicted ghosts, weighted by what they should have."""
    score = np.zeros((len(SCALES), len(OFFSETS), len(OFFSETS)))
    for sample in samples:
        response = _response(sample, start)
        my, mx = response.shape
        weight = np.minimum(start.fraction * sample.stars.flux / sample.noise, 30.0)
        for xi, eta, w in zip(sample.stars.xi, sample.stars.eta, weight, strict=True):
            plane_xi = SCALES[:, None, None] * xi + OFFSETS[None, :, None]
            plane_eta = SCALES[:, None, None] * eta + OFFSETS[None, None, :]
            x, y = sample.plane.pixels(*np.broadcast_arrays(plane_xi, plane_eta))
            column, row = np.rint((x - 7.5) / CELL).astype(int), np.rint((y - 7.5) / CELL).astype(int)
            inside = (column >= 0) & (column < mx) & (row >= 0) & (row < my)
            if inside.any():
                light = response[np.clip(row, 0, my - 1), np.clip(column, 0, mx - 1)] / sample.noise
                score += np.where(inside, w * np.clip(light, -10, 60), 0.0)
    # A place that no star determines is taken nearest to the nominal one.
    far = ((SCALES[:, None, None] + 1) / PRIOR["scale"]) ** 2
    far = far + (OFFSETS[:, None] ** 2 + OFFSETS[None, :] ** 2)[None] / PRIOR["offset"] ** 2
    smooth = ndimage.gaussian_filter(score, 0.7)
    k, i, j = np.unravel_index(int((smooth - far * max(float(smooth.max()), 1.0) * 1e-3).argmax()), score.shape)
    return replace(start, scale=float(SCALES[k]), xi0=float(OFFSETS[i]), eta0=float(OFFSETS[j]))


@dataclass(frozen=True, slots=True)
class _Patch:
    """The cells about one ghost: their centres (px), values (DN), noise; the star's place in the plane and flux."""

    x: F64
    y: F64
    values: F64
    noise: float
    star: tuple[float, float]
    flux: float
    plane: FocalPlane
    pixel_scale: float


def _patches(samples: Sequence[GhostSample], geometry: GhostGeometry) -> list[_Patch]:
    """The surroundings of the ghosts that should show, nearly whole and not next to another's."""
    found = []
    for sample in samples:
        x, y = sample.plane.pixels(*geometry.place(sample.stars.xi, sample.stars.eta))
        radius = geometry.radius / sample.pixel_scale
        shown = geometry.fraction * sample.stars.flux > 2 * sample.noise
        my, mx = sample.cells.shape
        cy, cx = np.mgrid[0:my, 0:mx] * CELL + 7.5
        for k in np.flatnonzero(shown):
            if not (0 < x[k] < mx * CELL and 0 < y[k] < my * CELL):
                continue
            near = (np.hypot(cx - x[k], cy - y[k]) < NEAR * radius) & np.isfinite(sample.cells)
            others = shown & (np.arange(len(shown)) != k) & (sample.stars.flux > 0.1 * sample.stars.flux[k])
            if near.sum() < 200 or (np.hypot(x[others] - x[k], y[others] - y[k]) < 2 * NEAR * radius).any():
                continue
            star = float(sample.stars.xi[k]), float(sample.stars.eta[k])
            found.append(_Patch(
                cx[near], cy[near], sample.cells[near].astype(float), sample.noise, star,
                float(sample.stars.flux[k]), sample.plane, sample.pixel_scale,
            ))  # fmt: skip
    return found


def _ring(patch: _Patch, geometry: GhostGeometry) -> F64:
    """Share of each cell of a patch that the ghost covers, edges softened by a cell."""
    x, y = patch.plane.pixels(*geometry.place(patch.star[0], patch.star[1]))
    r = np.hypot(patch.x - float(x), patch.y - float(y))
    outer, inner = geometry.radius / patch.pixel_scale, geometry.inner_radius / patch.pixel_scale
    edge = np.clip((outer - r) / CELL + 0.5, 0, 1) * np.clip((r - inner) / CELL + 0.5, 0, 1)
    return np.asarray(edge)


def _solved(patch: _Patch, geometry: GhostGeometry) -> tuple[F64, F64, float]:
    """Residuals (in noise) of a ghost on a plane of sky, solved for; coefficients; the amplitude's error in noise."""
    ring = _ring(patch, geometry)
    span = max(float(np.ptp(patch.x)), 1.0)
    u, v = (patch.x - patch.x.mean()) / span, (patch.y - patch.y.mean()) / span
    design = np.stack([ring, np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    weight = np.ones(len(u))
    solution = np.zeros(design.shape[1])
    residual = patch.values
    for _ in range(3):  # cells with bright stars lose their say
        normal = (design * weight[:, None]).T @ design + 1e-9 * np.eye(design.shape[1])
        solution = np.linalg.solve(normal, (design * weight[:, None]).T @ patch.values)
        residual = (patch.values - design @ solution) / patch.noise
        weight = 1.0 / (1.0 + (residual / 3.0) ** 2)
    error = math.sqrt(max(float(np.linalg.inv(normal)[0, 0]), 0.0))
    return residual * np.sqrt(weight), solution, error


def _amplitude(patch: _Patch, geometry: GhostGeometry) -> tuple[float, float, float]:
    """A ghost's brightness (DN per px), its error, and as a share of the star's flux."""
    residual, solution, error = _solved(patch, geometry)
    scatter = max(1.0, 1.4826 * float(np.median(np.abs(residual))))
    return float(solution[0]), error * patch.noise * scatter, float(solution[0] / patch.flux)


def _fit(patches: Sequence[_Patch], start: GhostGeometry) -> GhostGeometry:
    """Scale, offset and radii by least squares over all patches, their brightness solved for on the way."""
    origin = GhostGeometry()

    def geometry_of(p: F64) -> GhostGeometry:
        radius = float(np.clip(p[3], 0.5, 1.5)) * origin.radius
        inner = float(np.clip(p[4], 0.0, 2.0)) * origin.inner_radius
        return GhostGeometry(float(p[0]), float(p[1]), float(p[2]), radius, min(inner, 0.9 * radius), start.fraction)

    def residuals(p: F64) -> F64:
        geometry = geometry_of(p)
        parts = [_solved(patch, geometry)[0] for patch in patches]
        prior = np.array([
            (p[0] - origin.scale) / PRIOR["scale"], p[1] / PRIOR["offset"], p[2] / PRIOR["offset"],
            (p[3] - 1) / PRIOR["radius"], (p[4] - 1) / PRIOR["radius"],
        ])  # fmt: skip
        return np.concatenate([*parts, prior])

    first = np.array([
        start.scale, start.xi0, start.eta0, start.radius / origin.radius, start.inner_radius / origin.inner_radius
    ])  # fmt: skip
    found = optimize.least_squares(
        residuals, first, x_scale=[0.005, 0.01, 0.01, 0.03, 0.05], diff_step=1e-3, max_nfev=40
    )
    return geometry_of(found.x)
