"""The product store: one URL, bytes under deterministic names, every file whole or not there.

A folder by default; anything fsspec knows by its URL (``s3://bucket/ztf``). Products are made in memory and written
in one go: a folder gets a temporary file that is renamed, an object store writes objects whole by itself. So a
reader never meets half a product, and a worker killed while writing leaves nothing that counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

import fsspec
from astropy.wcs import WCS
from fsspec.implementations.local import LocalFileSystem

from stream.archive import catalogs, frames
from stream.archive.paths import REFERENCE_SUFFIXES, calibration_path, instrument_path, notes_path, reference_path
from stream.archive.tiles import TiledImage
from stream.core.errors import MessageError, StoreUnavailable, UsageError
from stream.core.records import CalibrationFrame, InstrumentModel, PixelMask, Reference, ReferenceNotes, Row


class ProductStore:
    """Products by name.

    Parameters
    ----------
    url : str
        A folder (made when first written to) or an fsspec URL.

    Raises
    ------
    UsageError
        No such kind of URL, or the library for it is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = str(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"product store {self.url!r}: {error}") from error
        self.root = str(root).rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"ProductStore({self.url!r})"

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}"

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(f"product store {self.url}: {path}: {error.strerror or error}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, over an old one where there is one.

        Raises
        ------
        StoreUnavailable
            The store cannot be written.
        """
        full = self._full(path)
        with self._translated(path):
            if not self._local:
                self._fs.pipe_file(full, data)
                return
            folder, name = os.path.split(full)
            scratch = f"{folder}/.{name}.{os.getpid()}"
            try:
                file = open(scratch, "wb")  # noqa: SIM115 - closed below; the folder is made where it is missing
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                file = open(scratch, "wb")  # noqa: SIM115
            try:
                with file:
                    file.write(data)
                os.replace(scratch, full)
            except BaseException:
                with suppress(OSError):
                    os.unlink(scratch)
                raise

    def find(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none. ``StoreUnavailable`` where the store does not answer."""
        with self._translated(path):
            try:
                data: bytes = self._fs.cat_file(self._full(path))
            except FileNotFoundError:
                return None
            return data

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        with self._translated(path), suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    def read(self, path: str) -> bytes:
        """A file's bytes; ``UsageError`` where there is none."""
        data = self.find(path)
        if data is None:
            raise UsageError(f"product store {self.url} has no {path}")
        return data

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of a file."""
        with self._translated(path):
            data: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
            return data

    def stamp(self, path: str) -> str | None:
        """Something that changes when a file (or folder) does; None where there is none."""
        with self._translated(path):
            try:
                if self._local:
                    status = os.stat(self._full(path))
                    return f"{status.st_mtime_ns}:{status.st_ino}:{status.st_size}"
                self._fs.invalidate_cache(self._full(path))
                info = self._fs.info(self._full(path))
            except FileNotFoundError:
                return None
        return ":".join(str(info.get(key)) for key in ("ETag", "etag", "LastModified", "created", "mtime", "size"))

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.stamp(path) is not None

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted, half-written ones left out; empty where there is no such folder."""
        with self._translated(folder):
            try:
                if self._local:
                    found = os.listdir(self._full(folder))
                else:
                    self._fs.invalidate_cache(self._full(folder))
                    found = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._full(folder), False)]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in found if not name.startswith("."))

    def write_calibration(self, frame: CalibrationFrame) -> str:
        """Write a bias or flat and its uncertainty; returns the path of the frame."""
        main, unc = frames.encode_calibration(frame)
        where = frame.night, frame.kind, frame.fid, frame.rcid
        self.write(calibration_path(*where, unc=True), unc)
        path = calibration_path(*where)
        self.write(path, main)
        return path

    def read_calibration(
        self, night: str, kind: str, fid: int, rcid: int, *, unc: bool = True
    ) -> CalibrationFrame | None:
        """A calibration frame, or None; without ``unc`` its uncertainty is NaN everywhere and costs nothing."""
        main = self.find(calibration_path(night, kind, fid, rcid))
        if main is None:
            return None
        spread = self.find(calibration_path(night, kind, fid, rcid, unc=True)) if unc else None
        return frames.decode_calibration(main, spread)

    def write_pixelmask(self, mask: PixelMask) -> str:
        """Write a pixel mask; returns its path."""
        path = calibration_path(mask.night, "pmask", mask.fid, mask.rcid)
        self.write(path, frames.encode_pixelmask(mask))
        return path

    def write_instrument(self, model: InstrumentModel) -> str:
        """Write the instrument model of a CCD; returns its path."""
        path = instrument_path(model.night, model.ccdid)
        self.write(path, frames.encode_instrument(model))
        return path

    def write_reference(self, reference: Reference) -> str:
        """Write a reference and put it in use; returns the path of its image. The one that it replaces is kept.

        ``reflog.json`` is last: with it the set is complete.
        """
        where = reference.field, reference.fid, reference.rcid
        self.replace_reference(*where, reference.version, frames.encode_reference(reference))
        return reference_path(*where, REFERENCE_SUFFIXES[0])

    def replace_reference(self, field: int, fid: int, rcid: int, version: str, files: Mapping[str, bytes]) -> None:
        """Put the files of a version in use, those of the version so far under its own name first."""
        current = self.reference_log(field, fid, rcid)
        old = None if current is None else str(current["version"])
        if old is not None and old != version and self.reference_log(field, fid, rcid, old) is None:
            for suffix in REFERENCE_SUFFIXES:
                data = self.find(reference_path(field, fid, rcid, suffix))
                if data is not None:
                    self.write(reference_path(field, fid, rcid, suffix, old), data)
        for suffix in REFERENCE_SUFFIXES:
            self.write(reference_path(field, fid, rcid, suffix), files[suffix])

    def reference_log(self, field: int, fid: int, rcid: int, version: str | None = None) -> Row | None:
        """What a reference says of itself (version, inputs, quality), or None; ``version`` None: the one in use."""
        data = self.find(reference_path(field, fid, rcid, REFERENCE_SUFFIXES[-1], version))
        return None if data is None else catalogs.read_json(data)

    def reference_grid(self, field: int, fid: int, rcid: int) -> tuple[WCS, tuple[int, int]] | None:
        """WCS and shape (ny, nx) of the reference in use, or None; reads a header only."""
        path = reference_path(field, fid, rcid, REFERENCE_SUFFIXES[0])
        if not self.exists(path):
            return None
        image = TiledImage(lambda first, last: self.read_range(path, first, last))
        return WCS(image.header), image.shape

    def reference_files(self, field: int, fid: int, rcid: int, version: str | None = None) -> dict[str, bytes] | None:
        """All files of a reference by suffix; None where one is missing."""
        files: dict[str, bytes] = {}
        for suffix in reversed(REFERENCE_SUFFIXES):  # the log first: without it there is none
            data = self.find(reference_path(field, fid, rcid, suffix, version))
            if data is None:
                return None
            files[suffix] = data
        return files

    def read_reference(self, field: int, fid: int, rcid: int, version: str | None = None) -> Reference | None:
        """A reference, or None; without ``version`` the one in use. With its notes, where there are any.

        Where the one in use is just being replaced (or whoever replaced it died), it is the one that is being
        replaced: the log, written last, still names it, and it has been kept.

        Raises
        ------
        MessageError
            Its files are damaged or of different versions.
        """
        current = self.reference_log(field, fid, rcid)
        if version is not None and current is not None and current["version"] == version:
            kept = self.reference_files(field, fid, rcid, version)
            if kept is not None:
                return self._with_notes(frames.decode_reference(kept))
            version = None
        files = self.reference_files(field, fid, rcid, version)
        if files is None:
            return None
        try:
            return self._with_notes(frames.decode_reference(files))
        except MessageError:
            kept = None
            if version is None and current is not None:
                kept = self.reference_files(field, fid, rcid, str(current["version"]))
            if kept is None:
                raise
            return self._with_notes(frames.decode_reference(kept))

    def _with_notes(self, reference: Reference) -> Reference:
        notes = self.read_notes(reference.field, reference.fid, reference.rcid, reference.version)
        return reference if notes is None else replace(reference, notes=notes)

    def read_notes(self, field: int, fid: int, rcid: int, version: str) -> ReferenceNotes | None:
        """What a subtraction found out about a version of a reference; None where nothing or damaged."""
        data = self.find(notes_path(field, fid, rcid, version))
        return None if data is None else frames.decode_notes(data)

    def write_notes(self, field: int, fid: int, rcid: int, notes: ReferenceNotes) -> None:
        """Keep such notes beside the reference. Who reads them judges whether its code made them."""
        self.write(notes_path(field, fid, rcid, notes.version), frames.encode_notes(notes))
