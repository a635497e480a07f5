"""Import of catalogue tables and cone queries, judged by brute force on the input."""

from __future__ import annotations

import gzip
import hashlib
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import angular_separation
from astropy.table import MaskedColumn
from astropy.table import Table as AstropyTable
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.errors import StoreUnavailable, UsageError
from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE
from stream.sky import CatalogTiles, import_catalog, list_catalogs


def gaia_table(n, seed=0, ra=(0.0, 360.0), dec=(-90.0, 90.0)):
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, GAIA_DTYPE)
    rows["source_id"] = rng.permutation(10 * n)[:n] + 4_000_000_000_000_000_000
    rows["ra"] = rng.uniform(*ra, n)
    rows["dec"] = np.degrees(np.arcsin(rng.uniform(*np.sin(np.radians(dec)), n)))
    for name in GAIA_DTYPE.names[3:]:
        rows[name] = rng.normal(0, 5, n)
    rows["ref_epoch"] = 2016.0
    return rows


def ps1_table(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, PS1_DTYPE)
    rows["objID"] = rng.permutation(n) + 10**17
    rows["raMean"], rows["decMean"] = rng.uniform(10, 12, n), rng.uniform(5, 7, n)
    for name in PS1_DTYPE.names[3:]:
        rows[name] = rng.uniform(14, 22, n)
    return rows


def to_arrow(rows):
    return pa.table({name: pa.array(rows[name]) for name in rows.dtype.names})


def to_astropy(rows):
    return AstropyTable({name: rows[name] for name in rows.dtype.names})


def brute(rows, ra, dec, radius, names=("ra", "dec")):
    apart = angular_separation(*np.radians([ra, dec])[:, None], np.radians(rows[names[0]]), np.radians(rows[names[1]]))
    return rows[np.degrees(apart) <= radius]


def digest(folder: Path):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.*"))}


def same(left, right):
    """Whether two tables are equal up to the order of rows, NaN equal to NaN, to the last bit."""
    key = left.dtype.names[0]
    return np.sort(left, order=key).tobytes() == np.sort(right, order=key).tobytes()


@pytest.fixture(scope="module")
def hard_places(tmp_path_factory):
    """Both poles and a strip across RA 0."""
    parts = (
        gaia_table(4000, 1, dec=(82, 90)),
        gaia_table(4000, 2, dec=(-90, -82)),
        gaia_table(6000, 3, (-8, 8), (-5, 46)),
    )
    for i, part in enumerate(parts):
        part["ra"] %= 360.0
        part["source_id"] += i * 10**9
    rows = np.concatenate(parts)
    folder = tmp_path_factory.mktemp("sky")
    pq.write_table(to_arrow(rows), folder / "gaia.parquet")
    import_catalog("gaia", [folder / "gaia.parquet"], str(folder / "store"))
    return rows, CatalogTiles(str(folder / "store"))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.floats(0, 360), st.floats(82, 90) | st.floats(-90, -82) | st.sampled_from([-90.0, 90.0]))
    | st.tuples(st.floats(0, 8) | st.floats(352, 360), st.floats(-5, 46) | st.just(41.8103)),
    st.floats(0.01, 8.0),
)
def test_cones_are_what_brute_force_finds(hard_places, place, radius):
    rows, tiles = hard_places
    found = tiles.gaia(*place, radius)
    assert found.dtype == GAIA_DTYPE
    # On the very rim either may round the other way.
    inner, outer = brute(rows, *place, radius - 1e-9), brute(rows, *place, radius + 1e-9)
    ids = found["source_id"]
    assert len(np.unique(ids)) == len(ids)
    assert np.isin(inner["source_id"], ids).all()
    assert np.isin(ids, outer["source_id"]).all()
    assert same(found, rows[np.isin(rows["source_id"], ids)])


