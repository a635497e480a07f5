"""Paths, whole files, faults of the store, and what the science reads from it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import archive_samples as samples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.archive import BoundedCache, ProductStore, StoreInputs, calibration_path, reference_path
from stream.archive import paths as names
from stream.core.errors import StoreUnavailable, UsageError
from stream.core.identity import FILTER_CODES
from stream.core.records import BRIGHT_DTYPE, GAIA_DTYPE, PS1_DTYPE

NAME = "ztf_20181129523840_000651_zr_c03_o_q1"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (names.science_path(NAME, "sciimg.fits.fz"), f"sci/2018/1129/523840/{NAME}_sciimg.fits.fz"),
        (
            calibration_path("20181129", "bias", 0, 8),
            "cal/2018/1129/bias/bi/ccd03/q1/ztf_20181129_bi_c03_q1_bias.fits.fz",
        ),
        (
            calibration_path("20181129", "hifreqflat", 2, 63, unc=True),
            "cal/2018/1129/hifreqflat/zr/ccd16/q4/ztf_20181129_zr_c16_q4_hifreqflatunc.fits.fz",
        ),
        (
            reference_path(651, 1, 8, "refimg.fits.fz"),
            "ref/000/field000651/zg/ccd03/q1/ztf_000651_zg_c03_q1_refimg.fits.fz",
        ),
        (
            reference_path(1789, 3, 0, "refpsfcat.fits"),
            "ref/001/field001789/zi/ccd01/q1/ztf_001789_zi_c01_q1_refpsfcat.fits",
        ),
        (names.alert_path("20181129", 1, 697251920715010005), "alerts/20181129/programid1/697251920715010005.avro"),
    ],
)
def test_names_are_the_surveys(path: str, wanted: str) -> None:
    assert path == wanted


@given(
    st.dates().map(lambda d: d.strftime("%Y%m%d").zfill(8)), st.integers(0, 999_999), st.integers(1, 999_999),
    st.sampled_from([1, 2, 3]), st.integers(1, 16), st.integers(1, 4),
)  # fmt: skip
def test_science_names_parse_back(night: str, fraction: int, field: int, fid: int, ccd: int, qid: int) -> None:
    name = f"ztf_{night}{fraction:06d}_{field:06d}_{FILTER_CODES[fid]}_c{ccd:02d}_o_q{qid}"
    parts = names.parse_science_name(name)
    assert parts == names.ScienceName(night, field, fid, ccd, qid)
    assert parts.rcid == 4 * (ccd - 1) + qid - 1
    assert names.science_path(name, "qa.json").startswith(f"sci/{night[:4]}/{night[4:]}/{fraction:06d}/")


@given(st.text(max_size=60))
def test_anything_else_is_no_name(text: str) -> None:
    with pytest.raises(UsageError):
        names.parse_science_name(text + "!")
    with pytest.raises(UsageError):
        names.science_path(f"../{text}", "qa.json")


def test_unknown_calibration_kind() -> None:
    with pytest.raises(UsageError, match="bias"):
        calibration_path("20181129", "twilight", 1, 0)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> ProductStore:
    """A folder, and a store that is no folder: the two kinds of writing."""
    if request.param == "folder":
        return ProductStore(str(tmp_path / "deep" / "store"))
    return ProductStore(f"memory://{tmp_path}")


def test_files_are_written_over_and_listed(store: ProductStore) -> None:
    assert store.find("a/b.txt") is None
    assert store.names("a") == []
    assert not store.exists("a/b.txt")
    store.write("a/b.txt", b"one")
    first = store.stamp("a/b.txt")
    store.write("a/b.txt", b"two, longer")
    store.write("a/c/d.txt", b"x")
    assert store.read("a/b.txt") == b"two, longer"
    assert store.read_range("a/b.txt", 5, 8) == b"lon"
    assert store.stamp("a/b.txt") != first
    assert store.names("a") == ["b.txt", "c"]
    with pytest.raises(UsageError, match="has no a/zz"):
        store.read("a/zz")


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch) -> None:
    store = ProductStore(str(tmp_path))
    store.write("a/b", b"old")

    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.write("a/b", b"new")
    assert store.read("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_store_that_cannot_be_written_is_retriable(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = ProductStore(str(tmp_path / "file"))  # a file where the folder should be
    with pytest.raises(StoreUnavailable):
        store.write("a/b", b"")


def test_unknown_kind_of_url() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        ProductStore("nosuch://bucket")


class NoCatalogs:
    """Empty sky."""

    def gaia(self, ra: float, dec: float, radius: float) -> np.ndarray:
        return np.zeros(0, GAIA_DTYPE)

    def ps1(self, ra: float, dec: float, radius: float) -> np.ndarray:
        return np.zeros(1, PS1_DTYPE)

    def bright(self, ra: float, dec: float, radius: float) -> np.ndarray:
        return np.zeros(2, BRIGHT_DTYPE)


def test_newest_valid_calibration_is_taken(store: ProductStore) -> None:
    inputs = StoreInputs(store, NoCatalogs())
    q = samples.quadrant()  # night 20181129
    assert inputs.calibration(q).bias is None
    for night in ("20170801", "20181031", "20181130", "20190101"):
        store.write_calibration(samples.calibration("bias", night))
    found = inputs.calibration(q)
    assert found.bias is not None
    assert (found.bias.night, found.flat) == ("20181031", None)
    store.write_calibration(samples.calibration("bias", "20181129"))
    store.write_calibration(samples.calibration("hifreqflat", "20181128"))
    found = inputs.calibration(q)
    assert found.bias is not None
    assert found.flat is not None
    assert (found.bias.night, found.flat.night) == ("20181129", "20181128")
    assert inputs.calibration(samples.quadrant(ccdid=4)).bias is None  # another channel


def test_frames_stay_in_memory_until_they_change(tmp_path) -> None:
    store = ProductStore(str(tmp_path))
    inputs = StoreInputs(store, NoCatalogs())
    store.write_calibration(samples.calibration())
    q = samples.quadrant()
    first = inputs.calibration(q).bias
    assert inputs.calibration(q).bias is first
    other = samples.calibration()
    store.write_calibration(replace(other, data=other.data + 1))
    again = inputs.calibration(q).bias
    assert first is not None
    assert again is not None
    assert float(np.nanmedian(again.data - first.data)) == pytest.approx(1, abs=0.05)


def test_newer_reference_replaces_the_cached_one(tmp_path) -> None:
    store = ProductStore(str(tmp_path))
    inputs = StoreInputs(store, NoCatalogs())
    q = samples.quadrant()
    assert inputs.reference(q) is None
    store.write_reference(samples.reference("v1"))
    first = inputs.reference(q)
    assert first is not None
    assert first.version == "v1"
    assert inputs.reference(q) is first
    store.write_reference(samples.reference("v2"))
    second = inputs.reference(q)
    assert second is not None
    assert second.version == "v2"
    assert inputs.reference(samples.quadrant(field=652)) is None


def test_incomplete_reference_is_retried_not_used(tmp_path) -> None:
    store = ProductStore(str(tmp_path))
    path = Path(tmp_path) / store.write_reference(samples.reference())
    path.unlink()
    with pytest.raises(StoreUnavailable, match="incomplete"):
        StoreInputs(store, NoCatalogs()).reference(samples.quadrant())
    path.write_bytes(b"garbage")
    with pytest.raises(StoreUnavailable):
        StoreInputs(store, NoCatalogs()).reference(samples.quadrant())


def test_cones_come_from_the_catalogues(tmp_path) -> None:
    inputs = StoreInputs(ProductStore(str(tmp_path)), NoCatalogs())
    assert [len(cone(1, 2, 3)) for cone in (inputs.gaia, inputs.ps1, inputs.bright)] == [0, 1, 2]


def test_cache_holds_what_fits_and_forgets_the_oldest() -> None:
    loads: list[str] = []

    def loader(name: str, size: int):
        def load() -> bytes:
            loads.append(name)
            return bytes(size)

        return load

    cache: BoundedCache[bytes] = BoundedCache(100, len)
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, "1", loader(name, 45))
    assert loads == ["a", "b", "c", "b"]  # a was always used again in time
    assert len(cache) == 2
    cache.get("big", "1", loader("big", 1000))
    assert len(cache) == 1  # larger than the limit: kept alone, it is needed now
    cache.get("big", "2", loader("big", 1000))
    assert loads[-2:] == ["big", "big"]
