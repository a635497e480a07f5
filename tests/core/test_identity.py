"""The identifier arithmetic against real packets, real headers and itself."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path

import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from stream.core import identity

# The survey's candid leaves 63 bits in 2042: its arithmetic, not ours to change.
JDS = st.floats(min_value=2457755.0, max_value=2466900.0, allow_nan=False)


def test_arithmetic_holds_on_real_headers(real_data: Path) -> None:
    headers = [fits.getheader(path) for path in sorted((real_data / "images").glob("*_sciimg.fits"))]
    assert len(headers) == 8
    for header in headers:
        assert identity.expid_of(header["OBSJD"]) == header["EXPID"]
        assert identity.rcid_of(header["CCDID"], header["QID"]) == header["RCID"]


def test_arithmetic_holds_on_real_packets(real_data: Path) -> None:
    rows = list(csv.DictReader((real_data / "alerts" / "MANIFEST.csv").open()))
    checked = 0
    for row in rows:
        if not row["rcid"] or int(row["candid"]) < 10**17 or row["repo"].endswith("ztf-avro-alert"):
            continue  # the survey's own early samples carry test versions
        candid, jd = int(row["candid"]), float(row["jd"])
        tblid = candid % 1000
        positive = row["isdiffpos"] in ("t", "1")
        pid = identity.pid_of(identity.rid_of(identity.expid_of(jd), int(row["rcid"])))
        # The packets' jd is rounded to seven digits: a tenth of all fractions may differ by one in the fifth.
        version = candid // 10_000 % 100
        same = identity.candid_of(pid, positive, tblid, version) == candid
        neighbour = abs(identity.pid_of_candid(candid) - pid) <= 10_000 + 100
        assert same or neighbour, row
        checked += same
    assert checked > 0.95 * len(rows) * 0.9


@given(jd=JDS, rcid=st.integers(0, 63), positive=st.booleans(), tblid=st.integers(0, identity.MAX_TBLID))
def test_candid_carries_its_parts(jd: float, rcid: int, positive: bool, tblid: int) -> None:
    pid = identity.pid_of(identity.rid_of(identity.expid_of(jd), rcid))
    candid = identity.candid_of(pid, positive, tblid)
    assert identity.pid_of_candid(candid) == pid
    assert candid // 10_000 % 100 == identity.CANDID_VERSION
    rest = candid % 10_000
    assert (rest >= 5000) == positive
    assert rest % 5000 == tblid
    assert candid < 2**63


@given(tblids=st.lists(st.tuples(st.booleans(), st.integers(0, identity.MAX_TBLID)), unique=True, max_size=50))
def test_candids_of_one_quadrant_never_collide(tblids: list[tuple[bool, int]]) -> None:
    candids = {identity.candid_of(36217380_08_15, positive, tblid) for positive, tblid in tblids}
    assert len(candids) == len(tblids)


@pytest.mark.parametrize("tblid", [-1, identity.MAX_TBLID + 1])
def test_a_row_that_would_collide_is_refused(tblid: int) -> None:
    with pytest.raises(ValueError, match="collide"):
        identity.candid_of(1, True, tblid)


@given(rcid=st.integers(0, 63))
def test_channel_numbers_invert(rcid: int) -> None:
    assert identity.rcid_of(*identity.ccd_qid_of(rcid)) == rcid


@pytest.mark.parametrize(("ccdid", "qid"), [(0, 1), (17, 1), (1, 0), (1, 5)])
def test_impossible_quadrants_are_refused(ccdid: int, qid: int) -> None:
    with pytest.raises(ValueError, match="no such quadrant"):
        identity.rcid_of(ccdid, qid)


@given(whole=st.integers(2457755, 2470000), frac5=st.integers(0, 99_999))
def test_a_fraction_written_with_five_digits_is_kept(whole: int, frac5: int) -> None:
    jd = float(f"{whole}.5") + frac5 / 1e5
    nid = identity.nid_of(jd + 1e-9)
    assert identity.expid_of(jd) == nid * 100_000 + frac5


@given(when=st.datetimes(dt.datetime(2017, 1, 2), dt.datetime(2040, 1, 1)))
def test_julian_dates_and_calendar_agree(when: dt.datetime) -> None:
    back = identity.utc_of(identity.jd_of(when))
    assert abs((back - when.replace(tzinfo=dt.UTC)).total_seconds()) < 2e-3


def test_topic_is_the_utc_date_of_the_start() -> None:
    jd = identity.jd_of(dt.datetime(2020, 4, 28, 23, 59, 59))
    assert identity.alert_topic_of(jd, 1) == "ztf_20200428_programid1"
    assert identity.alert_topic_of(jd + 2 / 86_400, 3) == "ztf_20200429_programid3"


def test_reference_identifier_as_in_real_packets() -> None:
    assert identity.rfid_of(658, 2, 63) == 658120263
    assert identity.rfid_of(789, 2, 11) == 789120211
