"""The page that explains every field of every published record, made from the schemas themselves.

Type and meaning are the schema's; unit, meaning of null, source and example are properties of the field in our own
records and come from ``schemas/notes.yaml`` for the survey's, whose text must not be touched. Examples of the survey's
fields are those of the synthetic alert that the benchmark writes.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

import yaml

from stream.alert.packet import build_packet
from stream.alert.schema import OURS, schema_files
from stream.alert.synthetic import synthetic_batch
from stream.alert.wire import subjects
from stream.core.errors import UsageError
from stream.core.records import Row

PUBLISHED = (
    "ztf.alert", "ztf.alert.candidate", "ztf.alert.prv_candidate", "ztf.alert.fp_hist", "ztf.alert.cutout",
    "ztf.alert.zsds", "ztf.internal.streak", "ztf.internal.tracklet",
)  # fmt: skip
_COLUMNS = ("field", "type", "unit", "null means", "source", "example", "meaning")
_IN_BRACKETS = re.compile(r"\s*\[([^\]]+)\]")


@cache
def _notes() -> Row:
    text = resources.files("schemas").joinpath("notes.yaml").read_text("utf-8")
    notes: Row = yaml.safe_load(text)
    return notes


@cache
def notes_of(record: str) -> dict[str, Row]:
    """Notes on a record's fields by name.

    Raises
    ------
    UsageError
        A field is named twice or does not exist.
    """
    known = {field["name"] for field in schema_files(OURS)[record]["fields"]}
    found: dict[str, Row] = {}
    for group in _notes()["records"].get(record, ()):
        names = [name for k in "123" for name in group["fields"].replace("{k}", k).split()]
        for name in dict.fromkeys(names):
            if name in found or name not in known:
                raise UsageError(f"schemas/notes.yaml: {record}.{name} is named twice or does not exist")
            found[name] = group
    return found


def describe(record: str) -> list[Row]:
    """What is known of each field of a record, in order: a row with the names of the page's columns.

    Raises
    ------
    UsageError
        A field says nowhere what its null means or where it comes from.
    """
    notes = dict(notes_of(record))
    if record == "ztf.alert.prv_candidate":
        shared = notes_of("ztf.alert.candidate")
        notes = {name: _of_history(name, note) for name, note in shared.items()}
    examples = _examples().get(record, {})
    rows = []
    for field in schema_files(OURS)[record]["fields"]:
        name, note = field["name"], notes.get(field["name"], {})
        doc, unit = _split(field.get("doc", ""))
        own = {key: field[key] for key in ("unit", "null", "source", "example") if key in field}
        null = own.get("null", note.get("null", _null_in(doc, field)))
        source = own.get("source", note.get("source", "as said in the meaning" if "internal" in record else None))
        if null is None or source is None:
            raise UsageError(f"{record}.{name}: neither the schema nor schemas/notes.yaml says what null means")
        rows.append(
            dict(
                zip(
                    _COLUMNS,
                    (
                        name,
                        _type(field["type"]),
                        own.get("unit", unit or note.get("unit", "-")),
                        null,
                        source,
                        own.get("example", examples.get(name)),
                        re.sub(r"; null: .*", "", doc),
                    ),
                    strict=True,
                )
            )
        )
    return rows


def _of_history(name: str, note: Row) -> Row:
    """A note of ``candidate`` for the same field of an earlier event."""
    if name in ("jd", "fid", "pid", "programid", "rbversion"):
        return {**note, "null": "never null; rbversion is empty in a non-detection"} if name == "rbversion" else note
    null = str(note["null"]).removeprefix("never null").lstrip(":; ")
    kept = name in (
        "diffmaglim",
        "nid",
        "rcid",
        "field",
        "magzpsci",
        "magzpsciunc",
        "magzpscirms",
        "clrcoeff",
        "clrcounc",
    )
    when = null if kept else f"a non-detection{'; ' + null if null else ''}"
    return {**note, "null": when or "never null"}


def _null_in(doc: str, field: Row) -> str | None:
    """What the doc of a field of our own says of null."""
    found = re.search(r"; null: (.*)", doc)
    if found:
        return found[1]
    if not isinstance(field["type"], list):
        return "never null"
    return "not reached, not measured" if field.get("default", "") is None else None


def _split(doc: str) -> tuple[str, str]:
    """A doc without its unit, and the unit: what stands last in brackets, identifiers' ranges aside."""
    found = [m for m in _IN_BRACKETS.finditer(doc) if not m[1].startswith("00")]
    if not found:
        return doc, ""
    return (doc[: found[-1].start()] + doc[found[-1].end() :]).strip(), found[-1][1]


def _type(node: Any) -> str:
    if isinstance(node, list):
        return f"{_type(node[1])}, nullable"
    if isinstance(node, dict):
        inner = _type(node.get("items", node.get("values", "")))
        return f"{node['type']} of {inner}"
    return str(node)


@cache
def _examples() -> dict[str, Row]:
    """A value of each of the survey's fields, from a synthetic alert."""
    batch = synthetic_batch(1)
    record = build_packet(batch.items[0], batch, {})
    nested = [name for name, value in record.items() if isinstance(value, dict | list)]
    cutout = {"fileName": record["cutoutScience"]["fileName"], "stampData": "..."}
    return {
        "ztf.alert": {**record, **dict.fromkeys(nested, "...")},
        "ztf.alert.candidate": record["candidate"],
        "ztf.alert.prv_candidate": record["prv_candidates"][0],
        "ztf.alert.fp_hist": record["fp_hists"][0],
        "ztf.alert.cutout": cutout,
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.7g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def page() -> str:
    """The whole page, Markdown; the same text for the same schemas."""
    parts = [
        "# What is in an alert\n",
        "Made by `ztf-stream schemas page` from `schemas/`; do not edit. Missing is null, never -999. A field that is "
        "never null may still be null in the survey's schema, which is kept to the letter.\n",
        "## Versions\n",
        "| version | date | what changed |\n|---|---|---|",
        *(f"| {v['version']} | {v['date']} | {_cell(v['change'])} |" for v in _notes()["history"]),
        "",
        "Every version in `schemas/` is read by today's reader and reads what is written today; the tests check it for "
        "each change. `ztf-stream schemas serve` answers for all of them as a schema registry does.\n",
    ]
    for name in PUBLISHED:
        record = schema_files(OURS)[name]
        ids = ", ".join(f"{one.folder} (version {one.version}, id {one.id})" for one in subjects()[name])
        parts += [f"## {name}\n", f"{record.get('doc', '')}. Schemas: {ids}.\n"]
        parts.append("| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|")
        parts += ["| " + " | ".join(_cell(row[column]) for column in _COLUMNS) + " |" for row in describe(name)]
        parts.append("")
    return "\n".join(parts)
