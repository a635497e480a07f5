"""Lists of stars with known truth: a camera with distortion, a sky, what a detector makes of it, and what spoils that.

What astrometry is tested with where pixels do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from stream.astrometry.epoch import propagate
from stream.astrometry.tpv import n_terms, pixel_positions, terms, tpv_wcs
from stream.core.camera import Camera, deproject
from stream.core.flags import Mask
from stream.core.records import DETECTION_DTYPE, GAIA_DTYPE

JD_MID = 2459000.75


@dataclass
class Field:
    """A simulated field for the solver: what was detected, the catalogue, a guess and the true WCS."""

    detections: np.ndarray
    gaia: np.ndarray
    guess: WCS
    truth: WCS
    shape: tuple[int, int]
    n_seen: int  # catalogue stars among the detections

    @property
    def args(self):
        """What the solver takes."""
        return self.detections, self.gaia, self.guess, JD_MID, self.shape

    def errors(self, wcs: WCS, n: int = 9) -> np.ndarray:
        """Distance (arcsec) between a WCS and the truth on an n x n grid that reaches the corners."""
        ny, nx = self.shape
        x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, n), np.linspace(0, ny - 1, n)))
        ra, dec = wcs.all_pix2world(x, y, 0)
        ra_t, dec_t = self.truth.all_pix2world(x, y, 0)
        dra = ((ra - ra_t + 180) % 360 - 180) * np.cos(np.radians(dec_t))
        return 3600 * np.hypot(dra, dec - dec_t)


def plain_wcs(camera: Camera, ra, dec, angle=0.0, scale=1.0) -> WCS:
    """A tangent projection about (ra, dec) deg, turned by ``angle`` (rad), its pixels ``scale`` times the camera's."""
    s = camera.pixel_scale / 3600 * scale
    c, w = np.cos(angle), np.sin(angle)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], list(camera.crpix)
    wcs.wcs.cd = [[-s * c, s * w], [-s * w, -s * c]]
    wcs.wcs.set()
    return wcs


def true_wcs(rng, camera: Camera, ra, dec, angle, scale, bend=3.0) -> WCS:
    """TPV with up to about ``bend`` arcsec of distortion of degree 4 at the corners of a full quadrant."""
    s = camera.pixel_scale / 3600 * scale
    c, w = np.cos(angle), np.sin(angle)
    cd = np.array([[-s * c, s * w], [-s * w, -s * c]])
    half = 1540 * s
    pv = []
    for _ in (1, 2):
        coefficients = np.zeros(n_terms(4))
        coefficients[3:] = rng.normal(size=12)
        corner = np.abs(terms(np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1]), 4) @ coefficients).max()
        degree = np.repeat(np.arange(5), np.arange(1, 6))
        coefficients *= rng.uniform(0.2, 1.0) * bend / 3600 / corner / half**degree
        coefficients[1] = 1.0
        pv.append(coefficients)
    return tpv_wcs((ra, dec), cd, pv[0], pv[1], camera.crpix, camera.shape)


def gaia_cone(rng, ra0, dec0, radius, density, bright=8.0, faint=20.5) -> np.ndarray:
    """Stars evenly over a square cone of half-side ``radius`` deg, ``density`` a square degree to ``faint``."""
    n = rng.poisson(density * (2 * radius) ** 2)
    gaia = np.zeros(n, GAIA_DTYPE)
    xi, eta = rng.uniform(-radius, radius, (2, n))
    places = np.array([deproject(ra0, dec0, a, b) for a, b in zip(xi, eta, strict=True)]).reshape(-1, 2)
    gaia["source_id"] = 10_000 + np.arange(n)
    gaia["ra"], gaia["dec"] = places.T
    # Counts grow as 10^(0.25 G).
    top, bottom = 10 ** (0.25 * faint), 10 ** (0.25 * bright)
    gaia["phot_g_mean_mag"] = np.log10(rng.uniform(bottom, top, n)) / 0.25
    gaia["ra_error"] = gaia["dec_error"] = 0.02 * 10 ** (0.2 * (gaia["phot_g_mean_mag"] - 13).clip(0))
    gaia["pmra"], gaia["pmdec"] = rng.normal(0, 8, (2, n))
    gaia["parallax"] = np.abs(rng.normal(0, 1, n))
    gaia["ref_epoch"] = 2016.0
    gaia["bp_rp"] = rng.normal(1.2, 0.5, n)
    return gaia


