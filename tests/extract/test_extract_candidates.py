"""Candidates of a painted difference against the painted truth and against the packet's rules."""

from __future__ import annotations

import math

import extract_scene as scene
import numpy as np
import pytest
from scipy.spatial import cKDTree

from stream.core import identity
from stream.core.errors import SubtractionError, UsageError
from stream.core.flags import Mask
from stream.core.records import SOURCE_DTYPE, Candidate
from stream.extract import CANDIDATE_FIELDS, EXTRA_FIELDS, ExtractSettings, extract, extract_all
from stream.extract.detect import detect_peaks, peak_values

SHAPE = (512, 512)
LENIENT = ExtractSettings(threshold=5.0, profile="noise-aware")


def found_at(candidates: list[Candidate], x, y) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate the distance to and the index of the nearest painted place."""
    places = [(c.fields["xpos"] - 1, c.fields["ypos"] - 1) for c in candidates]
    return cKDTree(np.column_stack([x, y])).query(places)


@pytest.fixture(scope="module")
def field():
    """400 sources of both signs at S/N 12 to 300."""
    x, y = scene.grid_places(SHAPE, 23, 1)
    rng = np.random.default_rng(2)
    snr = np.exp(rng.uniform(np.log(12), np.log(300), len(x)))
    flux = snr * scene.flux_error() * np.where(np.arange(len(x)) % 2, -1, 1)
    science = scene.science_of(SHAPE)
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=3)
    return science, scene.reference_of(science), difference, x, y, flux


@pytest.fixture(scope="module")
def found(field):
    science, reference, difference, *_ = field
    return extract(science, reference, difference, LENIENT)


def test_everything_is_found_once_and_nothing_else(field, found):
    *_, x, y, flux = field
    distance, index = found_at(found, x, y)
    assert len(found) == len(x)
    assert sorted(index.tolist()) == list(range(len(x)))
    assert distance.max() < 0.5
    assert [c.fields["isdiffpos"] for c in found] == ["t" if flux[i] > 0 else "f" for i in index]
    assert np.mean([c.rejected is None for c in found]) > 0.98


def test_fluxes_are_unbiased_and_errors_true_to_ten_per_cent(field, found):
    *_, x, y, flux = field
    _, index = found_at(found, x, y)
    pull = np.array([(c.extra["flux"] - flux[i]) / c.extra["fluxerr"] for c, i in zip(found, index, strict=True)])
    sign = np.sign(flux[index])
    assert 0.9 < pull.std() < 1.1
    # A fitted place adds about 1 / (S/N) sigma.
    assert abs(np.mean(pull * sign)) < 0.2
    assert np.median([c.extra["fluxerr"] for c in found]) == pytest.approx(scene.flux_error(), rel=0.02)


def test_places_are_as_good_as_the_signal_allows(field, found):
    *_, x, y, flux = field
    distance, index = found_at(found, x, y)
    snr = np.abs(flux[index]) / scene.flux_error()
    # A Gaussian's centroid: sigma / (S/N) on each axis, for white noise times the square root of 2 at most.
    expected = math.sqrt(2) * scene.FWHM / 2.355 / snr
    assert np.median(distance / expected) < 1.5
    assert np.median(distance[snr > 100]) < 0.03


def test_chi_square_shape_and_widths_of_point_sources(found):
    def values(name: str) -> np.ndarray:
        return np.array([c.fields[name] for c in found], float)

    assert np.median(values("chipsf")) == pytest.approx(1.0, abs=0.1)
    assert np.median(values("fwhm")) == pytest.approx(scene.FWHM, abs=0.1)
    assert np.median(values("elong")) < 1.15
    # Under a window as wide as the source its moments are halved.
    assert np.median(values("aimage")) == pytest.approx(scene.FWHM / 2.355 / math.sqrt(2), rel=0.1)
    assert np.nanmedian(values("sumrat")) > 0.95
    assert np.nanmedian(values("classtar")) > 0.9
    assert max(c.extra["dipole"] for c in found) < 0.3


def test_magnitudes_follow_the_zero_point(field, found):
    for c in found:
        flux = abs(c.extra["flux"])
        assert c.fields["magpsf"] == pytest.approx(scene.ZP - 2.5 * math.log10(flux), abs=2e-6)
        assert c.fields["sigmapsf"] == pytest.approx(1.0857362 * c.extra["fluxerr"] / flux, rel=1e-5)
        assert c.extra["limmag"] == pytest.approx(scene.ZP - 2.5 * math.log10(5 * c.extra["fluxerr"]), abs=1e-6)
        assert c.extra["refmagzp"] == scene.ZP
    assert np.median([c.extra["limmag"] for c in found]) == pytest.approx(scene.limit_magnitude(), abs=0.03)


def test_apertures_agree_with_photutils(field, found):
    from photutils.aperture import CircularAperture, aperture_photometry

    *_, difference, _x, _y, _flux = field
    bright = [c for c in found if abs(c.extra["flux"]) > 30 * c.extra["fluxerr"]]
    places = [(c.fields["xpos"] - 1, c.fields["ypos"] - 1) for c in bright]
    for radius, name in ((7.0, "magap"), (9.0, "magapbig")):
        aperture = CircularAperture(places, radius)
        sums = aperture_photometry(difference.data, aperture)["aperture_sum"].data
        for c, total in zip(bright, sums, strict=True):
            sign = 1 if c.fields["isdiffpos"] == "t" else -1
            expected = total * sign - c.fields["sky"] * math.pi * radius**2
            measured = 10 ** (-0.4 * (c.fields[name] - scene.ZP))
            # The ramp at the rim against exact overlap: a fraction of one pixel's noise each along it.
            assert measured == pytest.approx(expected, abs=0.5 * c.fields["sigmagap"] / 1.0857 * measured + 2)


def test_the_packets_identities_hold_exactly_in_float32(found):
    for c in found:
        f = {k: np.float32(v) if isinstance(v, float) else v for k, v in c.fields.items()}
        if f["magap"] is not None:
            assert f["magdiff"] == f["magap"] - f["magpsf"]
            assert f["magfromlim"] == f["diffmaglim"] - f["magap"]
        assert f["elong"] == f["aimage"] / f["bimage"]
        assert f["aimagerat"] == f["aimage"] / f["fwhm"]
        assert f["bimagerat"] == f["bimage"] / f["fwhm"]
        assert f["dsdiff"] == f["dsnrms"] - f["ssnrms"]
        x, y = f["xpos"], f["ypos"]
        assert f["mindtoedge"] == min(x, y, SHAPE[1] + np.float32(0.5) - x, SHAPE[0] + np.float32(0.5) - y)


def test_names_and_values_fit_the_packet(found):
    for c in found:
        assert tuple(c.fields) == CANDIDATE_FIELDS
        assert tuple(c.extra) == EXTRA_FIELDS
        for value in (*c.fields.values(), *c.extra.values()):
            assert value is None or isinstance(value, int | float | str)
            assert not isinstance(value, float) or math.isfinite(value)
        for name in ("ranr", "decnr", "ra", "dec", "jdstartref"):
            assert isinstance(c.fields[name], float)
        assert c.fields["rbversion"] == c.fields["drbversion"] == ""
        assert c.fields["pdiffimfilename"] == "ztf_20181129252384_000651_zr_c03_o_q1_scimrefdiffimg.fits.fz"


@pytest.mark.real
def test_every_value_is_accepted_by_the_surveys_schema(found, real_data):
    import io

    import fastavro

    packet = sorted((real_data / "alerts" / "boom").glob("*.avro"))[0]
    with packet.open("rb") as stream:
        schema = fastavro.reader(stream).writer_schema
    record = next(f["type"] for f in schema["fields"] if f["name"] == "candidate")
    assert tuple(f["name"] for f in record["fields"]) == CANDIDATE_FIELDS
    parsed = fastavro.parse_schema({**record, "name": "ztf.alert.candidate"})
    for c in found:
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, parsed, c.fields, strict=True)
        back = fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), parsed)
        assert back == c.fields  # nothing is rounded on the way out


def test_candids_follow_the_arithmetic_and_sent_rows_come_first(field, found):
    science = field[0]
    for sign in "tf":
        rows = [c for c in found if c.fields["isdiffpos"] == sign]
        assert [c.fields["tblid"] for c in rows] == list(range(len(rows)))
        sent = [c.rejected is None for c in rows]
        assert sent == sorted(sent, reverse=True)
        for group in (True, False):
            places = [(c.fields["ypos"], c.fields["xpos"]) for c, s in zip(rows, sent, strict=True) if s == group]
            assert places == sorted(places)
    for c in found:
        assert c.candid == identity.candid_of(science.quadrant.pid, c.fields["isdiffpos"] == "t", c.fields["tblid"])
    assert len({c.candid for c in found}) == len(found)


def test_sky_places_are_those_of_the_wcs(field, found):
    wcs = field[0].astrometry.wcs
    ra, dec = wcs.all_pix2world([c.fields["xpos"] for c in found], [c.fields["ypos"] for c in found], 1)
    assert np.allclose([c.fields["ra"] for c in found], ra, atol=3e-8)  # xpos is float32
    assert np.allclose([c.fields["dec"] for c in found], dec, atol=3e-8)


def test_stamps_are_centred_signed_and_small_only_at_edges(field, found):
    science, _, difference, *_ = field
    sizes = set()
    for c in found:
        if c.rejected is not None:
            assert c.stamps is None
            continue
        x, y = round(c.fields["xpos"] - 1), round(c.fields["ypos"] - 1)
        sign = 1 if c.fields["isdiffpos"] == "t" else -1
        box = np.s_[max(y - 31, 0) : y + 32, max(x - 31, 0) : x + 32]
        assert np.array_equal(c.stamps.difference, difference.data[box] * np.float32(sign))
        assert np.array_equal(c.stamps.science, science.data[box])
        assert c.stamps.difference.dtype == c.stamps.template.dtype == np.float32
        sizes.add(c.stamps.difference.shape)
        if c.stamps.difference.shape == (63, 63):
            core = c.stamps.difference[29:34, 29:34]
            assert c.fields["nneg"] == np.sum(core < 0)
            assert core[1:4, 1:4].max() == core.max()
    assert (63, 63) in sizes
    assert len(sizes) > 1


def test_a_rerun_gives_the_same(field, found):
    science, reference, difference, *_ = field
    again = extract(science, reference, difference, LENIENT)
    assert [(c.fields, c.extra, c.rejected) for c in again] == [(c.fields, c.extra, c.rejected) for c in found]


def test_empty_sky_gives_nothing_and_images_without_a_pixel_too(field):
    science, reference, *_ = field
    empty = scene.difference_of(np.zeros(SHAPE), seed=5)
    assert sum(c.rejected is None for c in extract(science, reference, empty)) <= 1
    assert len(extract(science, reference, empty, ExtractSettings(threshold=5.0))) <= 1
    blank = scene.difference_of(np.full(SHAPE, np.nan), seed=None)
    blank.scorr[:] = np.nan
    assert extract(science, reference, blank) == []


def test_wrong_input_is_named(field):
    science, reference, difference, *_ = field
    with pytest.raises(SubtractionError, match="not one grid"):
        extract(science, reference, scene.difference_of(np.zeros((100, 100)), seed=5))
    with pytest.raises(UsageError, match="survey-2018"):
        extract(science, reference, difference, ExtractSettings(profile="none"))


def test_half_of_the_sources_at_the_limit_are_found():
    """Depth: completeness 50 % within 0.05 mag of the theoretical 5-sigma limit (at 5.24 sigma at the latest)."""
    shape = (1024, 1024)
    x, y = scene.grid_places(shape, 24, 8)
    flux = np.full(len(x), 5 * 10**0.02 * scene.flux_error())
    science = scene.science_of(shape)
    difference = scene.difference_of(scene.point_sources(shape, x, y, flux), seed=9)
    settings = ExtractSettings(profile="inclusive")
    sent = [c for c in extract(science, scene.reference_of(science), difference, settings) if c.rejected is None]
    distance, index = found_at(sent, x, y)
    assert len(set(index[distance < 2])) > 0.5 * len(x)
    assert np.sum(distance >= 2) <= 3


def test_a_peak_table_that_is_full_drops_the_faintest_and_says_so(field):
    science, reference, difference, _x, _y, flux = field
    result = extract_all(
        science, reference, difference, ExtractSettings(threshold=5.0, profile="noise-aware", max_rows=50)
    )
    assert len(result.candidates) == 100
    assert result.n_dropped == (int(np.sum(flux > 0)) - 50, int(np.sum(flux < 0)) - 50)
    weakest = min(abs(c.extra["flux"]) for c in result.candidates if c.fields["isdiffpos"] == "t")
    assert weakest == pytest.approx(np.sort(flux)[-50], rel=0.3)


def test_defects_are_counted_reported_and_reject():
    x, y = np.array([100.0, 200.0, 300.0, 400.0, 256.0]), np.full(5, 250.0)
    flux = np.full(5, 60 * scene.flux_error())
    x[4], y[4] = 5.0, 400.0  # near the edge
    mask = np.zeros(SHAPE, np.uint16)
    mask[251, 201] = Mask.SPIKE  # one bad pixel is allowed
    mask[249:252, 299:302] = Mask.GHOST  # nine are not
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=4, mask=mask)
    difference.data[249:252, 399:402] = np.nan  # no core left
    science = scene.science_of(SHAPE)
    candidates = extract(science, scene.reference_of(science), difference)
    distance, index = found_at(candidates, x, y)
    by_place = {int(i): c for i, c, d in zip(index, candidates, distance, strict=True) if d < 2}
    assert [by_place[k].rejected for k in range(5)] == [None, None, "bad_pixels", "unusable", "edge"]
    assert [by_place[k].fields["nbad"] for k in range(4)] == [0, 1, 9, 9]
    assert by_place[1].extra["maskbits"] == Mask.SPIKE
    assert by_place[3].fields["magpsf"] is None


def test_a_hole_beside_the_core_does_not_change_the_flux():
    x, y, flux = np.array([250.3]), np.array([250.6]), np.array([100 * scene.flux_error()])
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=4)
    difference.data[252, 252] = np.nan
    science = scene.science_of(SHAPE)
    candidate = max(extract(science, scene.reference_of(science), difference), key=lambda c: c.fields["scorr"])
    assert candidate.rejected is None
    assert abs(candidate.extra["flux"] - flux[0]) < 4 * candidate.extra["fluxerr"]
    assert abs(candidate.fields["magdiff"]) < 0.1


def test_reference_neighbour_and_flux_under_the_candidate():
    star_x, star_y, star_flux = np.array([150.2, 350.0]), np.array([150.4, 352.0]), np.array([8000.0, 3000.0])
    science = scene.science_of(SHAPE)
    sources = np.zeros(2, SOURCE_DTYPE)
    sources["ra"], sources["dec"] = science.astrometry.wcs.all_pix2world(star_x, star_y, 0)
    sources["flux"], sources["sigflux"], sources["chi"], sources["sharp"] = star_flux, 40.0, 1.1, -0.02
    image = scene.point_sources(SHAPE, star_x, star_y, star_flux)
    reference = scene.reference_of(science, image, sources)
    x, y = np.array([150.2, 350.0, 400.0]), np.array([150.4, 349.0, 80.0])
    signal = scene.point_sources(SHAPE, x, y, np.full(3, 2000.0))
    difference = scene.difference_of(signal, seed=6, reference=image)
    candidates = extract(science, reference, difference)
    _, index = found_at(candidates, x, y)
    on_star, beside, alone = (candidates[list(index).index(k)] for k in range(3))
    assert on_star.fields["distnr"] < 0.2
    assert beside.fields["distnr"] == pytest.approx(3.0, abs=0.2)
    assert on_star.fields["magnr"] == pytest.approx(reference.magzp - 2.5 * math.log10(8000), abs=1e-4)
    assert on_star.fields["sigmagnr"] == pytest.approx(1.0857 * 40 / 8000, rel=1e-3)
    assert on_star.fields["chinr"] == pytest.approx(1.1)
    assert (on_star.fields["ranr"], on_star.fields["decnr"]) == (sources["ra"][0], sources["dec"][0])
    assert on_star.extra["refflux"] == pytest.approx(8000, rel=0.02)
    assert alone.extra["refflux"] == pytest.approx(0, abs=1)
    assert alone.fields["distnr"] is None
    assert alone.fields["magnr"] is None
    assert (alone.fields["ranr"], alone.fields["decnr"]) == (alone.fields["ra"], alone.fields["dec"])


def test_a_dipole_is_told_from_a_source():
    x, y = np.array([250.0, 252.0]), np.array([250.0, 250.0])
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, np.array([4000.0, -4000.0])), seed=6)
    science = scene.science_of(SHAPE)
    candidates = extract(science, scene.reference_of(science), difference)
    lobes = [c for c in candidates if c.fields["scorr"] > 5.0]
    assert {c.fields["isdiffpos"] for c in lobes} == {"t", "f"}
    assert all(c.extra["dipole"] > 0.5 for c in lobes)
    assert all(c.extra["dipole_sep"] == pytest.approx(2.0 + scene.FWHM / 2, abs=2.0) for c in lobes)


def test_two_near_sources_are_two():
    x, y = np.array([250.0, 256.0, 400.0, 400.0]), np.array([250.0, 250.0, 100.0, 106.0])
    flux = np.array([20.0, 20.0, 300.0, 60.0]) * scene.flux_error()
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=6)
    science = scene.science_of(SHAPE)
    candidates = extract(science, scene.reference_of(science), difference)
    distance, index = found_at(candidates, x, y)
    assert sorted(index[distance < 0.6].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("fwhm", [1.55, 2.0, 3.2])
def test_the_place_in_the_pixel_does_not_decide_what_is_found(fwhm):
    """S_corr of a point is the PSF's autocorrelation: its maximum counts, wherever the pixels lie."""
    phases = np.linspace(-0.5, 0.5, 9)[:-1]
    px, py = (v.ravel() for v in np.meshgrid(20 + 40 * np.arange(8) + phases, 20 + 40 * np.arange(8) + phases))
    yy, xx = np.mgrid[0:340, 0:340]
    score = np.zeros(yy.shape)
    for x, y in zip(px, py, strict=True):
        score += 4.2 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (4 * (fwhm / 2.3548) ** 2))
    score = score.astype(np.float32)
    peaks = detect_peaks(score, 4.0, fwhm, 1000)
    assert len(peaks) == len(px)
    assert np.allclose(peak_values(score, peaks), 4.2, rtol=0.03)
    assert len(detect_peaks(score, 4.35, fwhm, 1000)) == 0
    score[20, 26] = np.nan  # beside the first: its parabolas stand in
    assert peak_values(score, peaks)[0] > 3.3
