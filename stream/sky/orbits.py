"""Orbits of known objects: the Minor Planet Center's own lines, merged by designation."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from stream.core.errors import UsageError
from stream.sky.files import Files
from stream.sky.schema import ORBITS, folder

ASTEROIDS = "MPCORB.DAT"
COMETS = "CometEls.txt"

# Columns by the MPC's format descriptions, 0-based here. MPCORB: epoch packed (century letter, year, month,
# day), then M, peri, node, incl, e, n, a.
_PACKED_EPOCH = re.compile(r"[I-L]\d\d[1-9A-C][1-9A-V]")
_ASTEROID_NUMBERS = ((26, 35), (37, 46), (48, 57), (59, 68), (70, 79), (80, 91), (92, 103))
# CometEls: perihelion year, month, day, q, e, peri, node, incl.
_COMET_NUMBERS = ((14, 18), (19, 21), (22, 29), (30, 39), (41, 49), (51, 59), (61, 69), (71, 79))


def orbit_key(line: str) -> tuple[str, str] | None:
    """File that a line belongs to and its object's designation; None for what is no orbit (headers, blanks)."""
    if len(line) >= 103 and _PACKED_EPOCH.fullmatch(line[20:25]) and _all_numbers(line, _ASTEROID_NUMBERS):
        return ASTEROIDS, line[:7].strip()
    if len(line) >= 79 and line[4:5] in "CPDXAI" and _all_numbers(line, _COMET_NUMBERS):
        return COMETS, line[:12].strip()  # number, orbit type, designation or fragment
    return None


def _all_numbers(line: str, columns: tuple[tuple[int, int], ...]) -> bool:
    try:
        return all(float(line[a:b]) is not None for a, b in columns)
    except ValueError:
        return False


def read_lines(data: bytes) -> list[str]:
    """Lines of a plain or gzip file, without line ends."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("latin-1").splitlines()


def import_orbits(path: Path, store: Files) -> tuple[int, int, list[str]]:
    """Merge the orbit lines of a file into the store's.

    Newer lines replace those of the same designation; the files are sorted by designation.

    Returns
    -------
    lines read, lines new, paths written

    Raises
    ------
    UsageError
        If the file is absent, damaged, or holds not one orbit.
    """
    try:
        lines = read_lines(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except EOFError as error:
        raise UsageError(f"{path}: the gzip file is cut short") from error
    found: dict[str, dict[str, str]] = {ASTEROIDS: {}, COMETS: {}}
    n_read = 0
    for line in lines:
        key = orbit_key(line)
        if key is not None:
            found[key[0]][key[1]] = line.rstrip()
            n_read += 1
    if n_read == 0:
        raise UsageError(
            f"{path}: no line is an orbit in the format of MPCORB.DAT (packed epoch, degrees) or CometEls.txt"
        )
    n_new, written = 0, []
    for name, orbits in found.items():
        if not orbits:
            continue
        target = f"{folder(store.root, ORBITS)}/{name}"
        old = {}
        if store.stamp(target) is not None:
            old = {key[1]: line for line in read_lines(store.read(target)) if (key := orbit_key(line)) is not None}
        n_new += len(orbits.keys() - old.keys())
        merged = old | orbits
        text = "".join(merged[key] + "\n" for key in sorted(merged))
        store.write(target, text.encode("latin-1"))
        written.append(target)
    return n_read, n_new, written


def orbit_lines(root: str) -> tuple[list[str], list[str]]:
    """All imported orbits: MPCORB lines and CometEls lines, each sorted by designation."""
    store = Files(root)
    result = []
    for name in (ASTEROIDS, COMETS):
        path = f"{folder(store.root, ORBITS)}/{name}"
        result.append(read_lines(store.read(path)) if store.stamp(path) is not None else [])
    return result[0], result[1]
