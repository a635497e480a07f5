"""Which files to ingest: arguments of a command expanded, and a folder watched while a camera writes into it.

A file is handed on when it has stopped growing and only once. What is decided stands in ``settle_step``, a
function of two listings; the loop around it only looks and waits.
"""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream.core.errors import PacketError, UsageError
from stream.ingest.keywords import parse_name

# What writers call a file before it is whole: rsync's .name.XXXXXX, browsers, wget, editors.
TEMPORARY_SUFFIXES = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", ".writing", "~")
_CHUNK = 1 << 20


def is_packet_name(name: str) -> bool:
    """Whether a folder's entry is a CCD packet by its name: not hidden, not temporary, the camera's pattern."""
    if name.startswith(".") or name.endswith(TEMPORARY_SUFFIXES) or not name.endswith((".fits", ".fits.fz")):
        return False
    try:
        parse_name(name)
    except PacketError:
        return False
    return True


def expand_inputs(args: Sequence[str | Path]) -> list[Path]:
    """Files named by arguments, each once, in the arguments' order and sorted within a glob or folder.

    A file is taken whatever its name; a folder gives the packets in it and below, by name.

    Raises
    ------
    UsageError
        No argument, or one that matches nothing.
    """
    if not args:
        raise UsageError("no input: name files, a pattern such as 'night/*.fits.fz', or a folder")
    found: dict[Path, None] = {}
    for arg in args:
        matches = _expand(str(arg))
        if not matches:
            raise UsageError(f"{arg}: no such file, and no CCD packet (ztf_*_cCC_t.fits[.fz]) in or behind it")
        found.update(dict.fromkeys(matches))
    return list(found)


def _expand(arg: str) -> list[Path]:
    path = Path(arg).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(entry for entry in path.rglob("*") if is_packet_name(entry.name) and entry.is_file())
    paths = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
    return [file for match in paths for file in ([match] if match.is_file() else _expand(str(match)))]


@dataclass(frozen=True, slots=True)
class FileState:
    """What a listing tells of a file."""

    path: Path
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A file that is being watched: its last state, and since when (s, any clock) it has not changed."""

    state: FileState
    since: float


def settle_step(
    pending: Mapping[Path, Pending], listing: Iterable[FileState], now: float, settle: float
) -> tuple[list[FileState], dict[Path, Pending]]:
    """One poll: which files are whole now, and what to remember for the next poll.

    A file is whole when it is not empty and its inode, size and modification time have been the same in at least
    two polls and for ``settle`` seconds. A whole file stays remembered, so that it is not decided anew; the
    caller asks ``since`` nothing and simply drops what it has handed on.

    Parameters
    ----------
    pending : mapping
        What the last poll returned.
    listing : iterable of FileState
        What the folder holds now.
    now, settle : float
        Seconds.
    """
    whole: list[FileState] = []
    remembered: dict[Path, Pending] = {}
    for state in sorted(listing, key=lambda state: state.path):
        before = pending.get(state.path)
        unchanged = before is not None and before.state == state
        since = before.since if before is not None and unchanged else now
        remembered[state.path] = Pending(state, since)
        if unchanged and state.size > 0 and now - since >= settle:
            whole.append(state)
    return whole, remembered


def list_packets(folder: Path) -> list[FileState]:
    """States of the packets in a folder and below, sorted by path; a file that vanishes meanwhile is left out."""
    states = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(filter(is_packet_name, names)):
            path = Path(root) / name
            try:
                stat = path.stat()
            except OSError:
                continue  # gone between the listing and now
            states.append(FileState(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return states


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def watch_folder(folder: Path, poll_seconds: float, settle: float, stop: threading.Event) -> Iterator[Path]:
    """Packets as they become whole in a folder (and below), each once, until ``stop`` is set.

    The files that are there at the start come first. A file counts as another one when its name or its content
    (SHA-256) differs: a copy or move of a packet is not handed on again, a rewritten one is. This memory lasts
    as long as the iterator.

    Parameters
    ----------
    folder : Path
    poll_seconds : float
        Pause between two looks.
    settle : float
        Seconds a file must have stayed as it is.
    stop : threading.Event
        Ends the iteration, within one pause.

    Raises
    ------
    UsageError
        No such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder to watch: make it first")
    pending: dict[Path, Pending] = {}
    handled: set[FileState] = set()
    yielded: set[tuple[str, str]] = set()
    now = 0.0
    while not stop.is_set():
        whole, pending = settle_step(pending, list_packets(folder), now, settle)
        for state in whole:
            if state in handled:
                continue
            handled.add(state)
            try:
                key = state.path.name, file_sha256(state.path)
            except OSError:
                handled.discard(state)  # gone or not readable yet: looked at again if it is there next time
                continue
            if key not in yielded:
                yielded.add(key)
                yield state.path
                if stop.is_set():
                    return
        stop.wait(poll_seconds)
        now += poll_seconds
