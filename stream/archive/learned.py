"""What was learned about a readout channel from its own images: geometry of ghosts, persistent artefacts, distortion.

One current version each, under ``det/ccdCC/qQ``: unlike a night's frames they belong to the camera.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from stream.archive import fitsio
from stream.archive.catalogs import json_bytes, read_json
from stream.archive.frames import as_signed, as_unsigned
from stream.archive.paths import parse_science_name
from stream.archive.products import science_files
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, StoreUnavailable, UsageError
from stream.core.flags import Mask
from stream.core.ghosts import GhostGeometry
from stream.core.identity import FILTER_CODES, ccd_qid_of
from stream.core.records import U16, Distortion, Sightings

if TYPE_CHECKING:
    from stream.astrometry.distortion import Solved

Shape = tuple[int, int]
_HEADER_BYTES = 100_000  # primary and image header of a science image: some 40,000


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one channel; None: nothing yet."""

    ghosts: GhostGeometry | None = None
    persistent: U16 | None = None
    distortion: Mapping[int, Distortion] = field(default_factory=dict)  # by filter


def learned_path(rcid: int, file: str) -> str:
    """Path of ``ghosts.json``, ``persistent.fits.fz`` or ``distortion.json`` of a channel."""
    ccdid, qid = ccd_qid_of(rcid)
    return f"det/ccd{ccdid:02d}/q{qid}/{file}"


def write_ghosts(store: ProductStore, rcid: int, geometry: GhostGeometry, n_exposures: int) -> str:
    """Store a channel's ghost geometry; its path."""
    path = learned_path(rcid, "ghosts.json")
    store.write(path, json_bytes({**geometry.as_dict(), "n_exposures": n_exposures}))
    return path


def write_persistent(store: ProductStore, rcid: int, mask: U16, nights: Sequence[str], n_exposures: int) -> str:
    """Store a channel's map of persistent artefacts; its path."""
    path = learned_path(rcid, "persistent.fits.fz")
    cards = {
        "RCID": rcid,
        "NEXP": (n_exposures, "exposures it was learned from"),
        "NIGHT1": (min(nights, default=""), "first night"),
        "NIGHT2": (max(nights, default=""), "last night"),
        "NPIX": (int(np.count_nonzero(mask)), "pixels"),
        "MBIT15": (Mask.PERSISTENT.name, "artefact that returns at the same pixel"),
    }
    store.write(path, fitsio.primary() + fitsio.int_hdu(as_signed(mask), cards, "PERSISTENT"))
    return path


def write_distortion(store: ProductStore, rcid: int, models: Sequence[Distortion]) -> str:
    """Store a channel's distortion, one model a filter, those of other filters kept; its path."""
    path = learned_path(rcid, "distortion.json")
    old = store.find(path)
    row = {} if old is None else read_json(old)
    for model in models:
        row[FILTER_CODES[model.fid]] = {
            "mean": model.mean.tolist(),
            # JSON has no infinity: null where nothing is known.
            "sigma": [[value if math.isfinite(value) else None for value in pair] for pair in model.sigma.tolist()],
            "n_exposures": model.n_exposures,
            "nights": list(model.nights),
        }
    store.write(path, json_bytes(row))
    return path


