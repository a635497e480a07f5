"""The cloud rules: by their limits, and against the verdict that real headers carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from astropy.io import fits

from stream.core.flags import Info
from stream.core.records import ZeroPoint
from stream.photometry import CLEAR, cloud_verdict
from stream.photometry.cloud import RULES, lowest_zeropoints

GOOD = ZeroPoint(26.2, 0.001, 0.03, 0.1, 0.01, 0.0, "g - R", 500)


def test_each_rule_speaks_for_itself() -> None:
    rcid, fid, x = 30, 2, 1.4
    lowest = lowest_zeropoints()[rcid][1] - 0.15 * x
    assert lowest_zeropoints()[rcid] == (25.8254, 25.8292, 25.3393)
    assert cloud_verdict(GOOD, fid, rcid, x, 30.0) == CLEAR
    for change, word in (
        ({"magzp": 26.65 - 0.15 * x + 0.001}, ">"),
        ({"magzp": lowest - 0.001}, "MAGZP"),
        ({"magzprms": 0.0501}, "MAGZPRMS"),
        ({"n_matches": 119}, "NMATCHES"),
        ({"magzp": float("nan")}, "MAGZP"),
    ):
        verdict = cloud_verdict(replace(GOOD, **change), fid, rcid, x, 30.0)
        assert word in verdict
        assert ";" not in verdict
    for change in ({"magzp": 26.65 - 0.15 * x - 0.001}, {"magzp": lowest + 0.001}, {"n_matches": 120}):
        assert cloud_verdict(replace(GOOD, **change), fid, rcid, x, 30.0) == CLEAR


def test_exposure_time_airmass_and_share_are_taken_into_account() -> None:
    long = replace(GOOD, magzp=GOOD.magzp + 2.5)  # 300 s collect ten times the light
    assert cloud_verdict(long, 2, 0, 1.2, 300.0) == CLEAR
    assert cloud_verdict(long, 2, 0, 1.2, 30.0) != CLEAR
    assert cloud_verdict(GOOD, 2, 0, float("nan"), 30.0) == cloud_verdict(GOOD, 2, 0, 1.0, 30.0)
    few = replace(GOOD, n_matches=4)
    assert "NMATCHES" in cloud_verdict(few, 2, 0, 1.0, 30.0)
    assert cloud_verdict(few, 2, 0, 1.0, 30.0, share=1 / 36) == CLEAR


def test_every_channel_and_filter_has_its_limit() -> None:
    limits = lowest_zeropoints()
    assert len(limits) == 64
    for rcid in range(64):
        for fid, rule in RULES.items():
            assert 24.9 < limits[rcid][fid - 1] < rule.highest


@pytest.mark.real
def test_verdicts_of_real_headers(real_data: Path) -> None:
    """Bit 25 of eight real images, three of them through cloud, from their own zero points."""
    verdicts = []
    for path in sorted((real_data / "images").glob("*sciimg.fits")):
        h = fits.getheader(path)
        zp = ZeroPoint(h["MAGZP"], h["MAGZPUNC"], h["MAGZPRMS"], h["CLRCOEFF"], 0.0, 0.0, h["PCOLOR"], h["NMATCHES"])
        ours = cloud_verdict(zp, h["FILTERID"], h["RCID"], h["AIRMASS"], h["EXPTIME"]) != CLEAR
        assert ours == bool(h["INFOBITS"] & Info.BAD_QUALITY), path.name
        verdicts.append(ours)
    assert 0 < sum(verdicts) < len(verdicts)
