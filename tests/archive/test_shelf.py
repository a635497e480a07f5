"""Which calibration a quadrant gets: newest valid, never newer than itself, as a person vetoed and pinned."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import archive_samples as samples
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stream.archive import ProductStore, StoreInputs
from stream.archive.shelf import CalibrationShelf, Decision, version_of
from stream.core.cells import spread_cells
from stream.core.errors import MessageError, UsageError
from stream.core.instrument import calid_of, nid_of_night
from stream.core.records import CalibrationFrame, ChannelFacts, InstrumentModel, PixelMask

NIGHT = "20181129"  # of samples.quadrant(), channel 8, filter 2


@pytest.fixture
def store(tmp_path: Path) -> ProductStore:
    return ProductStore(str(tmp_path))


def frame(night: str, kind: str = "bias", jd_end: float | None = None) -> CalibrationFrame:
    made = samples.calibration(kind, night)
    qa = {} if jd_end is None else {"jd_end": jd_end}
    nid = nid_of_night(night)
    return replace(made, nid=nid, qa=qa, calid=calid_of(kind, nid, made.rcid, made.fid))


def bias_night(store: ProductStore) -> str | None:
    found = StoreInputs(store).calibration(samples.quadrant()).bias
    return None if found is None else found.night


def decision(version: CalibrationFrame, action: str) -> Decision:
    return Decision(action, version.kind, version.calid, version.night, version.fid, version.rcid, "ann", "why", "when")


def test_frames_of_the_same_afternoon_yes_of_the_next_morning_no(store: ProductStore) -> None:
    jd = samples.quadrant().exposure.jd
    store.write_calibration(frame("20181120"))
    store.write_calibration(frame(NIGHT, jd_end=jd - 0.2))
    assert bias_night(store) == NIGHT
    store.write_calibration(frame(NIGHT, jd_end=jd + 0.2))
    assert bias_night(store) == "20181120"


def test_a_veto_and_a_pin_are_obeyed_until_taken_back(store: ProductStore) -> None:
    versions = {night: frame(night) for night in ("20181101", "20181110", "20181120", "20181210")}
    for version in versions.values():
        store.write_calibration(version)
    shelf = CalibrationShelf(store)
    assert bias_night(store) == "20181120"
    shelf.decide(decision(versions["20181120"], "veto"))
    assert bias_night(store) == "20181110"
    shelf.decide(decision(versions["20181101"], "pin"))
    assert bias_night(store) == "20181101"
    shelf.decide(decision(versions["20181101"], "veto"))  # a veto is stronger than a pin
    assert bias_night(store) == "20181110"
    shelf.take_back(decision(versions["20181101"], "veto"))
    shelf.decide(decision(versions["20181210"], "pin"))  # newer than the exposure: the newest valid one stands in
    assert bias_night(store) == "20181110"
    assert {(one.action, one.night, one.who) for one in shelf.decisions()} == {
        ("veto", "20181120", "ann"), ("pin", "20181210", "ann"),
    }  # fmt: skip
    for one in shelf.decisions():
        shelf.take_back(one)
    assert shelf.decisions() == []
    assert bias_night(store) == "20181120"


def test_a_decision_that_is_none_says_so(store: ProductStore) -> None:
    version = frame("20181101")
    store.write_calibration(version)
    shelf = CalibrationShelf(store)
    path = shelf.decide(decision(version, "pin"))
    store.write(path, b'{"nobody": 1}')
    with pytest.raises(MessageError, match="say it again"):
        bias_night(store)


def test_versions_are_listed_newest_first(store: ProductStore) -> None:
    for night in ("20181101", "20181110"):
        store.write_calibration(frame(night))
        store.write_calibration(frame(night, "hifreqflat"))
    shelf = CalibrationShelf(store)
    found = [(v.kind, v.night, v.fid, v.rcid) for v in shelf.versions()]
    assert found == [
        (kind, night, fid, 8) for night in ("20181110", "20181101") for kind, fid in (("bias", 0), ("hifreqflat", 2))
    ]
    assert [v.night for v in shelf.versions("bias", night="20181101")] == ["20181101"]
    assert list(shelf.versions(rcid=9)) == []
    with pytest.raises(UsageError, match="known are"):
        list(shelf.versions("twilight"))


@pytest.mark.parametrize(
    ("calid", "expected"),
    [
        ("36208002", ("bias", "20171229", 0, 8)), ("36208014", ("hifreqflat", "20171229", 1, 8)),
        ("121255034", ("hifreqflat", "20200427", 3, 55)), ("39655031", ("pmask", "20180201", 3, 55)),
        ("36299002", None), ("36208042", None), ("36208009", None), ("bias", None), ("", None),
    ],
)  # fmt: skip
def test_identifiers_of_real_headers_are_understood(calid: str, expected: tuple[str, str, int, int] | None) -> None:
    assert version_of(calid) == expected
    if expected is not None:
        kind, night, fid, rcid = expected
        assert calid_of(kind, nid_of_night(night), rcid, fid) == calid


def test_pixel_masks_and_smooth_frames_and_instruments_come_back(store: ProductStore) -> None:
    q = samples.quadrant()
    rng = np.random.default_rng(1)
    bits = rng.choice(np.array([0, 0, 4, 512, 32768], np.uint16), samples.SHAPE)
    nid = nid_of_night(NIGHT)
    store.write_pixelmask(PixelMask(8, 2, nid, NIGHT, bits, 9, calid_of("pmask", nid, 8, 2), {"jd_end": 1.0}))
    smooth = spread_cells(rng.normal(1, 0.01, (2, 2)).astype(np.float32), 64, samples.SHAPE)
    lo = replace(
        frame(NIGHT, "hifreqflat"), kind="loflat", data=smooth, unc=np.full(samples.SHAPE, 1e-3, np.float32),
        badpix=np.zeros(samples.SHAPE, np.uint16), qa={"cell": 64}, calid=calid_of("loflat", nid, 8, 2),
    )  # fmt: skip
    store.write_calibration(lo)
    matrix = rng.normal(0, 1e-4, (4, 4))
    matrix[0, 3] = np.nan
    facts = (ChannelFacts(6.2, 0.01), ChannelFacts(), ChannelFacts(readnoise=9.0, readnoise_unc=0.1), ChannelFacts())
    model = InstrumentModel(3, nid, NIGHT, facts, matrix, np.abs(matrix) / 10, 20, {"n": 3})
    store.write_instrument(model)
    found = StoreInputs(store).calibration(q)
    assert found.pixelmask is not None
    assert found.loflat is not None
    assert found.instrument is not None
    np.testing.assert_array_equal(found.pixelmask.mask, bits)
    assert (found.pixelmask.calid, found.pixelmask.n_frames) == (calid_of("pmask", nid, 8, 2), 9)
    np.testing.assert_allclose(found.loflat.data, smooth, atol=1e-3)
    np.testing.assert_array_equal(found.instrument.crosstalk, matrix)
    assert repr(found.instrument.channels) == repr(facts)
    assert found.instrument.qa == {"n": 3}
    assert (found.bias, found.flat, found.fringe, found.shutter) == (None, None, None, None)
    store.write(f"cal/{NIGHT[:4]}/{NIGHT[4:]}/instrument/ccd03/ztf_{NIGHT}_c03_instrument.json", b'{"qa": 1}')
    with pytest.raises(MessageError):
        StoreInputs(store).calibration(q)