class LearnedShelf:
    """Reads what was learned, each file again only when it changed."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._known: dict[int, tuple[tuple[str | None, ...], Learned]] = {}

    def of(self, rcid: int) -> Learned:
        """What is known of a channel now.

        Raises
        ------
        StoreUnavailable
            A file went away while it was read: the next try finds the new one.
        """
        paths = [learned_path(rcid, file) for file in ("ghosts.json", "persistent.fits.fz", "distortion.json")]
        stamps = tuple(self._store.stamp(path) for path in paths)
        known = self._known.get(rcid)
        if known is not None and known[0] == stamps:
            return known[1]
        ghosts = None if stamps[0] is None else _ghosts(self._read(paths[0]))
        persistent = None if stamps[1] is None else _persistent(self._read(paths[1]))
        distortion = {} if stamps[2] is None else _distortion(rcid, self._read(paths[2]))
        self._known = {
            rcid: (stamps, Learned(ghosts, persistent, distortion))
        }  # a worker's channels come in turns; maps are large
        return self._known[rcid][1]

    def _read(self, path: str) -> bytes:
        data = self._store.find(path)
        if data is None:
            raise StoreUnavailable(f"{path} was there a moment ago")
        return data


def _ghosts(data: bytes) -> GhostGeometry:
    row = dict(read_json(data))
    row.pop("n_exposures", None)
    return GhostGeometry.from_dict(row)


def _persistent(data: bytes) -> U16:
    extensions = fitsio.read_hdus(data)
    if len(extensions) < 2:
        raise MessageError("not a map of persistent artefacts")
    return as_unsigned(extensions[1].image())


def _distortion(rcid: int, data: bytes) -> dict[int, Distortion]:
    row, models = read_json(data), {}
    try:
        for fid, code in FILTER_CODES.items():
            if code in row:
                one = row[code]
                sigma = [[math.inf if value is None else float(value) for value in pair] for pair in one["sigma"]]
                mean, nights = np.asarray(one["mean"], float).reshape(15, 2), (one["nights"][0], one["nights"][1])
                models[fid] = Distortion(rcid, fid, mean, np.reshape(sigma, (15, 2)), int(one["n_exposures"]), nights)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MessageError(f"not a distortion of channel {rcid} of ours: {error}") from error
    return models


def read_solutions(store: ProductStore, products: Sequence[tuple[str, str, str]]) -> list[tuple[int, Solved, Shape]]:
    """Filter, solution and image shape of ``sciimg.fits.fz`` files, from their headers."""
    from astropy.wcs import WCS

    from stream.astrometry.distortion import Solved

    found = []
    for _, night, path in products:
        header = _science_header(store, path)
        shape = int(header["NAXIS2"]), int(header["NAXIS1"])
        found.append((int(header["FILTERID"]), Solved(WCS(header), int(header.get("ASTROMN", 0)), night), shape))
    return found


def _science_header(store: ProductStore, path: str) -> fits.Header:
    """Header of a science image: its first bytes are enough, unless it is longer than any of ours."""
    try:
        with warnings.catch_warnings(action="ignore", category=AstropyUserWarning):  # that the file is cut off
            return fitsio.read_header(store.read_range(path, 0, _HEADER_BYTES), "SCIIMG")
    except MessageError:
        return fitsio.read_header(store.read(path), "SCIIMG")


def channels_of(store: ProductStore, first: str, last: str) -> list[int]:
    """Readout channels that have science images of nights ``first`` to ``last``."""
    channels = set()
    for name, _ in science_files(store, "_sciimg.fits.fz", first, last):
        try:
            channels.add(parse_science_name(name).rcid)
        except UsageError:  # somebody else's file in our tree
            continue
    return sorted(channels)


def channel_products(store: ProductStore, rcid: int, ending: str, first: str, last: str) -> list[tuple[str, str, str]]:
    """Base name, night and path of a channel's products with this ending, of nights ``first`` to ``last``."""
    found = []
    for name, path in science_files(store, ending, first, last):
        try:
            parts = parse_science_name(name)
        except UsageError:  # somebody else's file in our tree
            continue
        if parts.rcid == rcid:
            found.append((name, parts.night, path))
    return found


def read_sightings(store: ProductStore, products: Sequence[tuple[str, str, str]]) -> Sightings:
    """Every candidate, sent or rejected, of ``candidates.parquet`` files."""
    columns: list[list[NDArray[Any]]] = []
    for index, (_, night, path) in enumerate(products):
        table = pq.read_table(io.BytesIO(store.read(path)), columns=["xpos", "ypos", "ra", "dec"])
        x, y, ra, dec = (np.asarray(table[name].to_numpy(), np.float64) for name in table.column_names)
        # Packets count pixels from 1.
        columns.append([x - 1.0, y - 1.0, ra, dec, np.full(len(x), index), np.full(len(x), int(night))])
    joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)] if columns else [np.zeros(0)] * 6
    x, y, ra, dec = joined[:4]
    return Sightings(x, y, ra, dec, joined[4].astype(np.int64), joined[5].astype(np.int64))