def test_all_formats_give_the_same_bytes(tmp_path):
    rows = gaia_table(500, ra=(10, 14), dec=(-2, 2))
    rows["bp_rp"][:50] = np.nan
    pq.write_table(to_arrow(rows), tmp_path / "g.parquet")
    table = to_astropy(rows)
    table.write(tmp_path / "g.fits")
    table.write(tmp_path / "g.ecsv", format="ascii.ecsv")
    table.write(tmp_path / "g.csv", format="ascii.csv")
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress((tmp_path / "g.csv").read_bytes()))
    shouting = to_arrow(rows).rename_columns([n.upper() for n in GAIA_DTYPE.names])
    pq.write_table(shouting, tmp_path / "upper.parquet")
    stores = {}
    for file in ("g.parquet", "g.fits", "g.ecsv", "g.csv", "z.csv.gz", "upper.parquet"):
        summary = import_catalog("gaia", [tmp_path / file], str(tmp_path / file.replace(".", "_")))
        assert (summary.rows_read, summary.rows_new) == (500, 500)
        stores[file] = digest(tmp_path / file.replace(".", "_"))
    assert len(stores["g.parquet"]) == summary.tiles > 1
    assert all(store == stores["g.parquet"] for store in stores.values())
    found = CatalogTiles(str(tmp_path / "g_csv")).gaia(12, 0, 5)
    assert same(found, rows)


def test_import_again_merges_by_identifier(tmp_path):
    rows = gaia_table(300, ra=(100, 101), dec=(20, 21))
    first, second = rows[:200], rows[100:].copy()
    second["pmra"] += 1.0
    pq.write_table(to_arrow(first), tmp_path / "a.parquet")
    pq.write_table(to_arrow(second), tmp_path / "b.parquet")
    store = str(tmp_path / "store")
    seen = []
    assert import_catalog("gaia", [tmp_path / "a.parquet"], store, lambda *p: seen.append(p)).rows_new == 200
    assert seen == [(0, 1), (1, 1)]
    assert import_catalog("gaia", [tmp_path / "b.parquet"], store).rows_new == 100
    before = digest(tmp_path / "store")
    again = import_catalog("gaia", [tmp_path / "b.parquet"], store)
    assert again.rows_new == 0
    assert digest(tmp_path / "store") == before
    found = np.sort(CatalogTiles(store).gaia(100.5, 20.5, 2), order="source_id")
    want = np.sort(np.concatenate([first[:100], second]), order="source_id")
    np.testing.assert_array_equal(found, want)


