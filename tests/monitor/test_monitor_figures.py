"""Figures of a night: counted once however often they come; recovery and percentiles by hand; plots that are drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread

from stream.core.identity import expid_of, nid_of, pid_of, rid_of
from stream.core.records import QuadrantReport, Status
from stream.monitor import Monitor, percentiles, plot_night, recovery

JD = 2459127.71


def report(qid: int = 1, jd: float = JD, **changes) -> QuadrantReport:
    rid = rid_of(expid_of(jd), qid - 1)
    made = QuadrantReport(
        f"ztf_20201005210000_000448_zr_c01_o_q{qid}", 448, 2, 1, qid, qid - 1, 1, nid_of(jd), expid_of(jd), rid,
        pid_of(rid), jd, jd + 15 / 86400, 30.0, n_candidates=10 * qid, n_sources=100, diffmaglim=20.0,
        seconds={"a": 1.0, "b": 0.5},
    )  # fmt: skip
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.services
def test_repeats_are_counted_once(client):
    monitor = Monitor(client)
    letter = json.dumps({"stage": "ingest", "reason": "x", "time": 1.0}).encode()
    for _ in range(3):
        monitor.quadrant(report(1), {"arrived": 100.0, "subtracted": 107.5})
        monitor.quadrant(report(2, status=Status.FAILED, stage="astrometry", reason="why", n_candidates=None), {})
        monitor.dead_letter(0, 5, letter)
        monitor.event("ztf.streaks", 1, 7)
        monitor.event("ztf.tracklets", 1, 7)
    monitor.dead_letter(0, 6, b"no json")
    assert monitor.nights() == ["20201005"]
    counts = monitor.counts("20201005")
    assert counts.quadrants == {"ok": 1, "failed": 1}
    assert (counts.candidates, counts.sources, counts.dead_letters) == (10, 200, 2)
    assert counts.events == {"ztf.streaks": 1, "ztf.tracklets": 1}
    assert counts.latencies == [7.5]
    assert [(f["stage"], f["reason"]) for f in counts.failures] == [("astrometry", "why")]
    assert counts.last["status"] == "failed"


@pytest.mark.services
def test_a_retry_replaces_the_failure(client):
    monitor = Monitor(client)
    monitor.quadrant(report(1, status=Status.FAILED, stage="astrometry", reason="why"), {"arrived": 1.0})
    monitor.quadrant(report(1), {"arrived": 2.0})
    monitor.quadrant(report(1, jd=JD + 1), {})
    assert monitor.nights() == ["20201005", "20201006"]
    assert monitor.counts("20201005").quadrants == {"ok": 1}
    assert monitor.counts("20201005").failures == []
    assert monitor.counts("19990101").last is not None
    assert monitor.counts("19990101").quadrants == {}


def test_percentiles_by_hand():
    ledgers = [{"arrived": 0.0, "published": float(t)} for t in range(101)] + [{"arrived": 3.0}, {}]
    assert percentiles(ledgers, "arrived", "published") == {50.0: 50.0, 95.0: 95.0, 100.0: 100.0}
    assert percentiles(ledgers, "arrived", "scored") == {}


def truth(**changes) -> dict[str, np.ndarray]:
    """Six sources of one quadrant, one of another, one star: a transient of each magnitude 17, 18.25, ..."""
    n = 8
    table = {
        "kind": np.array(
            ["transient", "asteroid", "transient", "transient", "transient", "star", "transient", "streak"]
        ),
        "exposure": np.array(["ztf_20201005210000_000448_zr_c01_o"] * n),
        "rcid": np.array([0, 0, 0, 0, 0, 0, 1, 0]),
        "ra": 10.0 + 0.01 * np.arange(n),
        "dec": np.full(n, 5.0),
        "mag": np.array([17.0, 18.25, 19.5, 20.0, 17.0, 15.0, 17.0, 17.0]),
        "x": np.array([50.0, 60.0, 70.0, 80.0, 5.0, 90.0, 50.0, 50.0]),
        "y": np.array([50.0] * n),
        "in_quadrant": np.array([True] * n),
    }
    return table | changes


def alert(ra: float, dec: float, rcid: int = 0) -> dict:
    name = f"ztf_20201005210000_000448_zr_c01_o_q{rcid + 1}_scimrefdiffimg.fits.fz"
    return {"pdiffimfilename": name, "rcid": rcid, "ra": ra, "dec": dec}


def test_recovery_by_hand():
    clean = np.ones((100, 100), bool)
    clean[50, 72] = False  # within two pixels of the third source
    usable = {("ztf_20201005210000_000448_zr_c01_o", 0): clean}
    arcsec = 1 / 3600
    alerts = [
        alert(10.00 + 1.4 * arcsec, 5.0),  # the first
        alert(10.01, 5.0 + 1.6 * arcsec),  # beside the second
        alert(10.03, 5.0),  # the fourth
        alert(10.06, 5.0, rcid=1),  # of a quadrant without a record
        alert(10.02, 5.0, rcid=1),  # the third's place, but another quadrant
    ]
    injected = recovery(truth(), [report(1)], alerts, usable)
    assert injected.kind.tolist() == ["transient", "asteroid", "transient", "transient", "transient"]
    assert injected.found.tolist() == [True, False, False, True, False]
    assert injected.usable.tolist() == [True, True, False, True, False]  # the fifth lies at the edge
    np.testing.assert_allclose(injected.snr, 5 * 10 ** (0.4 * (20.0 - injected.mag)))
    assert injected.snr[3] == pytest.approx(5.0)
    assert injected.completeness(10.0) == (1, 2)
    assert injected.completeness(0.0) == (2, 3)
    assert injected.completeness(0.0, 10.0) == (1, 1)
    everything = recovery(truth(), [report(1)], alerts)
    assert everything.usable.all()
    assert recovery(truth(), [report(1)], []).found.sum() == 0


def test_what_was_not_searched_does_not_count():
    assert len(recovery(truth(), [report(1, diffmaglim=None)], []).kind) == 0
    outside = truth(in_quadrant=np.zeros(8, bool))
    assert len(recovery(outside, [report(1)], []).kind) == 0


def test_a_plot_is_a_picture_and_always_the_same(tmp_path):
    alerts = [alert(10.0, 5.0) | {"magpsf": 17.0 + i / 10, "rb": 0.5, "drb": i / 20} for i in range(20)]
    injected = recovery(truth(), [report(1)], alerts)
    ledgers = [{"arrived": 0.0, "subtracted": 3.0 + i, "scored": 4.0 + i, "published": 6.0 + i} for i in range(20)]
    plots = [plot_night(tmp_path / "plots" / f"{n}.png", injected, alerts, ledgers, "a night") for n in "ab"]
    assert plots[0].read_bytes() == plots[1].read_bytes()
    assert imread(plots[0]).std() > 0.05
    empty = recovery(truth(), [], [])
    assert plot_night(tmp_path / "empty.png", empty, [], [], "nothing").is_file()
