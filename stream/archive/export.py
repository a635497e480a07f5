"""A night of alerts as one tar, as the survey published it: each alert its own ``<candid>.avro``."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from stream.core.errors import ZtfError

SUMS = "MD5SUMS"
_PIECE = 1 << 20


def tar_name(night: str, programid: int) -> str:
    """The survey's name for a night's tar."""
    name = {1: "public", 2: "partnership"}.get(programid, f"programid{programid}")
    return f"ztf_{name}_{night}.tar.gz"


def write_tar(
    path: Path, packets: Iterable[tuple[int, bytes]], progress: Callable[[int], None] = lambda done: None
) -> int:
    """Packets (candid, bytes) as members ``<candid>.avro``, with no owner and no time; returns how many.

    The same packets in the same order make the same bytes; a name that ends with ``.gz`` or ``.tgz`` is compressed.

    Raises
    ------
    ZtfError
        The file cannot be written.
    """
    done = 0
    try:
        with path.open("wb") as file:
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix in (".gz", ".tgz") else file
            with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[arg-type]
                for candid, packet in packets:
                    member = tarfile.TarInfo(f"{candid}.avro")
                    member.size, member.mode = len(packet), 0o644
                    tar.addfile(member, io.BytesIO(packet))
                    done += 1
                    progress(done)
    except OSError as error:
        raise ZtfError(f"{path} cannot be written: {error.strerror}") from error
    return done


def note_sum(path: Path) -> str:
    """Write the file's MD5 into ``MD5SUMS`` beside it, a line a file as ``md5sum -c`` reads it; returns the sum."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    sums = path.parent / SUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    others = [line for line in lines if line.partition("  ")[2] != path.name]
    lines = sorted([*others, f"{digest.hexdigest()}  {path.name}"], key=_named)
    sums.write_text("".join(f"{line}\n" for line in lines))
    return digest.hexdigest()


def _named(line: str) -> str:
    return line.partition("  ")[2]
