"""The two lists that a solution pairs: detections in pixels, catalogue stars in the plane of the first guess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.astrometry.epoch import position_errors, propagate
from stream.astrometry.tpv import project
from stream.core.camera import deproject
from stream.core.errors import AstrometryError
from stream.core.flags import Mask
from stream.core.records import Table

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Flags that spoil a centroid. A halo, a ghost or low response leave it alone; SOURCE bits are no defects.
SPOILT = int(
    Mask.TRACK | Mask.SPILLAGE | Mask.SPIKE | Mask.SATURATED | Mask.DEAD | Mask.NAN | Mask.NOISY
    | Mask.CROSSTALK | Mask.COSMIC_RAY | Mask.PERSISTENT | Mask.HIGH_RESPONSE
)  # fmt: skip
# Centroid error of a star of S/N 1 (px): about 0.6 FWHM for a well sampled star on sky, FWHM 2 px.
CENTROID_PX = 1.2
# What no S/N buys in 30 s: turbulence, undersampling, charge effects (px; 20 mas).
FLOOR_PX = 0.02
MIN_FIT_SNR = 10.0  # the S/N from which the survey states its accuracy


@dataclass(frozen=True, slots=True)
class Frame:
    """The plane of the first guess: px from the image centre, axes along the guess's pixel axes.

    ``jacobian`` (2, 2) deg per px takes a place u of the plane to the tangent plane at (ra0, dec0).
    """

    ra0: float
    dec0: float
    jacobian: F64
    half: tuple[float, float]  # half the image size (x, y), px

    @property
    def half_diagonal(self) -> float:
        """Centre to corner, px."""
        return float(np.hypot(*self.half))

    def of_sky(self, ra: F64, dec: F64) -> F64:
        """Places (n, 2) of sky positions (deg)."""
        xi, eta = project(ra, dec, self.ra0, self.dec0)
        return np.asarray(np.stack([xi, eta], axis=1) @ np.linalg.inv(self.jacobian).T)

    def sky_of(self, u: F64) -> tuple[float, float]:
        """Sky position (deg) of one place."""
        xi, eta = self.jacobian @ u
        return deproject(self.ra0, self.dec0, float(xi), float(eta))


def frame_of(guess: WCS, shape: tuple[int, int]) -> Frame:
    """The plane of a first-guess WCS around the centre of an image of that shape.

    Raises
    ------
    AstrometryError
        If the guess has no finite place or no area there.
    """
    ny, nx = shape
    xc, yc = (nx - 1) / 2, (ny - 1) / 2
    step = max(min(nx, ny) / 4, 1.0)
    x = np.array([xc, xc + step, xc - step, xc, xc])
    y = np.array([yc, yc, yc, yc + step, yc - step])
    ra, dec = guess.all_pix2world(x, y, 0)
    if not np.isfinite([ra, dec]).all():
        raise AstrometryError("the first-guess WCS gives no sky position at the image centre: check the pointing")
    xi, eta = project(ra, dec, float(ra[0]), float(dec[0]))
    jacobian = np.array([[xi[1] - xi[2], xi[3] - xi[4]], [eta[1] - eta[2], eta[3] - eta[4]]]) / (2 * step)
    if not abs(np.linalg.det(jacobian)) > 1e-14:
        raise AstrometryError("the first-guess WCS is singular: check its CD matrix")
    return Frame(float(ra[0]), float(dec[0]), jacobian, (nx / 2, ny / 2))


@dataclass(frozen=True, slots=True)
class Stars:
    """Detections, brightest first. ``p`` (n, 2) px from the image centre, ``sigma`` px per axis."""

    p: F64
    sigma: F64
    snr: F64
    good: Bools  # centroid trusted

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: NDArray[np.int64] | Bools | slice) -> Stars:
        return Stars(self.p[index], self.sigma[index], self.snr[index], self.good[index])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Catalogue stars that may be on the image, brightest first: sky (deg), ``u`` (m, 2) px, ``sigma`` px."""

    ra: F64
    dec: F64
    u: F64
    sigma: F64
    area_ratio: float  # of the region they fill to the image
    n_around: int  # entries there, of which these are the brightest

    def __len__(self) -> int:
        return len(self.u)

    def brightest(self, n: int) -> Catalogue:
        """The first ``n``."""
        return Catalogue(self.ra[:n], self.dec[:n], self.u[:n], self.sigma[:n], self.area_ratio, self.n_around)


