"""Simulated fields with known truth: a camera with distortion, a sky of stars, what a detector makes of them."""

from __future__ import annotations

from dataclasses import dataclass

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
    detections: np.ndarray
    gaia: np.ndarray
    guess: WCS
    truth: WCS
    shape: tuple[int, int]
    n_seen: int  # catalogue stars among the detections

    @property
    def args(self):
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


def make_field(seed, camera: Camera, density, **how) -> Field:
    """A random place, guess off by up to 4 arcmin, 0.3 deg and 1 %."""
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
    detections, n_seen = observe(rng, gaia, truth, camera.shape, **how)
    return Field(detections, gaia, guess, truth, camera.shape, n_seen)
