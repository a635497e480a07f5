"""The command line as a person and a script meet it: help, JSON, exit status; and what the preparing commands made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from nights import PLAN, ztf_stream

from stream import __version__
from stream.alert.synthetic import synthetic_batch
from stream.archive import ProductStore, iterate_packets, reference_path
from stream.cli.main import COMMANDS
from stream.core.identity import alert_topic_of
from stream.core.records import QuadrantReport
from stream.engine.alert_messages import LIGHT, PERMANENT

LEAVES = [
    ["demo"], ["run"], ["worker"], ["status"], ["fakes"], ["simulate"], ["process"], ["ingest"],
    ["lightcurves"],
    *(["catalog", name] for name in ("import", "list")),
    ["calibration", "build"],
    *(["reference", name] for name in ("build", "update", "list", "pin", "report")),
    *(["topics", name] for name in ("list", "apply", "diff")),
    *(["night", name] for name in ("close", "show")),
    *(["users", name] for name in ("list", "add", "remove")),
    *(["alerts", name] for name in ("tail", "show", "export", "replay")),
    *(["schemas", name] for name in ("list", "page", "serve")),
    *(["deadletter", name] for name in ("list", "show", "retry")),
    *(["state", name] for name in ("show", "rebuild")),
    *(["models", name] for name in ("list", "train")),
    *(["bench", name] for name in ("quadrant", "camera", "alerts")),
]  # fmt: skip
# interfaces.md §4: what a line of `process --json` says of a quadrant.
KEYS = {
    "status", "infobits", "seeing", "magzp", "maglim", "astrrms1", "astrrms2", "n_sources", "n_candidates", "seconds",
    "reason", "stage", "name", "n_alerts",
}  # fmt: skip


def process(*args: object) -> subprocess.CompletedProcess[str]:
    """``ztf-stream`` as a process of its own."""
    env = {**os.environ, "COLUMNS": "120"}
    argv = [sys.executable, "-m", "stream.cli", *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_help_as_a_process_names_every_command():
    told = process("--help")
    assert told.returncode == 0
    assert [name for name in COMMANDS if name not in told.stdout] == []


@pytest.mark.parametrize("words", LEAVES, ids="-".join)
def test_every_command_has_help(words):
    said = ztf_stream(*words, "--help")
    assert said.status == 0
    assert "Usage" in said.out
    silent = (["topics", "apply"], ["models", "train"], ["schemas", "page"], ["schemas", "serve"])
    reports = words[0] not in ("run", "worker", "demo") and words not in silent
    assert ("--json" in said.out) or not reports


def test_the_table_of_commands_is_complete():
    assert {words[0] for words in LEAVES} == set(COMMANDS)


def test_mistakes_are_told_in_one_sentence():
    unknown = process("nonsense")
    assert unknown.returncode == 2
    assert "nonsense" in unknown.stderr
    missing = process("alerts", "show", "neither-file-nor-candid")
    assert missing.returncode == 1
    assert missing.stderr.startswith("ztf-stream: ")
    assert "Traceback" not in missing.stderr
    variable = ztf_stream("topics", "diff", ZTF_BOOTSTRP="x")
    assert variable.status == 1
    assert "ZTF_BOOTSTRAP" in variable.err


def test_topics_list_needs_no_broker():
    told = process("topics", "list", "--json")
    assert told.returncode == 0
    rows = {row["name"]: row for row in json.loads(told.stdout)}
    assert rows["ztf.raw"]["partitions"] == 64
    assert [name for name, row in rows.items() if row["access"] == "public" and row["schema"] == "alert"] == [
        "ztf_{night}_programid1", "ztf.alerts.programid1", "ztf.alerts.light.programid1"
    ]  # fmt: skip


def test_models_list_names_both_classifiers():
    (models,) = ztf_stream("models", "list", "--json").ok().rows()
    assert len(models) == 2
    for model in models:
        assert model["version"]
        assert 0 < model["figures"]["equal_error"] < 0.2


def test_catalogs_are_in_the_store(night):
    for kind in ("gaia", "ps1", "bright", "orbits"):
        (summary,) = night.said[kind].rows()
        assert (summary["kind"], summary["files"]) == (kind, 1)
        assert summary["rows_read"] == summary["rows_new"] > 0
    assert night.said["gaia"].rows()[0]["rows_read"] == pq.read_metadata(night.folder / "gaia.parquet").num_rows
    again = ztf_stream("catalog", "import", "gaia", night.folder / "gaia.parquet", "--store", night.store, "--json")
    assert again.ok().rows()[0]["rows_new"] == 0
    (listed,) = ztf_stream("catalog", "list", "--store", night.store, "--json").ok().rows()
    assert {entry["kind"]: entry["rows"] for entry in listed} == {
        kind: night.said[kind].rows()[0]["rows_read"] for kind in ("gaia", "ps1", "bright", "orbits")
    }


def test_a_catalogue_that_is_none_is_refused(night, tmp_path):
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")
    said = ztf_stream("catalog", "import", "gaia", wrong, "--store", tmp_path / "store")
    assert said.status == 1
    assert "wrong.csv" in said.err


def test_calibration_frames_of_every_quadrant_were_built(night):
    rows = night.said["calibration"].rows()
    assert {(row["kind"], row["rcid"], row["fid"]) for row in rows} == {
        (kind, rcid, fid)
        for rcid in range(4)
        for kind, fid in (("bias", 0), ("hifreqflat", PLAN.fid), ("pmask", PLAN.fid))
    }
    for row in rows:
        assert row["error"] is None
        assert row["n_inputs"] == (10 if row["kind"] == "pmask" else 5)
    store = ProductStore(str(night.store))
    flat = store.read_calibration(rows[1]["night"], "hifreqflat", PLAN.fid, 0)
    assert np.nanmedian(flat.data) == pytest.approx(1.0, abs=1e-3)


def test_versions_are_listed_shown_and_a_veto_is_kept_with_its_reason(night, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(Path(night.store) / "cal", store / "cal")
    at = "--store", store
    rows = ztf_stream("calibration", "list", *at, "--kind", "bias", "--json").ok().rows()
    assert [row["rcid"] for row in rows] == [0, 1, 2, 3]
    calid = rows[1]["calid"]
    (shown,) = ztf_stream("calibration", "show", calid, *at, "--json").ok().rows()
    assert (shown["n_frames"], shown["n_rejected"], shown["decisions"]) == (5, 0, [])
    assert ztf_stream("calibration", "veto", calid, *at).status == 1  # without a reason
    assert ztf_stream("calibration", "veto", "1234", *at, "--why", "no such").status == 1
    ztf_stream("calibration", "veto", calid, *at, "--why", "light leak", "--who", "ann").ok()
    (shown,) = ztf_stream("calibration", "show", calid, *at, "--json").ok().rows()
    (said,) = shown["decisions"]
    assert (said["action"], said["who"], said["why"]) == ("veto", "ann", "light leak")
    ztf_stream("calibration", "veto", calid, *at, "--remove").ok()
    assert ztf_stream("calibration", "veto", calid, *at, "--remove").status == 1
    (shown,) = ztf_stream("calibration", "show", calid, *at, "--json").ok().rows()
    assert shown["decisions"] == []


def test_references_of_every_quadrant_were_built(night):
    rows = night.said["reference"].rows()
    assert {(row["field"], row["rcid"], row["fid"]) for row in rows} == {
        (PLAN.field, rcid, PLAN.fid) for rcid in range(4)
    }
    assert {row["n_inputs"] for row in rows} == {6}
    assert {row["error"] for row in rows} == {None}


def test_a_reference_from_science_products_in_the_store(night, processed, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "sci").symlink_to(processed.store / "sci")
    where = "--field", PLAN.field, "--rcid", 2, "--filter", "r", "--store", store
    (row,) = ztf_stream("reference", "build", *where, "--json", "--workers", 1).ok().rows()
    assert (row["rcid"], row["n_inputs"], row["error"]) == (2, 2, None)
    made = ProductStore(str(store)).read_reference(PLAN.field, PLAN.fid, 2)
    from_raw = ProductStore(str(night.store)).read_reference(PLAN.field, PLAN.fid, 2)
    assert (made.rfid, made.n_frames) == (from_raw.rfid, 2)
    bright = from_raw.sources[from_raw.sources["snr"] > 100]
    assert len(bright) > 30
    mag = {name: r.magzp - 2.5 * np.log10(r.sources["flux"]) for name, r in (("made", made), ("raw", from_raw))}
    differences = []
    for k in np.flatnonzero(from_raw.sources["snr"] > 100):
        dra = (made.sources["ra"] - from_raw.sources["ra"][k]) * np.cos(np.radians(from_raw.sources["dec"][k]))
        distance = np.hypot(dra, made.sources["dec"] - from_raw.sources["dec"][k]) * 3600
        if distance.min() < 1.0:
            differences.append(mag["made"][distance.argmin()] - mag["raw"][k])
    assert len(differences) > 0.8 * len(bright)
    assert abs(np.nanmedian(differences)) < 0.03  # a star beside a brighter one may come out negative in one of them
    missing = ztf_stream("reference", "build", "--field", PLAN.field, "--filter", "g", "--store", store)
    assert missing.status == 1
    assert "process" in missing.err
    unclear = ztf_stream("reference", "build", "--store", store)
    assert unclear.status == 1
    assert "--field" in unclear.err


def test_references_are_renewed_listed_pinned_and_shown(night, processed, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for folder, link in ((processed.store, "sci"), (night.store, "catalogs")):
        (store / link).symlink_to(folder / link)
    where = "--field", PLAN.field, "--rcid", 2, "--filter", "r"
    rules = "--seeing", 0, 9, "--maglim", 0, 99, "--min-epochs", 1
    last = "--store", store, "--workers", 1, "--json"
    (first,) = ztf_stream("reference", "build", *where, *rules, "--max-epochs", 1, *last).ok().rows()
    old = first["figures"]["version"]
    asked = "update", *where, *rules, "--new", 1, "--quarantine", 0
    (would,) = ztf_stream("reference", *asked, "--dry-run", *last).ok().rows()
    assert (would["before"], would["rebuild"], would["built"]) == (old, True, None)
    (kept,) = ztf_stream("reference", *asked[:-2], *last).ok().rows()
    assert not kept["rebuild"]  # a month of quarantine
    (done,) = ztf_stream("reference", *asked, *last).ok().rows()
    new = done["built"]["figures"]["version"]
    assert (done["built"]["n_inputs"], done["built"]["error"], new == old) == (2, None, False)
    (again,) = ztf_stream("reference", *asked, *last).ok().rows()
    assert (again["before"], again["rebuild"]) == (new, False)
    listed = ztf_stream("reference", "list", "--store", store, "--json").ok().rows()
    assert [(row["version"], row["in_use"]) for row in listed] == [(new, True), (old, False)]
    assert listed[0]["qa"]["gaia_n"] > 20
    assert listed[0]["qa"]["gaia_rms_east"] < 60
    assert abs(listed[0]["qa"]["ps1_offset"]) < 0.02
    same = [ProductStore(str(store)).read_reference(PLAN.field, PLAN.fid, 2, v) for v in (old, new)]
    assert [r.version for r in same] == [old, new]
    assert np.array_equal(same[0].wcs.wcs.crval, same[1].wcs.wcs.crval)
    assert ztf_stream("reference", "pin", old, *where, "--store", store).status == 1
    ztf_stream("reference", "pin", old, *where, "--why", "a supernova in the new one", "--store", store).ok()
    (held,) = ztf_stream("reference", *asked, *last).ok().rows()
    assert (held["before"], held["rebuild"]) == (old, False)
    assert "supernova" in held["reason"]
    ztf_stream("reference", "pin", old, *where, "--remove", "--store", store).ok()
    (page,) = ztf_stream("reference", "report", tmp_path, "--version", new, *where, "--store", store).ok().out.split()
    text = Path(page).read_text()
    assert new in text
    assert text.count("data:image/png;base64,") == 4
    assert all(name in text for name in listed[0]["inputs"])


def test_process_says_everything_of_a_quadrant(processed):
    assert len(processed.lines) == 8
    for line in processed.lines:
        assert line.keys() >= KEYS | {"rid", "pid", "field", "rcid"}
        report = QuadrantReport(**{k: v for k, v in line.items() if k != "n_alerts"})
        assert report.status == "ok"
        assert 1.2 < report.seeing < 4
        assert report.n_sources > 100
        assert line["n_alerts"] == report.n_candidates
        steps = line["seconds"]
        assert {"decompress", "calibrate", "astrometry", "psf", "photometry", "subtract", "extract"} <= steps.keys()
        assert min(steps.values()) >= 0


def test_process_again_writes_the_same_bytes(processed, night, tmp_path):
    store = night.sibling(tmp_path / "store", "catalogs", "cal", "ref")
    ztf_stream("process", night.science[0], "--store", store, "--workers", 1).ok()

    def products(root, folder):
        return {str(p.relative_to(root)): p.read_bytes() for p in (root / folder).rglob("*") if p.is_file()}

    again, first = ({**products(root, "sci"), **products(root, "alerts")} for root in (store, processed.store))
    assert len(again) > 4 * 8
    assert {name for name, data in again.items() if first[name] != data} == set()


def test_process_fails_with_a_status_and_a_reason(night, tmp_path):
    bad = tmp_path / night.science[0].name
    bad.write_bytes(night.science[0].read_bytes()[:100_000])
    said = ztf_stream("process", bad, "--store", tmp_path / "store", "--json", "--workers", 1)
    assert said.status == 1
    assert "fetch the file again" in said.err
    nothing = ztf_stream("process", night.science[0], "--store", tmp_path / "empty", "--json", "--workers", 1)
    assert nothing.status == 1
    for row in nothing.rows():
        assert (row["status"], row["stage"]) == ("failed", "astrometry")
        assert "catalog import gaia" in row["reason"]
        assert {"no_bias", "no_flat"} <= set(row["notes"])
    assert ztf_stream("process", tmp_path / "nothing.fits", "--store", tmp_path / "store").status == 1


def test_lines_for_a_person(night, tmp_path):
    store = night.sibling(tmp_path / "store", "catalogs", "cal")
    said = ztf_stream("process", night.science[0], "--store", store, "--workers", 1)
    assert said.status == 0
    lines = said.out.splitlines()
    assert len(lines) == 4
    assert all("no_reference" in line and "reference build" in line for line in lines)


def test_alerts_show_a_file_of_process(processed, tmp_path):
    candid, _ = next(iterate_packets(ProductStore(str(processed.store))))
    (path,) = (processed.store / "alerts").rglob(f"{candid}.avro")
    (record,) = ztf_stream("alerts", "show", path, "--json").ok().rows()
    assert record["candid"] == candid
    assert record["zsds"]["software"] == __version__
    picture = tmp_path / "alert.png"
    said = ztf_stream("alerts", "show", candid, "--store", processed.store, "--out", picture).ok()
    assert str(candid) in said.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert ztf_stream("alerts", "show", 1, "--store", processed.store).status == 1


def test_alerts_export_a_night_of_process(processed, tmp_path):
    out = tmp_path / "night.tar.gz"
    where = "--night", "20201005", "--out", out, "--store", processed.store
    (row,) = ztf_stream("alerts", "export", *where, "--json").ok().rows()
    assert row["alerts"] == sum(line["n_alerts"] for line in processed.lines)
    empty = ztf_stream("alerts", "export", "--night", "19990101", "--store", processed.store)
    assert empty.status == 1


@pytest.mark.services
def test_bench_alerts_counts_what_the_broker_has(settings):
    from stream.engine.kafka import ends_of, make_admin

    topics = [alert_topic_of(synthetic_batch(0).jd, 1), PERMANENT[1], LIGHT[1]]

    def held():
        ends = ends_of(make_admin(settings), topics)
        return [sum(ends.get(topic, {}).values()) for topic in topics]

    before = held()
    options = "--number", 120, "--processes", 1, "--every-topic", "--json"
    (figures,) = ztf_stream("bench", "alerts", *options, **settings.environment()).ok().rows()
    assert [after - then for after, then in zip(held(), before, strict=True)] == [120] * 3
    assert figures["alerts"] == 120
    assert figures["per_minute"] == pytest.approx(120 / figures["seconds"] * 60, rel=0.05)
    assert figures["cpu_us_per_alert"] == pytest.approx(sum(figures["cpu_us"].values()), abs=4)
    assert 40_000 < figures["bytes_per_alert"] < 120_000


def test_status_without_a_system_says_how_to_start_one(tmp_path):
    said = ztf_stream("status", "--data-dir", tmp_path)
    assert said.status == 1
    assert "ztf-stream run" in said.err


def test_a_reference_path_is_the_surveys(night):
    path = reference_path(PLAN.field, PLAN.fid, 0, "refimg.fits.fz")
    assert path == "ref/000/field000448/zr/ccd01/q1/ztf_000448_zr_c01_q1_refimg.fits.fz"
    assert (night.store / path).is_file()


def test_schemas_are_listed_and_their_page_is_made_and_checked(tmp_path):
    rows = ztf_stream("schemas", "list", "--json").ok().rows()
    assert {row["subject"] for row in rows} >= {"ztf.alert", "ztf.internal.candidate_batch"}
    page = tmp_path / "schema.md"
    assert ztf_stream("schemas", "page", "--check", "--out", page).status == 1
    ztf_stream("schemas", "page", "--out", page).ok()
    ztf_stream("schemas", "page", "--check", "--out", page).ok()
    page.write_text(page.read_text().replace("never null", "sometimes null", 1))
    said = ztf_stream("schemas", "page", "--check", "--out", page)
    assert said.status == 1
    assert "schemas page" in said.err
    assert ztf_stream("schemas", "page", "--out", tmp_path / "no" / "page.md").status == 1