def spread_order(p: F64, half: tuple[float, float], cells: int = 6) -> NDArray[np.int64]:
    """Order of places (brightest first) that takes the brightest of every cell of a grid, then the second ones...

    Any first part of it covers the image evenly, whatever piles up along a trail or in a cluster.
    """
    column = np.clip((p[:, 0] / half[0] + 1) / 2 * cells, 0, cells - 1).astype(np.int64)
    row = np.clip((p[:, 1] / half[1] + 1) / 2 * cells, 0, cells - 1).astype(np.int64)
    cell = row * cells + column
    by_cell = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[by_cell], np.arange(cells * cells))
    rank = np.empty(len(p), np.int64)
    rank[by_cell] = np.arange(len(p)) - starts[cell[by_cell]]
    return np.argsort(rank, kind="stable")


def usable_stars(detections: Table, shape: tuple[int, int], least_snr: float | None = None) -> Stars:
    """Detections with a finite place on the image, ranked by flux (or S/N where there is none).

    With ``least_snr`` only those of that S/N whose centroid is trusted.
    """
    names = detections.dtype.names or ()
    x, y = detections["x"].astype(float), detections["y"].astype(float)
    flux = detections["flux" if "flux" in names else "snr"].astype(float)
    snr = detections["snr"].astype(float) if "snr" in names else np.full(len(x), 20.0)
    flags = detections["flags"] if "flags" in names else np.zeros(len(x), np.int64)
    ny, nx = shape
    with np.errstate(invalid="ignore"):
        ok = np.isfinite(x) & np.isfinite(y) & (flux > 0)
        ok &= (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)
    ok &= np.isfinite(snr)
    good = (flags.astype(np.int64) & SPOILT) == 0
    if least_snr is not None:
        ok &= good & (snr >= least_snr)
    index = np.flatnonzero(ok)
    index = index[np.argsort(-flux[index], kind="stable")]
    p = np.stack([x[index] - (nx - 1) / 2, y[index] - (ny - 1) / 2], axis=1)
    sigma = np.hypot(FLOOR_PX, CENTROID_PX / np.maximum(snr[index], 1.0))
    return Stars(p, sigma, snr[index], good[index])


def area_ratio(frame: Frame, reach: float) -> float:
    """Area within ``reach`` px of the image over the image's own."""
    return (1 + reach / frame.half[0]) * (1 + reach / frame.half[1])


def catalogue_near(gaia: Table, frame: Frame, jd: float, reach: float, most: int) -> Catalogue:
    """The ``most`` brightest catalogue stars (and those as bright as the last) at ``jd`` within ``reach`` px of the
    image as guessed."""
    # By the places as listed: stars that moved over the edge of the reach are missed by nobody.
    u = frame.of_sky(gaia["ra"].astype(float), gaia["dec"].astype(float))
    with np.errstate(invalid="ignore"):
        inside = (np.abs(u[:, 0]) <= frame.half[0] + reach) & (np.abs(u[:, 1]) <= frame.half[1] + reach)
    index = np.flatnonzero(inside)
    n_around = len(index)
    mag = np.nan_to_num(gaia["phot_g_mean_mag"][index].astype(float), nan=99.0)
    if n_around > most:
        bright = mag <= np.partition(mag, most - 1)[most - 1]
        index, mag = index[bright], mag[bright]
    near = gaia[index[np.lexsort((gaia["source_id"][index], mag))]]
    ra, dec = propagate(near, jd, parallax=True)
    scale = float(np.sqrt(abs(np.linalg.det(frame.jacobian)))) * 3600.0  # arcsec per px
    sigma = position_errors(near, jd) / scale
    return Catalogue(ra, dec, frame.of_sky(ra, dec), sigma, area_ratio(frame, reach), n_around)
