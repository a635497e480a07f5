"""The schemas as a Confluent Schema Registry answers for them, read-only.

Subjects are the records' full names (the registry's RecordNameStrategy): nightly topics have no names that could be
registered ahead. Only answers are made here; ``ztf-stream schemas serve`` puts them on a port.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from stream.alert.wire import Registered, by_id, subjects

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "FULL_TRANSITIVE"  # every version reads every other: checked by the tests of each change
Answer = tuple[int, Any]  # HTTP status, JSON value


class _Missing(Exception):
    """What was asked for is not there: HTTP 404 with the registry's own code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _subject(name: str) -> tuple[Registered, ...]:
    found = subjects().get(name)
    if found is None:
        raise _Missing(40401, f"Subject '{name}' not found.")
    return found


def _version(name: str, version: str) -> Registered:
    versions = _subject(name)
    if version in ("latest", "-1"):
        return versions[-1]
    if not version.isdecimal() or not 1 <= int(version) <= len(versions):
        raise _Missing(40402, f"Version {version} not found.")
    return versions[int(version) - 1]


def _with_id(number: str) -> tuple[Registered, ...]:
    found = by_id().get(int(number))
    if found is None:
        raise _Missing(40403, f"Schema {number} not found")
    return found


def _whole(one: Registered) -> dict[str, Any]:
    return {"subject": one.subject, "version": one.version, "id": one.id, "schemaType": "AVRO", "schema": one.text}


def _id(number: str) -> Any:
    return {"schemaType": "AVRO", "schema": _with_id(number)[0].text}


def _id_versions(number: str) -> Any:
    return [{"subject": one.subject, "version": one.version} for one in _with_id(number)]


def _config(_subject_name: str = "") -> Any:
    return {"compatibilityLevel": COMPATIBILITY}


_NAME, _NUMBER = "([^/]+)", r"(\d+)"
_ROUTES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("/", dict),
    ("/subjects", lambda: list(subjects())),
    (f"/subjects/{_NAME}/versions", lambda name: [one.version for one in _subject(name)]),
    (f"/subjects/{_NAME}/versions/{_NAME}", lambda name, version: _whole(_version(name, version))),
    (f"/subjects/{_NAME}/versions/{_NAME}/schema", lambda name, version: json.loads(_version(name, version).text)),
    (f"/schemas/ids/{_NUMBER}", _id),
    (f"/schemas/ids/{_NUMBER}/schema", lambda number: json.loads(_with_id(number)[0].text)),
    (f"/schemas/ids/{_NUMBER}/subjects", lambda number: sorted({one.subject for one in _with_id(number)})),
    (f"/schemas/ids/{_NUMBER}/versions", _id_versions),
    ("/schemas/types", lambda: ["AVRO"]),
    ("/config", _config),
    (f"/config/{_NAME}", _config),
    ("/mode", lambda: {"mode": "READONLY"}),
)


def answer(method: str, path: str, body: bytes = b"") -> Answer:
    """What the registry says to a request; ``path`` may carry a query, which changes nothing.

    Beside reading, a client may ask whether a schema is registered under a subject (``POST /subjects/NAME``);
    whatever would write is refused with the registry's code for a read-only one.
    """
    path = unquote(path.split("?", 1)[0]).rstrip("/") or "/"
    try:
        if method == "POST":
            asked = re.fullmatch(f"/subjects/{_NAME}", path)
            if asked:
                return 200, _lookup(asked[1], body)
        if method != "GET":
            return 405, {"error_code": 42205, "message": "This registry is read-only: schemas come with the software."}
        for pattern, respond in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                return 200, respond(*found.groups())
    except _Missing as missing:
        return 404, {"error_code": missing.code, "message": str(missing)}
    return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


def _lookup(name: str, body: bytes) -> Any:
    """The registered schema that says the same as the one asked about."""
    try:
        asked = json.loads(json.loads(body)["schema"])
    except (ValueError, KeyError, TypeError):
        raise _Missing(40403, "Schema not found") from None
    for one in reversed(_subject(name)):
        if json.loads(one.text) == asked:
            return _whole(one)
    raise _Missing(40403, "Schema not found")
