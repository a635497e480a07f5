"""What the survey measured on its own stamps, measured again by us on the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream.alert import read_packet
from stream.alert.stamps import decode_stamp
from stream.extract.shape import APERTURE_RADIUS, BIG_APERTURE_RADIUS, aperture_flux, sum_ratio

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def events(real_data: Path):
    """Candidate record and 63 x 63 difference stamp of every real packet that has a whole one."""
    found = []
    for path in sorted((real_data / "alerts").rglob("*.avro")):
        packet = read_packet(path.read_bytes())
        stamp = decode_stamp(packet["cutoutDifference"]["stampData"])
        if stamp.shape == (63, 63) and np.isfinite(stamp[28:35, 28:35]).all():
            found.append((packet["candidate"], stamp.astype(np.float32)))
    assert len(found) > 300
    return found


def test_negative_pixels_are_counted_as_the_survey_counts(events):
    assert all(c["nneg"] == int((stamp[29:34, 29:34] < 0).sum()) for c, stamp in events)


def test_sumrat_is_the_surveys_to_the_last_digit(events):
    ours = sum_ratio(np.stack([stamp[29:34, 29:34] for _, stamp in events]))
    theirs = np.array([c["sumrat"] for c, _ in events])
    assert np.abs(ours - theirs).max() < 1e-5


def test_differences_and_ratios_of_fields_hold(events):
    for c, _ in events:
        f = {name: np.float32(value) for name, value in c.items() if isinstance(value, float)}
        assert f["magdiff"] == pytest.approx(f["magap"] - f["magpsf"], abs=3e-6)
        assert f["magfromlim"] == pytest.approx(f["diffmaglim"] - f["magap"], abs=3e-6)
        if c["fwhm"] > 0:
            assert f["elong"] == pytest.approx(f["aimage"] / f["bimage"], rel=2e-6)
            assert f["aimagerat"] == pytest.approx(f["aimage"] / f["fwhm"], rel=2e-6)
        if c.get("dsnrms") is not None:
            assert f["dsdiff"] == pytest.approx(f["dsnrms"] - f["ssnrms"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("radius", "name"), [(APERTURE_RADIUS, "magap"), (BIG_APERTURE_RADIUS, "magapbig")])
def test_apertures_are_the_surveys_in_radius_and_sky(events, radius, name):
    """Seven px and nine, not four: the schema's documentation is wrong about one of them."""
    r = np.hypot(*np.mgrid[-31:32, -31:32])
    offsets = []
    for c, stamp in events:
        if c["sigmagap"] > 0.1 or not c.get("magzpsci"):
            continue
        sky = np.nanmedian(stamp[(r > 12) & (r < 20)])
        pixels = np.nan_to_num(stamp[20:43, 20:43] - sky)[None]
        flux, _ = aperture_flux(pixels, np.ones_like(pixels), np.zeros(1), np.zeros(1), np.zeros(1), radius)
        if flux[0] > 0:
            offsets.append(c["magzpsci"] - 2.5 * np.log10(flux[0]) - c[name])
    assert len(offsets) > 100
    assert abs(np.median(offsets)) < 0.02
    assert np.percentile(np.abs(offsets), 85) < 0.06  # their centre is not the stamp's to a fraction of a pixel
