"""Schema identifiers, and messages that carry theirs: the Confluent wire format for topics of our own.

A framed message is a zero byte, the schema's identifier (4 bytes, big-endian) and the Avro bytes. Public topics never
hold one: brokers' readers take containers only. Identifiers are computed, not handed out: the first 31 bits of the
SHA-256 of the schema's text, so that every writer, reader and registry knows the same ones without asking anybody, and
a schema that changes gets another.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cache

from stream.alert.schema import known_versions, schema_files, schema_text

_FRAME = struct.Struct(">bI")  # magic byte, schema identifier
FRAME_SIZE = _FRAME.size


@dataclass(frozen=True, slots=True)
class Registered:
    """One version of a record's schema: ``subject`` is the record's full name, ``version`` counts from 1."""

    subject: str
    version: int
    folder: str  # zsds/1
    id: int
    text: str


def schema_id(text: str) -> int:
    """Identifier of a schema text, 1 to 2^31 - 1."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF) or 1


def _age(folder: str) -> tuple[bool, list[int]]:
    """Order of versions: the survey's before ours, each by its number."""
    family, version = folder.split("/")
    return family != "ztf", [int(part) for part in version.split(".")]


@cache
def subjects() -> dict[str, tuple[Registered, ...]]:
    """Every record of the package and its versions, oldest first."""
    found: dict[str, list[Registered]] = {}
    for folder in sorted(known_versions(), key=_age):
        for name in schema_files(folder):
            text = schema_text(folder, name)
            versions = found.setdefault(name, [])
            versions.append(Registered(name, len(versions) + 1, folder, schema_id(text), text))
    return {name: tuple(found[name]) for name in sorted(found)}


@cache
def by_id() -> dict[int, tuple[Registered, ...]]:
    """The schemas by identifier; the same text may be registered under several subjects or versions."""
    found: dict[int, list[Registered]] = {}
    for versions in subjects().values():
        for one in versions:
            found.setdefault(one.id, []).append(one)
    return {number: tuple(ones) for number, ones in found.items()}


def frame(name: str, data: bytes) -> bytes:
    """Avro bytes of a record, written with its newest schema, as a framed message."""
    return _FRAME.pack(0, subjects()[name][-1].id) + data


def unframe(name: str, data: bytes) -> tuple[Registered | None, bytes]:
    """The schema that a message says it was written with, and its Avro bytes; None where it is not framed."""
    if len(data) > FRAME_SIZE and data[0] == 0:
        number = _FRAME.unpack_from(data)[1]
        for one in subjects().get(name, ()):
            if one.id == number:
                return one, data[FRAME_SIZE:]
    return None, data