def observe(rng, gaia, truth: WCS, shape, limit=20.3, complete=0.92, spurious=0.15, galaxies=0.1) -> tuple:
    """Detections of a sky through a camera: noise, colour scatter, saturation, blends, galaxies, junk."""
    ny, nx = shape
    x, y = pixel_positions(truth, *propagate(gaia, JD_MID, parallax=True))
    mag = gaia["phot_g_mean_mag"] + rng.normal(0, 0.4, len(gaia))
    seen = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1) & (mag < limit) & (rng.random(len(x)) < complete)
    x, y, mag = x[seen], y[seen], mag[seen]
    # Of two stars closer than 3 px the fainter one is lost.
    order = np.argsort(mag)
    x, y, mag = x[order], y[order], mag[order]
    if len(x) > 1:
        from scipy.spatial import cKDTree

        pairs = cKDTree(np.stack([x, y], 1)).query_pairs(3.0, output_type="ndarray")
        keep = np.ones(len(x), bool)
        keep[pairs.max(axis=1)] = False
        x, y, mag = x[keep], y[keep], mag[keep]
    n_true = len(x)
    n_extra = rng.poisson((spurious + galaxies) * n_true)
    x = np.concatenate([x, rng.uniform(0, nx - 1, n_extra)])
    y = np.concatenate([y, rng.uniform(0, ny - 1, n_extra)])
    mag = np.concatenate([mag, limit - rng.exponential(1.5, n_extra)])
    out = np.zeros(len(x), DETECTION_DTYPE)
    out["flux"] = 10 ** (-0.4 * (mag - 26.3))
    sky_limited = out["flux"] / 10 ** (-0.4 * (20.6 - 26.3)) * 5
    out["snr"] = 1 / np.hypot(1 / sky_limited, 1 / np.sqrt(out["flux"] * 6.2 + 1))
    saturated = mag < 13
    sigma = np.where(saturated, 1.5, np.hypot(0.02, 1.0 / out["snr"]))
    out["x"], out["y"] = x + rng.normal(0, sigma), y + rng.normal(0, sigma)
    out["flags"][saturated] = int(Mask.SATURATED)
    out["peak"], out["a"], out["b"], out["npix"] = out["flux"] / 6, 1.0, 1.0, 9
    return out[rng.permutation(len(out))], int(n_true)


def add_cluster(rng, gaia, n: int) -> np.ndarray:
    """The catalogue with ``n`` stars piled up within arcminutes of one of its own."""
    if len(gaia) == 0:
        return gaia
    more = gaia[rng.integers(0, len(gaia), n)].copy()
    middle, r = gaia[rng.integers(0, len(gaia))], 0.02 * np.abs(rng.standard_cauchy(n)).clip(0, 5)
    angle = rng.uniform(0, 2 * np.pi, n)
    more["dec"] = (middle["dec"] + r * np.sin(angle)).clip(-89.9, 89.9)
    more["ra"] = (middle["ra"] + r * np.cos(angle) / np.cos(np.radians(more["dec"]))) % 360
    more["source_id"] = gaia["source_id"].max() + 1 + np.arange(n)
    return np.concatenate([gaia, more])


