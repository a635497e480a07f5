"""What was learned about a readout channel from its own images: geometry of ghosts, map of persistent artefacts.

One current version each, under ``det/ccdCC/qQ``: unlike a night's frames they belong to the camera.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
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
from stream.core.identity import ccd_qid_of
from stream.core.records import U16, Sightings


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one channel; None: nothing yet."""

    ghosts: GhostGeometry | None = None
    persistent: U16 | None = None


def learned_path(rcid: int, file: str) -> str:
    """Path of ``ghosts.json`` or ``persistent.fits.fz`` of a channel."""
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


class LearnedShelf:
    """Reads what was learned, each file again only when it changed."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._known: dict[int, tuple[tuple[str | None, str | None], Learned]] = {}

    def of(self, rcid: int) -> Learned:
        """What is known of a channel now.

        Raises
        ------
        StoreUnavailable
            A file went away while it was read: the next try finds the new one.
        """
        paths = [learned_path(rcid, file) for file in ("ghosts.json", "persistent.fits.fz")]
        stamps = self._store.stamp(paths[0]), self._store.stamp(paths[1])
        known = self._known.get(rcid)
        if known is not None and known[0] == stamps:
            return known[1]
        ghosts = None if stamps[0] is None else _ghosts(self._read(paths[0]))
        persistent = None if stamps[1] is None else _persistent(self._read(paths[1]))
        self._known = {rcid: (stamps, Learned(ghosts, persistent))}  # a worker's channels come in turns; maps are large
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
