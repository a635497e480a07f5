"""Forced photometry on the stored difference images: ``enrich``'s ``ForcedSource`` on the product store.

One image is opened once for all objects of a batch; only the tiles that hold their windows are read and decompressed
(``stream.archive.tiles``). What a night's batches ask for again and again, headers, WCS, PSF and the reference's
catalogue, is kept in two bounded caches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stream.archive import ProductStore, fitsio
from stream.archive.catalogs import PSF_CATALOG, by_name
from stream.archive.paths import reference_path, science_path
from stream.archive.tiles import TiledImage
from stream.astrometry import pixel_positions
from stream.core.errors import MessageError, StoreUnavailable
from stream.core.records import F32, Row, Table
from stream.photometry.forced import WINDOW, ForcedFlux, GridPsf, window_fluxes

F64 = NDArray[np.float64]

# Headers, WCS and PSF of an image are some 100 kB: 50 MB hold a month of epochs of a few tens of quadrant positions.
IMAGES_KEPT = 512
# A reference's catalogue is a few MB: all quadrants of one field and filter.
CATALOGS_KEPT = 64
NEAREST_RADIUS = 5.0  # arcsec: farther off, the survey names no reference source
_FLOATS = {
    "sciinpseeing": "SEEING", "scibckgnd": "SKYMED", "scisigpix": "SKYSIG", "magzpsci": "MAGZP",
    "magzpsciunc": "MAGZPUNC", "magzpscirms": "MAGZPRMS", "clrcoeff": "CLRCOEFF", "clrcounc": "CLRCOUNC",
    "exptime": "EXPTIME", "diffmaglim": "DIFFMLIM",
}  # fmt: skip
_INTEGERS = {"field": "FIELDID", "rcid": "RCID", "fid": "FILTERID", "pid": "PID", "rfid": "RFID",
             "programid": "PROGRMID"}  # fmt: skip

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """The last ``size`` values that were asked for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V | None]) -> V | None:
        """The value of a key, made where it is not kept; None is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = make()
        if value is not None:
            self._kept[key] = value
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True)
class DifferenceImage:
    """A stored difference image: its pixels on demand, its PSF, its place on the sky."""

    image: TiledImage
    psf: GridPsf
    wcs: WCS
    header: fits.Header


@dataclass(frozen=True, slots=True)
class ReferenceSources:
    """The reference's PSF catalogue: ``sourceid`` ... rows and a tree over their directions."""

    table: Table
    tree: cKDTree
    magzp: float

    def nearest(self, ra: F64, dec: F64) -> tuple[F64, NDArray[np.intp]]:
        """Distance (arcsec) and row of the nearest source of each place."""
        chord, row = self.tree.query(_directions(ra, dec))
        return np.degrees(2 * np.arcsin(chord / 2)) * 3600.0, row


def _directions(ra: F64, dec: F64) -> F64:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


