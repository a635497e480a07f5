"""Files of the catalogue store through fsspec: whole files in, whole files out."""

from __future__ import annotations

import posixpath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stream.core.errors import StoreUnavailable


class Files:
    """A tree of files under a root URL (a folder, ``s3://...``, ``memory://...``)."""

    def __init__(self, root: str) -> None:
        try:
            self._fs, path = fsspec.core.url_to_fs(str(root))
        except (ValueError, ImportError) as error:
            raise StoreUnavailable(f"store {root}: {error}") from error
        self.root = str(path).rstrip("/")

    def stamp(self, path: str) -> str | None:
        """What changes when the file does; None where there is none."""
        try:
            info: dict[str, Any] = self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error}") from error
        # A file replaced within the clock's tick still has another inode, entity tag or creation time.
        parts = (info.get(k) for k in ("size", "mtime", "ino", "ETag", "etag", "LastModified", "created"))
        return ",".join(str(v) for v in parts if v is not None)

    def read(self, path: str) -> bytes:
        """The bytes; ``FileNotFoundError`` where there is none, ``StoreUnavailable`` where the store fails."""
        try:
            data: bytes = self._fs.cat_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error}") from error
        return data

    def write(self, path: str, data: bytes) -> None:
        """Replace the file in one step: a reader sees the old or the new, never a part."""
        try:
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            if isinstance(self._fs, LocalFileSystem):
                self._fs.pipe_file(path + ".part", data)
                self._fs.mv(path + ".part", path)
            else:
                self._fs.pipe_file(path, data)
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error}") from error

    def names(self, path: str) -> list[str]:
        """Paths of the files directly in a folder, sorted; none where there is no such folder."""
        try:
            entries = self._fs.ls(path, detail=True, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error}") from error
        return sorted(e["name"] for e in entries if e["type"] == "file" and not e["name"].endswith(".part"))
