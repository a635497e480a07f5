"""Ghosts: where they are predicted, and their geometry calibrated from skies of which it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.calibrate import calibrate_ghosts, focal_plane, ghost_stars, mask_ghosts
from stream.calibrate.ghosts import CELL, GhostSample
from stream.core.camera import FULL, SMALL, deproject, nominal_wcs, quadrant_layout
from stream.core.errors import CalibrationError, MessageError
from stream.core.flags import Mask
from stream.core.ghosts import GhostGeometry
from stream.core.records import BRIGHT_DTYPE, Table

F64 = NDArray[np.float64]
# A camera that is not the nominal one, by some five per cent of everything.
TRUE = GhostGeometry(scale=-0.962, xi0=0.031, eta0=-0.042, radius=187.0, inner_radius=57.0, fraction=4.6e-8)
SIGMA, MAGZP = 7.2, 26.2


def sky_of_stars(rng: np.random.Generator, ra0: float, dec0: float, n: int) -> Table:
    """Bright stars over the camera's field: three times as many a magnitude fainter."""
    rows = np.zeros(n, BRIGHT_DTYPE)
    xi, eta = rng.uniform(-3.6, 3.6, (2, n))
    places = np.array([deproject(ra0, dec0, float(a), float(b)) for a, b in zip(xi, eta, strict=True)])
    rows["ra"], rows["dec"] = places.T
    rows["vmag"] = np.clip(7.0 - rng.exponential(0.9, n), 3.0, 7.0)
    return rows


def ghost_light(wcs: WCS, boresight: tuple[float, float], bright: Table, x: F64, y: F64) -> F64:
    """Light of all ghosts (DN per px) at pixels, by astropy's own geometry: places on the sphere, no plane of ours."""
    ra0, dec0 = boresight
    light = np.zeros(np.shape(x))
    where = wcs.pixel_to_world(np.ravel(x), np.ravel(y))
    centre = SkyCoord(ra0 * u.deg, dec0 * u.deg)
    for star in bright:
        s = SkyCoord(star["ra"] * u.deg, star["dec"] * u.deg)
        r, angle = centre.separation(s).rad, centre.position_angle(s).rad
        xi, eta = (math.degrees(math.tan(r) * part) for part in (math.sin(angle), math.cos(angle)))
        place = deproject(ra0, dec0, TRUE.scale * xi + TRUE.xi0, TRUE.scale * eta + TRUE.eta0)
        away = where.separation(SkyCoord(*place, unit="deg")).arcsec.reshape(np.shape(x))
        flux = 10 ** (0.4 * (MAGZP - star["vmag"]))
        light += TRUE.fraction * flux * ((away <= TRUE.radius) & (away >= TRUE.inner_radius))
    return light


