"""The Avro schemas: found in ``schemas/``, put together, parsed once.

``schemas/<family>/<version>/<record>.avsc`` holds one record a file; a record is mentioned in another by its full
name. A published version is never edited: the next one gets a folder of its own.

- ``ztf/4.02`` is the survey's schema, taken from a real packet: the *reader* schema of every broker.
- ``zsds/1`` is what we write: the same records plus one nullable field ``zsds`` at the end of the top record, and
  the records of the internal topics.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import fastavro

from stream.core.errors import UsageError

SURVEY = "ztf/4.02"
OURS = "zsds/1"
# Properties of a field beyond Avro's own: its unit, what null says, where the value comes from, one value.
DOCUMENTATION = ("unit", "null", "source", "example")
SCHEMA_VERSION = "4.02"  # what the packet says of itself: brokers know no other form


Schema = dict[str, Any]


@cache
def schema_files(version: str) -> dict[str, Schema]:
    """The records of one version by full name, references between them not yet resolved.

    Raises
    ------
    UsageError
        No such version.
    """
    folder = resources.files("schemas").joinpath(*version.split("/"))
    if not folder.is_dir():
        raise UsageError(f"no schema version {version!r}: known are {', '.join(known_versions())}")
    records = [json.loads(f.read_text("utf-8")) for f in sorted(folder.iterdir(), key=lambda f: f.name)]
    return {f"{record['namespace']}.{record['name']}": record for record in records}


def known_versions() -> list[str]:
    """Every version in the package, ``family/version``."""
    root = resources.files("schemas")
    families = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("_"))
    return [f"{family}/{v.name}" for family in families for v in sorted(root.joinpath(family).iterdir(), key=str)]


def _inline(node: Any, records: dict[str, Schema], seen: set[str]) -> Any:
    """``node`` with each reference to another file replaced by its definition where it is first met."""
    if isinstance(node, str):
        if node not in records or node in seen:
            return node
        return _inline(records[node], records, seen)
    if isinstance(node, list):
        return [_inline(branch, records, seen) for branch in node]
    if node["type"] == "array":
        return {**node, "items": _inline(node["items"], records, seen)}
    if node["type"] == "record":
        seen.add(f"{node['namespace']}.{node['name']}")
        return {**node, "fields": [{**f, "type": _inline(f["type"], records, seen)} for f in node["fields"]]}
    return node


@cache
def schema_text(version: str, name: str) -> str:
    """One self-contained schema as deterministic JSON text.

    Parameters
    ----------
    version : str
        ``ztf/4.02``, ``zsds/1``.
    name : str
        Full name of the record, e.g. ``ztf.alert``, ``ztf.internal.candidate_batch``.
    """
    records = schema_files(version)
    if name not in records:
        raise UsageError(f"no record {name!r} in schema {version}: known are {', '.join(sorted(records))}")
    return json.dumps(_inline(name, records, set()), separators=(",", ":"))


@cache
def load_schema(version: str, name: str) -> Schema:
    """A parsed schema, ready for fastavro."""
    return parse(schema_text(version, name))


@cache
def parse(text: str) -> Schema:
    """A schema text parsed for fastavro; remembered, since a night's packets carry but a few texts."""
    parsed: Schema = fastavro.parse_schema(json.loads(text))
    return parsed


@cache
def writer_schema_text() -> str:
    """The schema text in every packet we write.

    What is documented field by field in our own record (unit, meaning of null) is one sentence in it, and where a
    value comes from and looks like stays in the files: this text travels with every packet.
    """
    return json.dumps(_brief(json.loads(schema_text(OURS, "ztf.alert"))), separators=(",", ":"))


def _brief(node: Any) -> Any:
    if isinstance(node, list):
        return [_brief(part) for part in node]
    if not isinstance(node, dict):
        return node
    out = {key: _brief(value) for key, value in node.items() if key not in DOCUMENTATION}
    if "unit" in node and "null" in node:
        unit = "" if node["unit"] == "-" else f" [{node['unit']}]"
        out["doc"] = f"{node['doc']}{unit}; null: {node['null']}"
    return out


def writer_schema() -> Schema:
    """The schema of every packet we write."""
    return parse(writer_schema_text())


def reader_schema() -> Schema:
    """The survey's own 4.02 schema, as a broker reads with."""
    return load_schema(SURVEY, "ztf.alert")


@cache
def field_names(name: str, version: str = OURS) -> tuple[str, ...]:
    """Names of a record's fields, in order."""
    return tuple(f["name"] for f in schema_files(version)[name]["fields"])


@cache
def required_fields(name: str, version: str = OURS) -> tuple[str, ...]:
    """Names of a record's fields that admit no null, in order."""
    fields = schema_files(version)[name]["fields"]
    return tuple(f["name"] for f in fields if not isinstance(f["type"], list))


@cache
def field_types(name: str, version: str = OURS) -> dict[str, str]:
    """Primitive type of each field of a flat record, nulls left out."""
    fields = schema_files(version)[name]["fields"]
    return {f["name"]: f["type"][1] if isinstance(f["type"], list) else f["type"] for f in fields}


CANDIDATE_FIELDS = field_names("ztf.alert.candidate")
PRV_FIELDS = field_names("ztf.alert.prv_candidate")
FP_FIELDS = field_names("ztf.alert.fp_hist")
EXTENSION_FIELDS = field_names("ztf.alert.zsds")
