"""Products: what is written is read back, by us and by plain astropy and pyarrow, and a rerun writes the same bytes."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace

import archive_samples as samples
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from stream.archive import (
    ProductStore,
    catalogs,
    find_science_products,
    fitsio,
    frames,
    images,
    read_quality_record,
    read_science_product,
    science_path,
    write_products,
)
from stream.core.displacement import Displacement
from stream.core.errors import MessageError, UsageError
from stream.core.records import QuadrantResult, Status


@pytest.fixture
def store(tmp_path) -> ProductStore:
    return ProductStore(str(tmp_path / "store"))


def places(wcs: WCS) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(0, 149, 5), np.linspace(0, 129, 5))
    return np.array(wcs.all_pix2world(x.ravel(), y.ravel(), 0))


def test_science_image_comes_back(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    sent, back = made.science, read_science_product(store, made.quadrant.name)
    assert sent is not None
    assert back.quadrant == sent.quadrant
    np.testing.assert_array_equal(back.mask, sent.mask)
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(sent.data))
    # a sixteenth of the noise at most, and half of that is the largest error
    assert np.nanmax(np.abs(back.data - sent.data)) <= sent.background.sigma / 16 / 2
    np.testing.assert_allclose(
        back.background.level, sent.background.level, atol=0.5
    )  # last cells are cut off by the edge
    inner = (slice(16, -34), slice(16, -38))
    np.testing.assert_allclose(back.background.level[inner], sent.background.level[inner], atol=0.01)
    np.testing.assert_array_equal(back.psf.basis, sent.psf.basis)
    assert (back.psf.oversample, back.psf.degree, back.psf.shape) == (2, 1, samples.SHAPE)
    np.testing.assert_array_equal(back.psf.error_map, sent.psf.error_map)
    assert back.psf.flux_error == sent.psf.flux_error
    assert back.zeropoint == sent.zeropoint
    np.testing.assert_allclose(places(back.astrometry.wcs), places(sent.astrometry.wcs), rtol=0, atol=1e-9)
    assert back.astrometry.rms_ra == pytest.approx(0.031, rel=1e-6)
    for name in sent.sources.dtype.names or ():
        np.testing.assert_allclose(back.sources[name], sent.sources[name], rtol=1e-12, atol=1e-11)
    for name in ("gain", "readnoise", "saturate", "maglim", "infobits", "apcor", "apcorunc", "calids", "notes"):
        assert getattr(back, name) == getattr(sent, name)


def test_plain_astropy_reads_the_science_image_with_the_surveys_keywords(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    path = science_path(made.quadrant.name, "sciimg.fits.fz")
    with fits.open(io.BytesIO(store.read(path))) as hdus:
        header, data = hdus[1].header, hdus[1].data
        assert data.dtype.kind == "f"
        assert np.isnan(data[3, 4])
        np.testing.assert_allclose(data[60, 70], 55_000.0, atol=0.2)
        keys = "GAIN READNOI SATURATE MAGZP MAGZPUNC MAGZPRMS CLRCOEFF CLRCOUNC ZPCLRCOV PCOLOR NMATCHES SEEING MAGLIM "
        keys += "APCOR1 APCOR6 ASTRRMS1 ASTRRMS2 ASTROMN INFOBITS STATUS CCDID QID RCID EXPID FIELDID"
        assert [key for key in keys.split() if key not in header] == []
        assert header["CTYPE1"] == "RA---TPV"
        assert header["ASTRRMS1"] == pytest.approx(0.031 / 3600)
        assert made.science is not None
        np.testing.assert_allclose(places(WCS(header)), places(made.science.astrometry.wcs), atol=1e-9)


def test_mask_bit_15_wraps_to_the_sign_and_back(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    with fits.open(io.BytesIO(store.read(science_path(made.quadrant.name, "mskimg.fits.fz")))) as hdus:
        assert hdus[1].data.dtype.kind == "i"
        assert hdus[1].data.dtype.itemsize == 2
        assert made.science is not None
        np.testing.assert_array_equal(hdus[1].data < 0, made.science.mask >= 32768)
        assert hdus[1].header["MBIT13"] == "CROSSTALK"


def test_psf_catalogue_is_the_surveys_form(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    with fits.open(io.BytesIO(store.read(science_path(made.quadrant.name, "psfcat.fits")))) as hdus:
        table = hdus["PSF_CATALOG"]
        names = "sourceid,xpos,ypos,ra,dec,flux,sigflux,mag,sigmag,snr,chi,sharp,flags"
        assert ",".join(table.columns.names) == names + ",star,zpoff,magcal"
        assert dict(zip(table.columns.names, table.columns.units, strict=True))["flux"] == "DN"
        assert made.science is not None
        np.testing.assert_allclose(table.data["xpos"], made.science.sources["x"] + 1)
        good = made.science.sources["flux"] > 0
        np.testing.assert_allclose(
            table.data["mag"][good], -2.5 * np.log10(made.science.sources["flux"][good]), rtol=1e-6
        )
        assert np.isnan(table.data["mag"][~good]).all()
        zp = made.science.zeropoint
        at_places = zp.at(made.science.sources["x"], made.science.sources["y"])
        np.testing.assert_allclose(table.data["magcal"], table.data["mag"] + at_places, atol=2e-6)


def test_difference_psf_is_centred_and_sums_to_one(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    with fits.open(io.BytesIO(store.read(science_path(made.quadrant.name, "diffimgpsf.fits")))) as hdus:
        psf, grid, header = hdus[0].data, hdus["PSF_GRID"].data, hdus["PSF_GRID"].header
        assert psf.shape == (25, 25)
        assert psf.sum() == pytest.approx(1, abs=1e-5)
        assert np.unravel_index(psf.argmax(), psf.shape) == (12, 12)
        assert made.difference is not None
        x, y = header["GRIDX0"] + 3 * header["GRIDDX"] - 1, header["GRIDY0"] + header["GRIDDY"] - 1
        np.testing.assert_allclose(grid[1, 3], made.difference.psf.stamp(x, y), atol=1e-7)


def test_difference_image_keeps_its_nan_and_zero_point(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    with fits.open(io.BytesIO(store.read(science_path(made.quadrant.name, "scimrefdiffimg.fits.fz")))) as hdus:
        assert made.difference is not None
        np.testing.assert_array_equal(np.isnan(hdus[1].data), np.isnan(made.difference.data))
        assert np.nanmax(np.abs(hdus[1].data - made.difference.data)) <= 7 / 32
        assert hdus[1].header["MAGZP"] == pytest.approx(26.123784)


def test_candidates_table_has_every_field_and_the_reason(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    table = pq.read_table(io.BytesIO(store.read(science_path(made.quadrant.name, "candidates.parquet"))))
    assert table.schema.equals(catalogs.candidates_schema())
    rows = table.to_pylist()
    assert [row["rejected"] for row in rows] == [None, "shape"]
    assert rows[0]["candid"] == made.candidates[0].candid
    assert rows[0]["flux"] == pytest.approx(120.5)
    assert rows[0]["fwhm"] is None  # NaN in the room, null in the file


def test_candidate_and_extension_names_do_not_collide() -> None:
    assert len(set(catalogs.candidates_schema().names)) == len(catalogs.candidates_schema().names)


def test_streaks_table(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    (row,) = pq.read_table(io.BytesIO(store.read(science_path(made.quadrant.name, "streaks.parquet")))).to_pylist()
    assert row["length"] == 90.5
    assert row["sig_cross"] is None
    assert set(row) == {f.name for f in fields(samples.streak())}


def test_quality_record_comes_back_without_seconds(store: ProductStore) -> None:
    made = samples.result()
    write_products(store, made)
    text = json.loads(store.read(science_path(made.quadrant.name, "qa.json")))
    assert "seconds" not in text
    assert text["seeing"] is None
    assert list(text) == sorted(text)
    back = read_quality_record(store, made.quadrant.name)
    assert back == replace(made.report, seconds={}, seeing=None)


def test_a_rerun_writes_the_same_bytes(tmp_path) -> None:
    contents = []
    for name in ("a", "b"):
        one = ProductStore(str(tmp_path / name))
        made = samples.result()
        made.report.seconds = {"calibrate": float(len(contents))}  # what differs from run to run
        contents.append({path: one.read(path) for path in write_products(one, made)})
        one.write_reference(samples.reference())
        one.write_calibration(samples.calibration())
    assert contents[0] == contents[1]
    a, b = (sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.*")) for n in ("a", "b"))
    assert a == b
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in a if p.suffix)


def test_failed_quadrant_leaves_its_quality_record_only(store: ProductStore) -> None:
    q = samples.quadrant()
    failed = samples.report(q)
    failed.status, failed.stage, failed.reason = Status.FAILED, "astrometry", "no stars"
    assert write_products(store, QuadrantResult(failed, q)) == [science_path(q.name, "qa.json")]
    assert read_quality_record(store, q.name).status is Status.FAILED


def test_science_products_are_found_by_field_and_filter(store: ProductStore) -> None:
    for jd, field in ((samples.JD, 651), (samples.JD + 1, 651), (samples.JD, 652)):
        write_products(store, replace(samples.result(samples.quadrant(jd, field))))
    found = find_science_products(store, 651, 2)
    assert [rcid for _, rcid in found] == [8, 8]
    assert [name for name, _ in found] == sorted(name for name, _ in found)
    assert find_science_products(store, 651, 1) == []
    with pytest.raises(UsageError, match="no sci/"):
        read_science_product(store, samples.quadrant(samples.JD + 5).name)


def test_the_airs_displacement_comes_back(store: ProductStore) -> None:
    rng = np.random.default_rng(4)
    result = samples.result()
    assert result.science is not None
    planes = rng.normal(0, 0.1, (4, 7, 6)).astype(np.float32)
    field = Displacement(*planes, result.science.data.shape, (0.02, 0.03), 800.0, 0.01, 1.2, 900)
    astrometry = replace(result.science.astrometry, displacement=field, centroid=(1.5, 0.01), refraction=0.02,
                         colour=1.42, colour_sigma=(0.003, 0.004))  # fmt: skip
    write_products(store, replace(result, science=replace(result.science, astrometry=astrometry)))
    back = read_science_product(store, result.quadrant.name).astrometry
    assert back.displacement is not None
    for name in ("dx", "dy", "sigma_x", "sigma_y"):
        np.testing.assert_array_equal(getattr(back.displacement, name), getattr(field, name))
    same = ("shape", "spread", "length", "floor", "noise_scale", "n_stars")
    assert [getattr(back.displacement, name) for name in same] == [getattr(field, name) for name in same]
    for name in ("centroid", "refraction", "colour", "colour_sigma"):
        assert getattr(back, name) == getattr(astrometry, name)


def test_reference_comes_back(store: ProductStore) -> None:
    sent = samples.reference()
    store.write_reference(sent)
    back = store.read_reference(651, 2, 8)
    assert back is not None
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(sent.data))
    assert np.nanmax(np.abs(back.data - sent.data)) <= 2.0 / 64 / 2
    np.testing.assert_allclose(back.unc, sent.unc, atol=2.0 / 1024)
    np.testing.assert_array_equal(back.coverage, sent.coverage)
    np.testing.assert_allclose(places(back.wcs), places(sent.wcs), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(back.psf.basis, sent.psf.basis)
    np.testing.assert_allclose(back.sources["x"], sent.sources["x"], atol=1e-11)
    np.testing.assert_array_equal(back.sources["flags"], sent.sources["flags"])
    same = ("rfid", "field", "fid", "rcid", "magzp", "jd_start", "jd_end", "n_frames", "saturate", "version", "inputs")
    assert all(getattr(back, name) == getattr(sent, name) for name in (*same, "qa"))


def test_writing_what_was_read_changes_nothing(store: ProductStore) -> None:
    store.write_reference(samples.reference())
    first = store.read_reference(651, 2, 8)
    assert first is not None
    store.write_reference(first)
    second = store.read_reference(651, 2, 8)
    assert second is not None
    np.testing.assert_array_equal(first.data, second.data)


def test_half_replaced_reference_is_refused() -> None:
    old, new = frames.encode_reference(samples.reference("old")), frames.encode_reference(samples.reference("new"))
    with pytest.raises(MessageError, match="belong together"):
        frames.decode_reference({**new, "refunc.fits.fz": old["refunc.fits.fz"]})


@pytest.mark.parametrize("kind", ["bias", "hifreqflat"])
def test_calibration_frame_comes_back(store: ProductStore, kind: str) -> None:
    sent = samples.calibration(kind)
    store.write_calibration(sent)
    back = store.read_calibration("20181129", kind, sent.fid, 8)
    assert back is not None
    noise = float(sent.unc[0, 0])
    assert np.nanmax(np.abs(back.data - sent.data)) <= noise / 64 / 2 * 1.0001 + 1e-7
    np.testing.assert_array_equal(np.isnan(back.data), np.isnan(sent.data))
    np.testing.assert_allclose(back.unc, sent.unc, rtol=1e-3)
    np.testing.assert_array_equal(back.badpix, sent.badpix)
    same = ("kind", "rcid", "fid", "nid", "night", "n_frames", "calid", "qa")
    assert all(getattr(back, name) == getattr(sent, name) for name in same)
    quick = store.read_calibration("20181129", kind, sent.fid, 8, unc=False)
    assert quick is not None
    assert np.isnan(quick.unc).all()
    assert store.read_calibration("20181130", kind, sent.fid, 8) is None


def test_damaged_files_are_named_not_crashed_on() -> None:
    good = images.encode_science(samples.science())
    for broken in (b"", b"not FITS", good["sciimg.fits.fz"][:4000], good["psfcat.fits"]):
        with pytest.raises(MessageError):
            images.decode_science({**good, "sciimg.fits.fz": broken})
    with pytest.raises(MessageError):
        catalogs.read_rows(b"PAR1")
    with pytest.raises(MessageError):
        catalogs.read_quality(b"{}")
    with pytest.raises(MessageError):
        catalogs.read_json(b"[1]")
    with pytest.raises(MessageError):
        frames.decode_calibration(good["mskimg.fits.fz"])


def test_catalogues_of_different_images_are_not_mixed() -> None:
    one, other = (
        images.encode_science(samples.science()),
        images.encode_science(replace(samples.science(), sources=samples.sources(30))),
    )
    with pytest.raises(MessageError, match="same sources"):
        images.decode_science({**one, "sexcat.fits": other["sexcat.fits"]})


@pytest.mark.parametrize("noise", [0.003, 1.0, 7.3, 1e4])
def test_quantum_is_a_power_of_two_below_a_sixteenth(noise: float) -> None:
    step = fitsio.quantum(noise)
    assert noise / 32 < step <= noise / 16
    assert np.log2(step) == np.rint(np.log2(step))


def test_range_beyond_the_codes_widens_the_step() -> None:
    image = np.array([[1e9, 0.0], [-1e9, np.nan]], np.float32)
    back = fitsio.read_hdus(fitsio.primary() + fitsio.float_hdu(image, 2.0**-8, {}))[1].image()
    np.testing.assert_allclose(back, image, rtol=1e-6)
    empty = fitsio.read_hdus(fitsio.primary() + fitsio.float_hdu(np.full((4, 5), np.nan, np.float32), 1.0, {}))[1]
    assert np.isnan(empty.image()).all()


def test_cards_without_a_value_are_left_out() -> None:
    header = fitsio.header_of({"A": float("nan"), "B": None, "C": (np.float32(2.0), "two"), "D": float("inf")})
    assert list(header) == ["C"]