def samples(rcid: int, n_fields: int, seed: int) -> list[GhostSample]:
    """Skies of one quadrant in several fields; the header's pointing is off by some arcminutes."""
    rng = np.random.default_rng(seed)
    out = []
    ny, nx = (n // CELL for n in FULL.shape)
    y, x = np.mgrid[0:ny, 0:nx] * float(CELL) + 7.5
    for _ in range(n_fields):
        boresight = rng.uniform(0, 360), rng.uniform(-25, 70)
        wcs = nominal_wcs(FULL, *boresight, rcid)
        bright = sky_of_stars(rng, *boresight, 60)
        cells = 300 + ghost_light(wcs, boresight, bright, x, y)
        cells += rng.normal(0, 8) * x / 3072 + rng.normal(0, 8) * (y / 3080) ** 2
        noise = 1.2533 * SIGMA / CELL
        cells += rng.normal(0, noise, cells.shape)
        bad = rng.integers(0, cells.size, 80)  # cells that a bright star fills
        cells.reshape(-1)[bad] += rng.exponential(200, len(bad))
        error = rng.normal(0, 0.03, 2)
        plane = focal_plane(wcs, rcid, FULL.shape, (boresight[0] + error[0], boresight[1] + error[1]))
        assert SkyCoord(*plane.boresight, unit="deg").separation(SkyCoord(*boresight, unit="deg")).arcsec < 1.0
        out.append(GhostSample(cells.astype(np.float32), noise, plane, ghost_stars(bright, plane, MAGZP), 1.0125))
    return out


@pytest.fixture(scope="module")
def calibrated() -> GhostGeometry:
    return calibrate_ghosts(samples(20, 8, 1))


def test_the_geometry_is_found_from_images(calibrated: GhostGeometry) -> None:
    # For any star whose ghost falls on channel 20, the ghost is where it should be to a sixth of its radius.
    offsets = np.mgrid[-0.4:0.5:0.2, -0.4:0.5:0.2].reshape(2, -1)  # deg about the quadrant's centre
    xi, eta = (
        (centre + offset - first) / TRUE.scale
        for centre, offset, first in zip(quadrant_layout()[20], offsets, (TRUE.xi0, TRUE.eta0), strict=True)
    )
    off = np.hypot(*np.subtract(calibrated.place(xi, eta), TRUE.place(xi, eta))) * 3600
    assert off.max() < TRUE.radius / 6
    assert calibrated.radius == pytest.approx(TRUE.radius, rel=0.03)
    assert calibrated.inner_radius == pytest.approx(TRUE.inner_radius, rel=0.15)
    assert calibrated.fraction == pytest.approx(TRUE.fraction, rel=0.1)


def test_masks_of_new_fields_cover_the_ghosts(calibrated: GhostGeometry) -> None:
    affected = hit = false = total = 0
    rng = np.random.default_rng(9)
    y, x = np.mgrid[0 : FULL.ny : CELL, 0 : FULL.nx : CELL] + 7.5
    for _ in range(4):
        boresight = rng.uniform(0, 360), rng.uniform(-25, 70)
        wcs = nominal_wcs(FULL, *boresight, 20)
        bright = sky_of_stars(rng, *boresight, 40)
        light = ghost_light(wcs, boresight, bright, x, y)
        plane = focal_plane(wcs, 20, FULL.shape, boresight)
        stars = ghost_stars(bright, plane, MAGZP)
        mask = mask_ghosts(np.zeros(FULL.shape, np.uint16), plane, stars, calibrated, SIGMA, 1.0125)
        masked = mask[8::CELL, 8::CELL][: x.shape[0], : x.shape[1]] == Mask.GHOST
        light = light[: masked.shape[0], : masked.shape[1]]
        touched = light > SIGMA / CELL
        affected += touched.sum()
        hit += (touched & masked).sum()
        false += (masked & (light < 0.5 * SIGMA / CELL)).sum()
        total += masked.size
    assert affected > 200
    assert hit / affected > 0.95
    assert false / total < 0.002


def test_too_few_ghosts_are_said_to_be_too_few() -> None:
    rng = np.random.default_rng(3)
    (sample,) = samples(20, 1, 3)
    empty = rng.normal(300, sample.noise, sample.cells.shape).astype(np.float32)
    none = GhostSample(empty, sample.noise, sample.plane, sample.stars, sample.pixel_scale)
    with pytest.raises(CalibrationError, match="ghosts stand out"):
        calibrate_ghosts([none])
    with pytest.raises(CalibrationError, match="0 exposures"):
        calibrate_ghosts([])


def test_only_stars_that_shine_into_the_camera() -> None:
    plane = focal_plane(nominal_wcs(SMALL, 100.0, 30.0, 5), 5, SMALL.shape, (float("nan"), 30.0))
    ra0, dec0 = plane.boresight
    rows = np.zeros(5, BRIGHT_DTYPE)
    rows["vmag"] = 6.0, 7.01, 6.0, np.nan, 6.0
    places = [deproject(ra0, dec0, *p) for p in ((1, 1), (1, 1), (4, 0), (0, 0))]
    rows["ra"], rows["dec"] = zip(*places, ((ra0 + 180) % 360, -dec0), strict=True)
    stars = ghost_stars(rows, plane, MAGZP)
    assert (len(stars.xi), stars.xi[0], stars.eta[0]) == (1, pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))
    mask = np.zeros(SMALL.shape, np.uint16)
    faint = GhostGeometry(fraction=1e-12)
    assert mask_ghosts(mask, plane, stars, faint, SIGMA, 1.0125) is mask


def test_the_record_comes_back_and_refuses_nonsense() -> None:
    assert GhostGeometry.from_dict(TRUE.as_dict()) == TRUE
    for row in ({"scale": -1, "size": 3}, {"radius": 10.0}, {"radius": "wide"}, {"scale": float("nan")}):
        with pytest.raises(MessageError):
            GhostGeometry.from_dict(row)
