"""Orbit lines, the field grid, and the catalogue commands."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream.cli.catalog import app
from stream.core.errors import UsageError
from stream.sky import field_centre, field_grid, import_catalog, orbit_lines
from stream.sky.orbits import orbit_key

CERES = (
    "00001    3.4   0.15 K205V 162.68631   73.73161   80.28698   10.58862  0.0775571  0.21406009   2.7676569  0 MPO4927"
    "48  6751 115 1801-2019 0.60 M-v 30h Williams   0000      (1) Ceres              20190915"
)
# In the columns of the MPC's CometEls format (1P/Halley).
HALLEY = (
    "0001P         1986 02  9.4389  0.587104  0.967277  111.8466   59.0711  162.2422  20240331   4.0  6.0  1P/Halley"
)


def numbered(n, q=1.0):
    return f"{n:05d}" + CERES[5:26] + f"{q:9.5f}" + CERES[35:]


def test_lines_are_told_from_headers():
    assert orbit_key(CERES) == ("MPCORB.DAT", "00001")
    assert orbit_key(HALLEY) == ("CometEls.txt", "0001P")
    for line in (
        "",
        "-" * 160,
        "MINOR PLANET CENTER ORBIT DATABASE (MPCORB)".ljust(200),
        CERES[:90],
        CERES.replace("K205V", "2020 "),
    ):
        assert orbit_key(line) is None


@given(st.text(max_size=220))
def test_any_text_is_judged_without_a_crash(line):
    assert orbit_key(line) is None or len(line) >= 79


def test_orbits_are_merged_by_designation(tmp_path):
    text = "header\n" + "-" * 160 + "\n" + "\n".join(numbered(n) for n in (5, 2, 9)) + "\n\n" + HALLEY + "\n"
    (tmp_path / "MPCORB.DAT").write_text(text)
    (tmp_path / "new.gz").write_bytes(gzip.compress((numbered(2, 77.0) + "\n" + numbered(3) + "\n").encode()))
    store = str(tmp_path / "s")
    first = import_catalog("orbits", [tmp_path / "MPCORB.DAT"], store)
    assert (first.rows_read, first.rows_new, first.tiles) == (4, 4, 2)
    assert import_catalog("orbits", [tmp_path / "MPCORB.DAT"], store).rows_new == 0
    assert import_catalog("orbits", [tmp_path / "new.gz"], store).rows_new == 1
    asteroids, comets = orbit_lines(store)
    assert asteroids == [numbered(2, 77.0), numbered(3), numbered(5), numbered(9)]
    assert comets == [HALLEY]
    assert orbit_lines(str(tmp_path / "none")) == ([], [])


def test_files_without_orbits_are_refused(tmp_path):
    for name, data in (
        ("a", b"hello\n"),
        ("b.gz", gzip.compress(b"x" * 5000)[:30]),
        ("c.gz", b"\x1f\x8bnot gzip at all"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError):
            import_catalog("orbits", [tmp_path / name], str(tmp_path / "s"))
    with pytest.raises(UsageError, match="cannot be read"):
        import_catalog("orbits", [tmp_path / "absent"], str(tmp_path / "s"))


@pytest.mark.real
def test_real_orbit_lines_are_kept_byte_for_byte(real_data, tmp_path):
    source = real_data / "asteroids" / "MPCORB.excerpt.DAT"
    summary = import_catalog("orbits", [source], str(tmp_path))
    assert summary.rows_read == 4
    kept = orbit_lines(str(tmp_path))[0]
    assert sorted(kept) == sorted(line.rstrip() for line in source.read_text().splitlines())


def test_field_centres():
    assert field_centre(1) == (0.0, -89.05)
    grid = field_grid()
    assert len(grid) > 1700
    assert all(0 <= ra < 360 and -90 <= dec <= 90 for ra, dec in grid.values())
    for field in (0, -1, 1000, 999_999):
        with pytest.raises(UsageError, match=str(field)):
            field_centre(field)


@pytest.mark.real
def test_the_grid_is_the_surveys(real_data):
    with (real_data / "field_grid" / "ztf_field_corners.csv").open() as stream:
        first = next(csv.reader(stream))
    assert first  # the file is there; the centres come from the list below
    for line in (real_data / "field_grid" / "ZTF_Fields.txt").read_text().splitlines():
        parts = line.split()
        if parts and parts[0].isdigit():
            assert field_centre(int(parts[0])) == pytest.approx((float(parts[1]), float(parts[2])), abs=1e-5)


def test_commands(tmp_path, monkeypatch):
    n = 30
    table = {name: np.linspace(10, 11, n) for name in ["ra", "dec", "pmra", "pmdec", "phot_g_mean_mag", "ref_epoch"]}
    pq.write_table(pa.table({"source_id": np.arange(n), **table}), tmp_path / "g.parquet")
    (tmp_path / "o.dat").write_text(CERES + "\n")
    run = CliRunner()
    store = str(tmp_path / "s")
    result = run.invoke(app, ["import", "gaia", str(tmp_path / "g.parquet"), "--store", store, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows_new"] == n
    monkeypatch.setenv("ZTF_STORE", store)
    result = run.invoke(app, ["import", "orbits", str(tmp_path / "o.dat")])
    assert result.exit_code == 0
    assert "1 of them new" in result.stdout
    result = run.invoke(app, ["list", "--json"])
    assert {e["kind"]: e["rows"] for e in json.loads(result.stdout)} == {"gaia": n, "ps1": 0, "bright": 0, "orbits": 1}
    result = run.invoke(app, ["list"])
    assert result.exit_code == 0
    assert "gaia" in result.stdout
    result = run.invoke(app, ["import", "ps1", str(tmp_path / "g.parquet"), "--json"])
    assert result.exit_code == 1
    assert "objID" in json.loads(result.stdout)["message"]
    assert run.invoke(app, ["import", "tycho", "x"]).exit_code != 0
    assert run.invoke(app, ["list", "--store", "nosuch://x"]).exit_code == 1