def test_extra_columns_are_kept_and_readable_by_others(tmp_path):
    rows = gaia_table(20, ra=(50, 50.1), dec=(1, 1.1))
    table = to_arrow(rows).append_column("ruwe", pa.array(np.linspace(0.9, 1.4, 20)))
    table = table.append_column("class", pa.array(["star"] * 20).dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet")
    plain = to_arrow(gaia_table(5, seed=1, ra=(50, 50.1), dec=(1, 1.1)))
    pq.write_table(plain, tmp_path / "b.parquet")
    import_catalog("gaia", [tmp_path / "a.parquet", tmp_path / "b.parquet"], str(tmp_path / "s"))
    (tile,) = (tmp_path / "s" / "catalogs" / "gaia" / "norder=5").glob("npix=*.parquet")
    read = pq.read_table(tile, partitioning=None)
    assert read.column_names == [*GAIA_DTYPE.names, "class", "ruwe"]
    assert read["ruwe"].null_count == 5
    assert read.num_rows == 25


def test_pan_starrs_nulls(tmp_path):
    rows = ps1_table(200)
    rows["gMeanPSFMag"][:10], rows["iMeanPSFMagErr"][5:15] = -999.0, np.nan
    plain = to_astropy(rows)
    plain.remove_column("ps_score")
    plain.write(tmp_path / "p.csv", format="ascii.csv")
    import_catalog("ps1", [tmp_path / "p.csv"], str(tmp_path / "s"))
    found = np.sort(CatalogTiles(str(tmp_path / "s")).ps1(11, 6, 3), order="objID")
    assert found.dtype == PS1_DTYPE
    assert np.isnan(found["ps_score"]).all()
    assert np.isnan(found["gMeanPSFMag"]).sum() == 10
    assert np.isnan(found["iMeanPSFMagErr"]).sum() == 10
    np.testing.assert_array_equal(found["rMeanPSFMag"], np.sort(rows, order="objID")["rMeanPSFMag"])
    tiles = [pq.read_table(p, partitioning=None) for p in sorted((tmp_path / "s").rglob("*.parquet"))]
    assert sum(t["gMeanPSFMag"].null_count for t in tiles) == 10  # null for every reader, no -999 left


def test_bright_stars_with_masked_and_missing_names(tmp_path):
    table = AstropyTable(
        {
            "name": MaskedColumn(["Vega", "", "x"], mask=[False, False, True]),
            "ra": [279.2347, 10.0, 0.001], "dec": [38.7837, 20.0, -89.99],
            "vmag": MaskedColumn([0.03, 4.0, 5.0], mask=[0, 1, 0]),
        }
    )  # fmt: skip
    table.write(tmp_path / "b.ecsv", format="ascii.ecsv")
    table.write(tmp_path / "b.fits")
    for name in ("b.ecsv", "b.fits"):
        import_catalog("bright", [tmp_path / name], str(tmp_path / "s"))
    tiles = CatalogTiles(str(tmp_path / "s"))
    assert tiles.bright(279.2, 38.8, 0.1)["name"].tolist() == ["Vega"]
    (unnamed,) = tiles.bright(10.0, 20.0, 0.1)
    assert unnamed["name"] == "J010.00000+20.00000"
    assert np.isnan(unnamed["vmag"])
    assert len(tiles.bright(180.0, -90.0, 0.1)) == 1
    assert list_catalogs(str(tmp_path / "s"))[2].rows == 3


def test_nothing_imported_is_an_empty_table(tmp_path):
    tiles = CatalogTiles(str(tmp_path / "nowhere"))
    for found, dtype in (
        (tiles.gaia(1, 2, 0.7), GAIA_DTYPE), (tiles.ps1(1, 2, 0.7), PS1_DTYPE), (tiles.bright(1, 2, 0.7), BRIGHT_DTYPE)
    ):  # fmt: skip
        assert len(found) == 0
        assert found.dtype == dtype
    assert all(entry.rows == entry.tiles == 0 for entry in list_catalogs(str(tmp_path / "nowhere")))
    for ra, dec, radius in ((np.nan, 0, 1), (0, 91, 1), (0, 0, -1)):
        with pytest.raises(UsageError, match="no cone"):
            tiles.gaia(ra, dec, radius)


def test_a_running_reader_sees_a_new_import(tmp_path):
    rows = gaia_table(100, ra=(200, 200.5), dec=(0.1, 0.5))
    tiles = CatalogTiles(str(tmp_path / "s"))
    assert len(tiles.gaia(200, 0, 3)) == 0
    for part in (rows[:50], rows):
        pq.write_table(to_arrow(part), tmp_path / "a.parquet")
        import_catalog("gaia", [tmp_path / "a.parquet"], str(tmp_path / "s"))
        assert len(tiles.gaia(200, 0, 3)) == len(part)
    for tile in (tmp_path / "s").rglob("*.parquet"):
        tile.unlink()
    assert len(tiles.gaia(200, 0, 3)) == 0


def test_memory_is_bounded(tmp_path):
    rows = gaia_table(3000, ra=(170, 190), dec=(-10, 10))
    pq.write_table(to_arrow(rows), tmp_path / "a.parquet")
    import_catalog("gaia", [tmp_path / "a.parquet"], str(tmp_path / "s"))
    tiles = CatalogTiles(str(tmp_path / "s"), cached_rows=100)
    assert len(tiles.gaia(180, 0, 6)) == len(brute(rows, 180, 0, 6))
    assert sum(len(t.rows) for t in tiles._tiles.values()) <= 100


def test_bad_tables_say_what_is_wrong(tmp_path):
    rows = to_arrow(gaia_table(10))
    store = str(tmp_path / "s")

    def refused(table, message, name="t.parquet", kind="gaia"):
        pq.write_table(table, tmp_path / name)
        with pytest.raises(UsageError, match=message):
            import_catalog(kind, [tmp_path / name], store)

    refused(rows.drop_columns(["pmra", "ref_epoch"]), "missing: pmra, ref_epoch")
    refused(rows, "missing: objID", kind="ps1")
    refused(rows.set_column(1, "ra", pa.array(["x"] * 10)), "column ra is string")
    refused(rows.set_column(2, "dec", pa.array([95.0] * 10)), "outside -90..90")
    refused(rows.set_column(0, "source_id", pa.array([None] * 10, pa.int64())), "have no source_id")
    with pytest.raises(UsageError, match="no such file"):
        import_catalog("gaia", [tmp_path / "absent.csv"], store)
    (tmp_path / "t.xls").write_bytes(b"")
    with pytest.raises(UsageError, match="unknown kind of table"):
        import_catalog("gaia", [tmp_path / "t.xls"], store)
    for name in ("d.parquet", "d.fits", "d.csv", "d.ecsv"):
        (tmp_path / name).write_bytes(b"\x00\x01not a table")
        with pytest.raises(UsageError):
            import_catalog("gaia", [tmp_path / name], store)
    with pytest.raises(UsageError, match="no catalogue"):
        import_catalog("tycho", [tmp_path / "t.parquet"], store)
    with pytest.raises(UsageError, match="no gaia file"):
        import_catalog("gaia", [], store)
    with pytest.raises(StoreUnavailable):
        CatalogTiles("nosuchprotocol://x")


def test_an_empty_table_and_rows_without_a_place(tmp_path):
    rows = to_arrow(gaia_table(10))
    pq.write_table(rows.slice(0, 0), tmp_path / "e.parquet")
    assert import_catalog("gaia", [tmp_path / "e.parquet"], str(tmp_path / "s")).tiles == 0
    lost = rows.set_column(1, "ra", pa.array([None] * 4 + [10.0] * 6, pa.float64()))
    pq.write_table(lost, tmp_path / "l.parquet")
    assert import_catalog("gaia", [tmp_path / "l.parquet"], str(tmp_path / "s")).rows_new == 6


def test_conflicting_extra_columns_and_damaged_tiles(tmp_path):
    rows = gaia_table(20, ra=(50, 50.1), dec=(1, 1.1))
    store = str(tmp_path / "s")
    for n, extra in enumerate((pa.array([["a"]] * 20), pa.array([1.5] * 20))):
        pq.write_table(to_arrow(rows).append_column("x", extra), tmp_path / f"{n}.parquet")
    import_catalog("gaia", [tmp_path / "0.parquet"], store)
    with pytest.raises(UsageError, match="another type"):
        import_catalog("gaia", [tmp_path / "1.parquet"], store)
    (tile,) = (tmp_path / "s").rglob("*.parquet")
    tile.write_bytes(b"PAR1 rubbish PAR1")
    with pytest.raises(StoreUnavailable, match="import it again"):
        CatalogTiles(store).gaia(50, 1, 1)


def test_a_store_in_memory_works_too():
    import fsspec

    fsspec.filesystem("memory").store.clear()
    import tempfile

    rows = gaia_table(50, ra=(20, 21), dec=(30, 31))
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(to_arrow(rows), Path(folder) / "a.parquet")
        import_catalog("gaia", [Path(folder) / "a.parquet"], "memory://night")
    assert len(CatalogTiles("memory://night").gaia(20.5, 30.5, 2)) == 50
    assert list_catalogs("memory://night")[0].rows == 50


def test_a_quadrant_takes_milliseconds(tmp_path):
    """Ten thousand rows of a rich field; the bar is ten times the budget, for busy machines."""
    rows = gaia_table(80_000, ra=(98, 102), dec=(8, 12))
    pq.write_table(to_arrow(rows), tmp_path / "a.parquet")
    import_catalog("gaia", [tmp_path / "a.parquet"], str(tmp_path / "s"))
    tiles = CatalogTiles(str(tmp_path / "s"))
    found = tiles.gaia(100, 10, 0.73)
    assert 5000 < len(found) < 12_000
    start = time.process_time()
    for _ in range(5):
        tiles.gaia(100, 10, 0.73)
    assert (time.process_time() - start) / 5 < 0.1


def test_a_store_that_cannot_be_read_or_written_is_unavailable(tmp_path):
    from stream.sky.files import Files

    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    files = Files(str(tmp_path))
    assert files.stamp(f"{tmp_path}/file/below") is None
    assert files.names(f"{tmp_path}/absent") == []
    with pytest.raises(FileNotFoundError):
        files.read(f"{tmp_path}/absent")
    with pytest.raises(StoreUnavailable):
        files.read(f"{tmp_path}/folder")
    with pytest.raises(StoreUnavailable):
        files.write(f"{tmp_path}/file/below/it", b"x")
    files.write(f"{tmp_path}/new/one", b"x")
    files.write(f"{tmp_path}/new/one", b"y")
    assert files.read(f"{tmp_path}/new/one") == b"y"
    assert [Path(p).name for p in files.names(f"{tmp_path}/new")] == ["one"]