class StoreForced:
    """``stream.enrich.ForcedSource`` on a product store."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._images: Bounded[str, DifferenceImage] = Bounded(IMAGES_KEPT)
        self._catalogs: Bounded[tuple[int, int, int, str], ReferenceSources] = Bounded(CATALOGS_KEPT)

    def points(self, name: str, ra: F64, dec: F64) -> list[Row | None] | None:
        """See ``ForcedSource``; None too where the image is damaged or its reference's catalogue is gone.

        Raises
        ------
        StoreUnavailable
            The store does not answer.
        """
        try:
            image = self._images.get(name, lambda: self._open(name))
            if image is None:
                return None
            where = image.header["FIELDID"], image.header["FILTERID"], image.header["RCID"]
            # A rebuilt reference has another version: its catalogue is read anew.
            key = (*where, str(image.header.get("REFVERS")))
            sources = self._catalogs.get(key, lambda: self._sources(*where))
            if sources is None:
                return None
            return measure(image, sources, ra, dec)
        except (MessageError, KeyError):
            # A missing or broken image makes no point: the alert must not wait for it.
            return None
        except StoreUnavailable:
            if self._store.exists(science_path(name, "scimrefdiffimg.fits.fz")):
                raise
            return None  # taken away since it was opened

    def _open(self, name: str) -> DifferenceImage | None:
        path = science_path(name, "scimrefdiffimg.fits.fz")
        psf = self._store.find(science_path(name, "diffimgpsf.fits"))
        if psf is None or not self._store.exists(path):
            return None
        image = TiledImage(lambda first, last: self._store.read_range(path, first, last))
        grid = by_name(psf)["PSF_GRID"]
        h = grid.header
        first = float(h["GRIDX0"]) - 1.0, float(h["GRIDY0"]) - 1.0
        stamps = np.asarray(grid.image(), np.float32)
        return DifferenceImage(
            image, GridPsf(stamps, first, (float(h["GRIDDX"]), float(h["GRIDDY"]))), WCS(image.header), image.header
        )

    def _sources(self, field: int, fid: int, rcid: int) -> ReferenceSources | None:
        data = self._store.find(reference_path(field, fid, rcid, "refpsfcat.fits"))
        if data is None:
            return None
        hdus = by_name(data)
        table = hdus[PSF_CATALOG].image()
        table = table[np.isfinite(table["ra"]) & np.isfinite(table["dec"])]
        if not len(table):
            return None
        return ReferenceSources(table, cKDTree(_directions(table["ra"], table["dec"])), float(_magzp(hdus)))


def _magzp(hdus: dict[str, fitsio.Extension]) -> float:
    for hdu in hdus.values():
        if "MAGZP" in hdu.header:
            return float(hdu.header["MAGZP"])
    raise KeyError("MAGZP")


def measure(image: DifferenceImage, sources: ReferenceSources, ra: F64, dec: F64) -> list[Row | None]:
    """Rows of ``fp_hist`` at places (deg) on one image; None where it gives no flux there."""
    x, y = pixel_positions(image.wcs, ra, dec)
    ny, nx = image.image.shape
    inside = np.isfinite(x) & np.isfinite(y) & (x > -0.5) & (y > -0.5) & (x < nx - 0.5) & (y < ny - 0.5)
    px, py = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
    rows: list[Row | None] = [None] * len(ra)
    if not inside.any():
        return rows
    windows = image.image.cutouts(np.rint(px).astype(np.int64), np.rint(py).astype(np.int64), WINDOW)
    psf = image.psf.stamps(px, py)
    distance, nearest = sources.nearest(ra, dec)
    static = _static_light(image, sources, (px, py), (distance, nearest))
    fluxes = window_fluxes(windows, psf, float(image.header["GAIN"]), static, inside)
    constant = _constant(image.header)
    for i in np.flatnonzero(np.isfinite(fluxes.flux) & np.isfinite(fluxes.error)):
        near = _neighbour(sources, float(distance[i]), int(nearest[i]))
        rows[i] = constant | _own(fluxes, int(i)) | (near or _nobody(float(ra[i]), float(dec[i])))
    return rows


def _static_light(
    image: DifferenceImage, sources: ReferenceSources, at: tuple[F64, F64], near: tuple[F64, NDArray[np.intp]]
) -> F32:
    """What the nearest reference source puts into each window, science DN: subtracted, but its photons made noise."""
    distance, row = near
    scale = float(image.header.get("FLXSCALE", 1.0))
    flux = np.maximum(np.nan_to_num(sources.table["flux"][row].astype(float)) * scale, 0.0)
    sx, sy = pixel_positions(image.wcs, sources.table["ra"][row].astype(float), sources.table["dec"][row].astype(float))
    close = (distance <= NEAREST_RADIUS) & np.isfinite(sx) & np.isfinite(sy)
    out = np.zeros((len(row), WINDOW, WINDOW), np.float32)
    if close.any():
        # The star's stamp about its own pixel, moved by whole pixels to the window about the place's.
        stamps = image.psf.stamps(np.where(close, sx, 0.0), np.where(close, sy, 0.0))
        for i in np.flatnonzero(close):
            dx, dy = round(sx[i]) - round(at[0][i]), round(sy[i]) - round(at[1][i])
            a, b = max(dy, 0), WINDOW + min(dy, 0)
            c, d = max(dx, 0), WINDOW + min(dx, 0)
            out[i, a:b, c:d] = stamps[i, a - dy : b - dy, c - dx : d - dx] * np.float32(flux[i])
    return np.maximum(out, 0)


def _single(value: Any) -> float | None:
    """A number as float32 holds it, in the fewest digits that say so; None where there is none."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{np.float32(value):.9g}")


def _constant(h: fits.Header) -> Row:
    """The fields of a point that follow from its image."""
    row: Row = {name: int(h[key]) for name, key in _INTEGERS.items()}
    row |= {name: _single(h.get(key)) for name, key in _FLOATS.items()}
    return row | {"jd": float(h["OBSJD"]), "adpctdif1": None, "adpctdif2": None}


def _own(fluxes: ForcedFlux, i: int) -> Row:
    return {
        "forcediffimflux": _single(fluxes.flux[i]),
        "forcediffimfluxunc": _single(fluxes.error[i]),
        "procstatus": str(int(fluxes.status[i])),
    }


def _neighbour(sources: ReferenceSources, distance: float, row: int) -> Row | None:
    """The nearest reference source; None beyond 5 arcsec."""
    if distance > NEAREST_RADIUS:
        return None
    star = sources.table[row]
    mag = float(star["mag"]) + sources.magzp
    values = {"distnr": distance, "magnr": mag, "sigmagnr": star["sigmag"], "chinr": star["chi"],
              "sharpnr": star["sharp"]}  # fmt: skip
    place = {"ranr": round(float(star["ra"]), 7), "decnr": round(float(star["dec"]), 7)}
    return {name: _single(value) for name, value in values.items()} | place


def _nobody(ra: float, dec: float) -> Row:
    """No reference source: the place that the schema asks for repeats the object's, as in ``candidate``."""
    empty = dict.fromkeys(("distnr", "magnr", "sigmagnr", "chinr", "sharpnr"))
    return empty | {"ranr": round(ra, 7), "decnr": round(dec, 7)}