def make_field(seed, camera: Camera, density, cluster=0, **how) -> Field:
    """A random place, guess off by up to 4 arcmin, 0.3 deg and 1 %; ``cluster`` more stars are piled up in one spot."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-0.99, 1.0)))
    guess = plain_wcs(camera, ra, dec)
    off, towards = rng.uniform(0, 4 / 60), rng.uniform(0, 2 * np.pi)
    ra_t, dec_t = deproject(ra, dec, off * np.cos(towards), off * np.sin(towards))
    # The same camera angle about the meridian of the guess, not of the true centre.
    ra_n, dec_n = deproject(ra, dec, off * np.cos(towards), off * np.sin(towards) + 1e-3)
    meridian = np.arctan2(((ra_n - ra_t + 180) % 360 - 180) * np.cos(np.radians(dec_t)), dec_n - dec_t)
    angle = np.radians(rng.uniform(-0.3, 0.3)) - meridian
    truth = true_wcs(rng, camera, ra_t, dec_t, angle, rng.uniform(0.99, 1.01))
    radius = max(camera.shape) / 2 * camera.pixel_scale / 3600 * 1.02 + 6 / 60
    gaia = gaia_cone(rng, ra, dec, radius, density)
    if cluster:
        gaia = add_cluster(rng, gaia, cluster)
    detections, n_seen = observe(rng, gaia, truth, camera.shape, **how)
    return Field(detections, gaia, guess, truth, camera.shape, n_seen)


@dataclass(frozen=True, slots=True)
class Hardship:
    """What a field is like, and what is wrong with it."""

    density: float  # Gaia stars a square degree
    limit: float  # of the detections, mag: cloud takes the faint ones
    complete: float  # share of the stars that are detected
    trails: int
    halos: int
    cluster: bool
    wrong_sky: bool  # the catalogue is of another place: nothing may be accepted


def draw_hardship(rng: np.random.Generator) -> Hardship:
    """From the pole of the Galaxy under cloud to its plane; a tenth of the catalogues are of elsewhere."""
    density = 10 ** rng.uniform(2.0, 4.5)
    cloud = rng.random() < 0.2
    return Hardship(
        float(density),
        float(rng.uniform(16.5, 20.3)) if cloud else 20.3,
        float(rng.uniform(0.7, 0.95)),
        int(rng.integers(1, 4)) if rng.random() < 0.3 else 0,
        int(rng.integers(1, 3)) if rng.random() < 0.3 else 0,
        bool(rng.random() < 0.1),
        bool(rng.random() < 0.1),
    )


def hard_field(seed: int, camera: Camera) -> tuple[Field, Hardship]:
    """A field of many difficulties: a fifth of the detections spurious, a tenth galaxies, and what was drawn."""
    rng = np.random.default_rng([seed, 77])
    how = draw_hardship(rng)
    field = make_field(
        [seed, 78], camera, how.density, limit=how.limit, complete=how.complete, spurious=0.2, galaxies=0.1,
        cluster=300 if how.cluster else 0,
    )  # fmt: skip
    detections = field.detections
    for _ in range(how.trails):
        detections = np.concatenate([detections, _trail(rng, camera.shape)])
    for _ in range(how.halos):
        detections = _with_halo(rng, detections, camera)
    gaia = field.gaia
    if how.wrong_sky:
        radius = max(camera.shape) / 2 * camera.pixel_scale / 3600 * 1.02 + 0.1
        gaia = gaia_cone(rng, *field.guess.wcs.crval, radius, how.density)
    return replace(field, detections=detections[rng.permutation(len(detections))], gaia=gaia), how


def _spurious(x, y, flux) -> np.ndarray:
    out = np.zeros(len(x), DETECTION_DTYPE)
    out["x"], out["y"], out["flux"] = x, y, flux
    out["snr"], out["peak"], out["a"], out["b"], out["npix"] = np.sqrt(flux) + 5, flux / 9, 1.5, 1.0, 12
    return out


def _trail(rng, shape) -> np.ndarray:
    """Pieces of an unmasked trail: tens to hundreds of bright detections on a line."""
    ny, nx = shape
    n = int(rng.integers(30, 300))
    t, angle = np.sort(rng.uniform(-1.2, 1.2, n)), rng.uniform(0, np.pi)
    x = nx / 2 + rng.uniform(-nx / 4, nx / 4) + t * nx * np.cos(angle) + rng.normal(0, 0.7, n)
    y = ny / 2 + rng.uniform(-ny / 4, ny / 4) + t * ny * np.sin(angle) + rng.normal(0, 0.7, n)
    on = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    return _spurious(x[on], y[on], 10 ** rng.uniform(3, 5) * rng.uniform(0.5, 1.5, on.sum()))


def _with_halo(rng, detections, camera: Camera) -> np.ndarray:
    """The detections with those in a bright star's halo lost and its rim and spikes detected instead."""
    ny, nx = camera.shape
    x0, y0, radius = rng.uniform(0, nx), rng.uniform(0, ny), 367.0 / camera.pixel_scale
    r = np.hypot(detections["x"] - x0, detections["y"] - y0)
    kept = detections[(r > radius) | (rng.random(len(r)) < 0.3)]
    n = int(rng.integers(30, 200))
    angle = rng.uniform(0, 2 * np.pi, n)
    spike = rng.random(n) < 0.3
    angle[spike] = np.pi / 4 * rng.integers(0, 8, spike.sum())
    at = np.where(spike, rng.uniform(0, radius, n), radius + rng.normal(0, 4, n))
    x, y = x0 + at * np.cos(angle), y0 + at * np.sin(angle)
    on = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    return np.concatenate([kept, _spurious(x[on], y[on], 10 ** rng.uniform(2.5, 4.5, on.sum()))])
