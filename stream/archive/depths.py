"""Depth maps as files, and the depth of remembered epochs at a place read from them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.archive import fitsio
from stream.archive.catalogs import by_name
from stream.archive.paths import science_path
from stream.archive.store import ProductStore
from stream.core.depth import DepthMap
from stream.core.errors import MessageError, UsageError

SUFFIX = "depth.fits"
_NAME = "DEPTH"
# 19 kB each: a month of epochs of a few tens of quadrant positions.
_KEPT = 1024
_STEP = 1e-3  # mag: a limit is not known better


def encode_depth(depth: DepthMap) -> bytes:
    """``depth.fits``: the limits in steps of a mmag; 0 where there is none."""
    steps = np.where(np.isfinite(depth.limit), np.rint(depth.limit / _STEP), 0)
    cards = {
        "CELL": (depth.cell, "side of a cell [px]"),
        "IMGNX": (depth.shape[1], "image that it belongs to [px]"),
        "IMGNY": (depth.shape[0], "image that it belongs to [px]"),
        "BUNIT": ("mmag", "5-sigma limit of a point source; 0: none"),
    }
    return fitsio.primary() + fitsio.plain_hdu(steps.clip(0, 32767).astype(np.int16), cards, _NAME)


def decode_depth(data: bytes) -> DepthMap:
    """The map of a file; ``MessageError`` where it is none."""
    try:
        extension = by_name(data)[_NAME]
        steps = np.asarray(extension.image(), np.float32)
        shape = int(extension.header["IMGNY"]), int(extension.header["IMGNX"])
        limit = np.where(steps > 0, steps * np.float32(_STEP), np.float32(np.nan))
        return DepthMap(limit, shape, int(extension.header["CELL"]))
    except KeyError as error:
        raise MessageError(f"no depth map: {error}") from error


class Seen(Protocol):
    """An epoch as ``stream.enrich`` remembers it."""

    @property
    def name(self) -> str:
        """Base name of the quadrant's products."""
        ...

    @property
    def corners(self) -> tuple[float, ...]:
        """ra1, dec1 .. ra4, dec4 (deg)."""
        ...

    @property
    def diffmaglim(self) -> float | None:
        """The quadrant's own limit; None: no difference image was made."""
        ...


class StoreDepths:
    """Local limits from the store (``enrich.Depth``): of epochs whose map is not there, the quadrant's own.

    A place's pixel follows from the epoch's corners, to a few px of a cell's thirty: no WCS needs to be read.
    """

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, DepthMap | None] = OrderedDict()

    def __call__(self, epoch: Seen, ra: float, dec: float) -> float | None:
        """The limit (mag) of an epoch at a place (deg); None: it reached none there."""
        depth = self._map(epoch.name) if epoch.diffmaglim is not None else None
        if depth is None or len(epoch.corners) != 8:
            return epoch.diffmaglim
        limit = float(depth.at(*pixel_in(epoch.corners, depth.shape, ra, dec)))
        return round(limit, 3) if np.isfinite(limit) else None

    def _map(self, name: str) -> DepthMap | None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        try:
            depth = decode_depth(self._store.read(science_path(name, SUFFIX)))
        except UsageError:  # written by older software, or not yet
            return None
        except MessageError:
            depth = None
        self._kept[name] = depth
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return depth


def pixel_in(corners: tuple[float, ...], shape: tuple[int, int], ra: float, dec: float) -> tuple[float, float]:
    """Pixel of a sky place (deg) in a quadrant of ``shape`` (ny, nx).

    ``corners`` are its outer ones, ra1, dec1 .. ra4, dec4 (deg), from the first pixel on along x. Affine in their
    tangent plane: distortion bends that by some px.
    """
    ny, nx = shape
    places: NDArray[np.float64] = np.asarray(corners, float).reshape(4, 2)
    ra0, dec0 = places[0]

    def plane(r: NDArray[np.float64], d: NDArray[np.float64]) -> NDArray[np.float64]:
        east, north, pole = np.radians((r - ra0 + 180.0) % 360.0 - 180.0), np.radians(d), np.radians(dec0)
        depth = np.sin(pole) * np.sin(north) + np.cos(pole) * np.cos(north) * np.cos(east)
        xi = np.cos(north) * np.sin(east) / depth
        eta = (np.cos(pole) * np.sin(north) - np.sin(pole) * np.cos(north) * np.cos(east)) / depth
        return np.stack([np.ones_like(xi), xi, eta], axis=-1)

    pixels = np.array([[-0.5, -0.5], [nx - 0.5, -0.5], [nx - 0.5, ny - 0.5], [-0.5, ny - 0.5]])
    change = np.linalg.lstsq(plane(places[:, 0], places[:, 1]), pixels, rcond=None)[0]
    x, y = plane(np.array([ra]), np.array([dec]))[0] @ change
    return float(x), float(y)
