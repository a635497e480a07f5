"""Camera geometry as a value: sizes, pixel scale, read directions, and where a quadrant lies on the sky."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream.core.errors import UsageError
from stream.core.identity import ccd_qid_of

if TYPE_CHECKING:  # half a second of a process's start, and most of ours have no pixels
    from astropy.wcs import WCS


@dataclass(frozen=True, slots=True)
class Camera:
    """Geometry of every quadrant of a camera.

    All quadrants are stored alike on the sky: x grows to the west, y to the south. ``nx``, ``ny`` are the
    image size in px, ``n_overscan`` the overscan columns, ``pixel_scale`` arcsec per px.
    """

    name: str
    nx: int
    ny: int
    n_overscan: int = 30
    pixel_scale: float = 1.0125

    @property
    def shape(self) -> tuple[int, int]:
        """Array shape of a quadrant image, (ny, nx)."""
        return self.ny, self.nx

    @property
    def crpix(self) -> tuple[float, float]:
        """FITS pixel (first is 1) of the quadrant's centre: 1536.5, 1540.5 for the real camera."""
        return self.nx / 2 + 0.5, self.ny / 2 + 0.5


FULL = Camera("full", 3072, 3080)
SMALL = Camera("small", 512, 512)  # keeps tests quick; same layout of centres, so the quadrants lie apart
CAMERAS = {camera.name: camera for camera in (FULL, SMALL)}


def camera_named(name: str) -> Camera:
    """The camera of that name; ``UsageError`` names the known ones."""
    try:
        return CAMERAS[name]
    except KeyError:
        raise UsageError(f"no camera {name!r}: known are {', '.join(CAMERAS)}") from None


def read_order(qid: int) -> tuple[bool, bool]:
    """Whether the stored array must be flipped (in x, in y) to have the first pixel read at [0, 0].

    Rows are read from x = 0 for qid 1 and 4, from the far end for 2 and 3; the first row read is y = 0 for
    qid 1 and 2, the last for 3 and 4 (``interfaces.md`` §1).
    """
    return qid in (2, 3), qid in (3, 4)


def read_position(index: NDArray[np.integer], qid: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Flat index in read order of a flat index in stored order, and the other way round (it is its own inverse)."""
    ny, nx = shape
    flip_x, flip_y = read_order(qid)
    y, x = np.divmod(np.asarray(index, np.int64), nx)
    return np.asarray((ny - 1 - y if flip_y else y) * nx + (nx - 1 - x if flip_x else x), np.int64)


@lru_cache(maxsize=1)
def quadrant_layout() -> NDArray[np.float64]:
    """Tangent-plane offsets (xi east, eta north; degrees) of the 64 quadrant centres, indexed by rcid."""
    text = resources.files("stream.core").joinpath("data/quadrant_layout.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    layout = np.full((64, 2), np.nan)
    for row in rows:
        layout[int(row["rcid"])] = float(row["xi"]), float(row["eta"])
    return layout


def deproject(ra0: float, dec0: float, xi: float, eta: float) -> tuple[float, float]:
    """Sky position (deg) of a gnomonic tangent-plane offset (deg) from a tangent point (deg)."""
    x, y = math.radians(xi), math.radians(eta)
    d0 = math.radians(dec0)
    denominator = math.cos(d0) - y * math.sin(d0)
    ra = ra0 + math.degrees(math.atan2(x, denominator))
    dec = math.atan2(math.sin(d0) + y * math.cos(d0), math.hypot(x, denominator))
    return ra % 360.0, math.degrees(dec)


def quadrant_centre(ra0: float, dec0: float, rcid: int) -> tuple[float, float]:
    """Nominal sky position (deg, ICRS) of a quadrant's centre for a telescope pointing (deg).

    Good to about four arcminutes on real nights: a first guess for the astrometric solver, nothing more.
    """
    ccd_qid_of(rcid)  # refuses an impossible channel
    xi, eta = quadrant_layout()[rcid]
    return deproject(ra0, dec0, float(xi), float(eta))


def nominal_wcs(camera: Camera, ra0: float, dec0: float, rcid: int) -> WCS:
    """Undistorted TAN WCS of a quadrant from the pointing and the layout, axes turned by the meridians' convergence.

    A first guess to four arcminutes and 0.3 degrees; x to the west and y to the south.
    """
    from astropy.wcs import WCS

    xi, eta = (float(v) for v in quadrant_layout()[rcid])
    ra, dec = deproject(ra0, dec0, xi, eta)
    # Where the tangent plane's north points, seen from the quadrant's own meridian.
    ra_n, dec_n = deproject(ra0, dec0, xi, eta + 0.01)
    east = math.radians((ra_n - ra + 180.0) % 360.0 - 180.0) * math.cos(math.radians(dec))
    angle = math.atan2(east, math.radians(dec_n - dec))  # plane north, east of true north
    scale = camera.pixel_scale / 3600.0
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = list(camera.crpix)
    wcs.wcs.cunit = ["deg", "deg"]
    # Pixel x runs along plane west, y along plane south.
    c, s = math.cos(angle), math.sin(angle)
    wcs.wcs.cd = [[-scale * c, -scale * s], [scale * s, -scale * c]]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs
