"""Whole nights on disk: the format of packets, truth tables, seeds, and reproducibility."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from stream.core import identity
from stream.core.camera import FULL, Camera, read_order
from stream.core.errors import UsageError
from stream.core.identity import ccd_qid_of
from stream.simulate import NightPlan, paint_quadrant, read_truth, schedule, simulate_night, simulate_packet, wcs_of
from stream.simulate.flats import night_of, response
from stream.simulate.plan import SimExposure

TINY = Camera("tiny", 256, 240)
PLAN = NightPlan(camera=TINY, n_bias=1, n_flat=1, n_dark=1, n_reference=1, n_science=2, ccds=(2,), seed=5, noise_seed=9)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    calls = []
    out = tmp_path_factory.mktemp("night")
    summary = simulate_night(out, PLAN, lambda done, total: calls.append((done, total)))
    assert calls == [(k, 6) for k in range(1, 7)]
    return summary


def test_what_was_written_is_what_the_summary_says(night):
    assert [len(paths) for paths in (night.calibration, night.reference, night.science)] == [3, 1, 2]
    assert sorted(p.name for p in night.out.iterdir()) == [
        "CometEls.txt", "MPCORB.DAT", "bright.parquet", "gaia.parquet", "ps1.parquet", "raw", "truth",
    ]  # fmt: skip
    files = sorted(night.out.glob("raw/*/*"))
    assert files == sorted(night.calibration + night.reference + night.science)
    assert night.n_bytes == sum(path.stat().st_size for path in files)
    assert night.n_packets == 6
    json.dumps(night.as_dict())
    assert set(night.truth) == {"sources", "quadrants", "artefacts", "instrument"}


def test_packet_layout_is_the_contracts(night):
    for path in night.calibration + night.reference + night.science:
        with fits.open(path, checksum=True) as hdus:
            hdus.verify("exception")
            assert len(hdus) == 9
            assert hdus[0].data is None
            for k in range(1, 9):
                assert isinstance(hdus[k], fits.CompImageHDU)
                assert hdus[k].data.dtype == np.uint16
                assert hdus[k].data.shape == (240, 256 if k < 5 else 30)
        with fits.open(path, disable_image_compression=True) as hdus:
            for k in range(1, 9):
                header = hdus[k].header
                assert header["ZCMPTYPE"] == "RICE_1"
                assert (header["ZTILE1"], header["ZTILE2"]) == (header["ZNAXIS1"], 1)
                assert header["ZBITPIX"] == 16
                assert header["BZERO"] == 32768
                assert "DATASUM" in header


def test_primary_keywords_are_the_contracts(night):
    required = {"FIELDID": int, "FILTERID": int, "OBSJD": float, "SHUTOPEN": str, "SHUTCLSD": str, "EXPTIME": float,
                "PROGRMID": int, "IMGTYPE": str}  # fmt: skip
    kinds = {"o": "object", "b": "bias", "d": "dark", "f": "flat"}
    for path in night.calibration + night.reference + night.science:
        header = fits.getheader(path)
        for key, kind in required.items():
            assert isinstance(header[key], kind), key
        name = path.name.removesuffix(".fits.fz")
        letter = name[-1]
        assert header["IMGTYPE"] == kinds[letter]
        parts = name.split("_")
        assert len(parts[1]) == 14
        assert int(parts[2]) == header["FIELDID"] == (448 if letter == "o" else 0)
        assert parts[3] == {"o": "zr", "f": "zr", "b": "bi", "d": "dk"}[letter]
        assert parts[4] == "c02"
        jd = header["OBSJD"]
        assert identity.night_of(jd) == parts[1][:8]
        assert int(((jd - 0.5) % 1) * 1e6 + 1e-3) == int(parts[1][8:])
        opened, closed = (dt.datetime.fromisoformat(header[key]) for key in ("SHUTOPEN", "SHUTCLSD"))
        assert (closed - opened).total_seconds() == pytest.approx(header["EXPTIME"], abs=2e-3)
        assert 0 <= (identity.jd_of(opened) - jd) * 86400 < 2
        if letter == "o":
            for key in ("TELRAD", "TELDECD", "OBJRAD", "OBJDECD", "RAD", "DECD", "AIRMASS", "MOONILLF", "SUNALT"):
                assert isinstance(header[key], float), key
            assert header["SUNALT"] < -12  # night at Palomar
        if letter == "f":
            assert "ILUM_LED" in header
        assert not any("_work" in str(value) for value in header.values())


def test_extension_keywords_are_the_contracts(night):
    with fits.open(night.science[0]) as hdus:
        for qid in (1, 2, 3, 4):
            header = hdus[qid].header
            assert (header["CCD_ID"], header["AMP_ID"]) == (2, qid - 1)
            for key in ("GAIN", "READNOI", "SATURATE"):
                assert header[key] > 0
            for key in ("CRVAL1", "CTYPE1", "CD1_1", "PV1_1"):
                assert key not in header


def test_full_frame_sizes_are_the_cameras():
    assert FULL.shape == (3080, 3072)
    assert replace(PLAN, camera=FULL).is_full


def test_calibration_precedes_everything(night):
    times = [fits.getheader(path)["OBSJD"] for path in night.calibration + night.reference + night.science]
    assert times == sorted(times)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    plan = replace(PLAN, n_flat=0, n_dark=0, n_reference=0, n_science=2)
    one, two = simulate_night(tmp_path / "one", plan), simulate_night(tmp_path / "two", plan, workers=2)
    assert digest(two.out) == digest(one.out)
    assert len(digest(one.out)) == 3 + 5 + 4


def digest(folder) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_noise_seed_changes_the_noise_alone(tmp_path):
    exposure = next(e for e in schedule(PLAN) if e.role == "sci")
    other = replace(PLAN, noise_seed=10)
    one = simulate_packet(PLAN, exposure, 2, tmp_path / "a")
    two = simulate_packet(other, exposure, 2, tmp_path / "b")
    a, b = (fits.getdata(p.path, 1).astype(float) for p in (one, two))
    assert not np.array_equal(a, b)
    row = one.tables["quadrants"][0]
    sigma = np.sqrt(exposure.sky / row["gain"] + (row["readnoise"] / row["gain"]) ** 2)
    difference = (a - b) - np.median(a - b, axis=1)[:, None]
    assert 1.4826 * np.median(np.abs(difference)) == pytest.approx(np.sqrt(2) * sigma, rel=0.1)
    for first, second in zip(one.tables["sources"], two.tables["sources"], strict=True):
        assert list(first["truth_id"]) == list(second["truth_id"])
    assert np.array_equal(paint_quadrant(PLAN, exposure, 4)[0], paint_quadrant(other, exposure, 4)[0])


def test_another_sky_seed_changes_the_sky():
    exposure = next(e for e in schedule(PLAN) if e.role == "sci")
    a, b = paint_quadrant(PLAN, exposure, 4)[0], paint_quadrant(replace(PLAN, seed=6), exposure, 4)[0]
    assert np.abs(a - b).max() > 100


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
def test_pixels_undo_to_the_painted_light(night, qid):
    """The inverse of the whole chain with the true parameters gives back the light, within its noise."""
    exposure = next(e for e in schedule(PLAN) if e.role == "sci")
    rcid = identity.rcid_of(2, qid)
    truth, quadrants = read_truth(night.out, "sources"), read_truth(night.out, "quadrants")
    assert "truth_id" in truth
    name = exposure.name(2)
    row = {k: v[(quadrants["exposure"] == name) & (quadrants["rcid"] == rcid)][0] for k, v in quadrants.items()}
    with fits.open(night.science[0]) as hdus:
        image, overscan = hdus[qid].data.astype(float), hdus[qid + 4].data.astype(float)
    level = np.median(overscan[:, 15:], axis=1)
    x = image - np.median(level)
    dn = x / (row["linearity_a"] * x * x + row["linearity_b"] * x + 1)
    light = dn / response(PLAN, rcid, 2, night_of(exposure.jd))
    painted, _, _ = paint_quadrant(PLAN, exposure, rcid)
    sigma = np.sqrt(np.maximum(painted, 1) / row["gain"] + (row["readnoise"] / row["gain"]) ** 2)
    pull = (light - painted) / sigma
    # The bias structure and the floating level are still in: some DN beside a noise of seven.
    assert abs(np.median(pull)) < 0.5
    assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1.0, abs=0.15)
    x_first = image[:, ::-1] if read_order(qid)[0] else image
    assert x_first[:, :10].mean() > 0


def test_truth_tables_fit_one_another(night):
    sources, quadrants, artefacts = (read_truth(night.out, name) for name in ("sources", "quadrants", "artefacts"))
    assert set(sources["kind"]) == {"star", "galaxy", "transient", "variable", "asteroid", "streak"}
    assert len(quadrants["rcid"]) == 6 * 4
    assert set(quadrants["rcid"]) == {4, 5, 6, 7}
    objects = np.array([wcs is not None for wcs in quadrants["wcs"]])
    assert objects.sum() == 3 * 4
    for k in np.flatnonzero(objects):
        rows = (sources["exposure"] == quadrants["exposure"][k]) & (sources["rcid"] == quadrants["rcid"][k])
        assert rows.sum() > 20
        x, y = wcs_of(json.loads(quadrants["wcs"][k])).to_pixel(sources["ra"][rows], sources["dec"][rows])
        # The air moves them by tens of mas, as much as the truth says.
        moved = np.hypot(x - sources["x"][rows], y - sources["y"][rows])
        mas = json.loads(quadrants["parameters"][k])
        assert 0 < moved.max() * 1012.5 < 5 * mas["displacement"] + 2 * mas["refraction"]
        x, y = sources["x"][rows], sources["y"][rows]
        inside = (x > -0.5) & (x < 255.5) & (y > -0.5) & (y < 239.5)
        assert np.array_equal(inside, sources["in_quadrant"][rows].astype(bool))
        instrumental = -2.5 * np.log10(sources["flux"][rows])
        expected = instrumental + quadrants["magzp"][k] + quadrants["clrcoeff"][k] * sources["colour"][rows]
        assert np.allclose(sources["mag"][rows], expected, atol=1e-9)
    transient = sources["kind"] == "transient"
    assert set(sources["role"][transient]) == {"sci"}
    hosts = sources["host_id"][transient & ~np.isnan(sources["host_id"].astype(float))]
    assert np.isin(hosts, sources["truth_id"][sources["kind"] == "galaxy"]).all()
    kinds = set(artefacts["kind"])
    assert {"cosmic_ray", "hot_pixel", "dead_pixel", "low_pixel", "noisy_pixel", "dead_column", "satellite"} <= kinds
    assert (artefacts["kind"] == "satellite").sum() == 1


def test_hot_pixels_are_hot_where_the_table_says(night):
    artefacts = read_truth(night.out, "artefacts")
    hot = (artefacts["kind"] == "hot_pixel") & (artefacts["rcid"] == 4) & (artefacts["strength"] > 200)
    dark = fits.getdata(next(p for p in night.calibration if "_d." in p.name), 1).astype(float)
    for x, y, leak in zip(artefacts["x"][hot], artefacts["y"][hot], artefacts["strength"][hot], strict=True):
        assert dark[int(y), int(x)] - np.median(dark) == pytest.approx(34 * leak / 6.2, rel=0.15)


def test_flats_and_biases_have_their_levels(night):
    quadrants = read_truth(night.out, "quadrants")
    for path in night.calibration:
        for qid in (1, 2, 3, 4):
            data = fits.getdata(path, qid)
            bias = quadrants["bias"][quadrants["rcid"] == identity.rcid_of(2, qid)][0]
            level = float(np.median(data)) - bias
            if "_f." in path.name:
                assert 16_000 < level < 23_000
            else:
                assert abs(level) < 12


def test_plain_files_and_unseen_quadrants(tmp_path):
    plan = replace(PLAN, compress=False, qids=(3,), n_reference=0, n_bias=0, n_flat=0, n_dark=0, n_science=1)
    summary = simulate_night(tmp_path, plan)
    path = summary.science[0]
    assert path.suffix == ".fits"
    with fits.open(path, checksum=True) as hdus:
        assert [type(hdu).__name__ for hdu in hdus[1:]] == ["ImageHDU"] * 8
        assert hdus[1].data.dtype == np.uint16
        assert hdus[1].header["BZERO"] == 32768
    assert set(read_truth(tmp_path)["rcid"]) == {6}
    assert pq.read_table(tmp_path / "truth" / "quadrants.parquet").num_rows == 4


def test_clouds_dim_science_and_spare_references():
    plan = replace(PLAN, cloud=1.0, n_science=6, n_reference=6)
    dimmed = [e.transparency for e in schedule(plan) if e.role == "sci"]
    assert max(dimmed) > 0.4
    assert max(e.transparency for e in schedule(plan) if e.role == "ref") < 0.15


def test_schedule_spans_the_fortnight_before():
    plan = replace(PLAN, n_reference=15, n_science=3)
    exposures = schedule(plan)
    references = [e for e in exposures if e.role == "ref"]
    science = [e for e in exposures if e.role == "sci"]
    assert [len(references), len(science)] == [15, 3]
    before = [science[0].jd - e.jd for e in references]
    assert min(before) > 0.5
    assert max(before) < 15.5
    assert len({e.expid for e in exposures}) == len(exposures)
    assert all(isinstance(e, SimExposure) for e in exposures)
    assert {identity.night_of(e.jd) for e in science} == {plan.night}
    assert np.median([e.seeing for e in references]) < np.mean(plan.seeing)
    assert all(plan.seeing[0] <= e.seeing <= plan.seeing[1] for e in references + science)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ccds": (17,)}, {"ccds": ()}, {"ccds": (1, 1)}, {"qids": (0,)}, {"qids": ()}, {"fid": 4}, {"n_science": -1},
        {"night": "2020-10-05"}, {"night": "20201345"}, {"field": 99999}, {"seeing": (3.0, 2.0)}, {"programid": 7},
        {"cadence": 10.0}, {"exptime": 0.0}, {"transients": -1},
    ],
)  # fmt: skip
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(UsageError):
        NightPlan(**wrong)


def test_two_exposures_cannot_share_an_identifier(monkeypatch):
    same = "20201005300000"
    monkeypatch.setattr("stream.simulate.conditions.clock", lambda midnight, _seconds: (midnight + 0.3, same))
    with pytest.raises(UsageError, match="cadence"):
        schedule(replace(PLAN, cadence=1801.0))


def test_truth_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="simulate"):
        read_truth(tmp_path)
    with pytest.raises(UsageError):
        read_truth(tmp_path, "nonsense")


def test_our_own_reader_takes_the_packets(night):
    from stream.ingest import read_packet, read_quadrant

    packet = read_packet(night.science[0], TINY)
    assert packet.failures == ()
    assert packet.exposure.name == night.science[0].name.removesuffix(".fits.fz")
    for payload in packet.quadrants:
        raw = read_quadrant(payload.payload, TINY)
        ccd, qid = ccd_qid_of(raw.quadrant.rcid)
        assert ccd == 2
        assert np.array_equal(raw.image, fits.getdata(night.science[0], qid))
        assert np.array_equal(raw.overscan, fits.getdata(night.science[0], qid + 4))
