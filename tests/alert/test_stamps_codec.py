"""Stamps and internal messages: what goes in comes out, and damaged bytes are named."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import replace

import alert_samples as samples
import fastavro
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stream.alert import (
    CODECS,
    StreakBatch,
    decode_batch,
    decode_report,
    decode_stamp,
    decode_streaks,
    decode_tracklet,
    encode_batch,
    encode_report,
    encode_stamp,
    encode_streaks,
    encode_tracklet,
    load_schema,
    read_packet,
    split_batch,
    stamp_names,
)
from stream.alert.avro import compile_encoder, zigzag
from stream.core.errors import AlertError, MessageError
from stream.core.records import QuadrantReport, Status, Streak, Tracklet


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 63), st.integers(1, 63)), elements=st.floats(width=32)).filter(
        lambda a: bool(np.any(np.isfinite(a) & (a != 0)))
    )
)
@settings(max_examples=40, deadline=None)
def test_stamps_come_back_bit_for_bit(image: np.ndarray) -> None:
    stamp = encode_stamp(image)
    assert stamp == encode_stamp(image)
    np.testing.assert_array_equal(decode_stamp(stamp).view(np.uint32), image.view(np.uint32))


def test_stamp_is_one_plain_hdu_without_time() -> None:
    stamp = encode_stamp(samples.stamp())
    assert stamp[:4] == b"\x1f\x8b\x08\x00"
    assert stamp[4:8] == bytes(4)
    raw = gzip.decompress(stamp)
    assert len(raw) % 2880 == 0
    with fits.open(io.BytesIO(raw)) as hdus:
        assert len(hdus) == 1
        assert list(hdus[0].header) == ["SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "BUNIT"]
        assert hdus[0].header["BUNIT"] == "DN"
        assert hdus[0].header["BITPIX"] == -32


@pytest.mark.parametrize("shape", [(64, 63), (0, 5), (5,), (2, 2, 2)])
def test_stamps_of_no_use_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AlertError, match="shape"):
        encode_stamp(np.ones(shape, np.float32))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_stamps_without_content_are_refused(value: float) -> None:
    with pytest.raises(AlertError, match="finite"):
        encode_stamp(np.full((63, 63), value, np.float32))


def test_other_fits_forms_are_read_by_the_library() -> None:
    file = io.BytesIO()
    image = np.arange(12, dtype=np.int16).reshape(3, 4)
    fits.PrimaryHDU(image).writeto(file)
    np.testing.assert_array_equal(decode_stamp(gzip.compress(file.getvalue())), image)
    for broken in (b"", b"abc", gzip.compress(b"SIMPLE"), gzip.compress(file.getvalue()[:2880])):
        with pytest.raises(MessageError):
            decode_stamp(broken)
    empty = io.BytesIO()
    fits.PrimaryHDU().writeto(empty)
    with pytest.raises(MessageError, match="no two-dimensional"):
        decode_stamp(gzip.compress(empty.getvalue()))


def test_real_stamps_are_read_as_astropy_reads_them(real_data) -> None:
    for path in sorted((real_data / "alerts/boom").glob("*.avro"))[:6]:
        stamp = read_packet(path.read_bytes())["cutoutDifference"]["stampData"]
        with fits.open(io.BytesIO(gzip.decompress(stamp)), ignore_missing_simple=True) as hdus:
            np.testing.assert_array_equal(decode_stamp(stamp), hdus[0].data)


def test_names_say_the_sign() -> None:
    assert stamp_names(12, 3, True) == (
        "candid12_pid3_targ_sci.fits.gz", "candid12_ref.fits.gz", "candid12_pid3_targ_scimref.fits.gz"
    )  # fmt: skip
    assert stamp_names(12, 3, False)[2] == "candid12_pid3_targ_refmsci.fits.gz"


# -- messages ----------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_as_the_library_writes_them(value: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", value)
    assert zigzag(value) == out.getvalue()


@given(st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=8, max_size=8), st.text(max_size=5))
@settings(deadline=None)
def test_rows_as_the_library_writes_them(values: list[float | None], text: str) -> None:
    row = samples.prv_row(2458452.0, detection=False)
    names = [n for n in row if row[n] is None and n in ("magap", "sigmagap", "distnr", "magnr", "chinr", "sky", "rb")]
    row |= dict(zip(names, values, strict=False)) | {"rbversion": text}
    out = io.BytesIO()
    schema = load_schema("zsds/1", "ztf.alert.prv_candidate")
    fastavro.schemaless_writer(out, schema, row)
    assert compile_encoder("zsds/1", "ztf.alert.prv_candidate")(row) == out.getvalue()


def test_unsupported_unions_are_refused_when_compiled() -> None:
    from stream.alert.avro import _compile

    bad = {"type": "record", "name": "r", "fields": [{"name": "f", "type": ["int", "string"]}]}
    with pytest.raises(ValueError, match="union"):
        _compile(bad, {})


def test_batches_come_back_at_every_step() -> None:
    enriched = samples.batch(samples.item(), samples.item(4, positive=False))
    assert decode_batch(encode_batch(enriched)) == enriched
    fresh = samples.batch(replace(samples.item(), object_id=None, prv_candidates=None, fp_hists=None))
    fresh.items[0].candidate |= dict.fromkeys(("ndethist", "ncovhist", "rbversion", "drbversion", "ranr"))
    assert decode_batch(encode_batch(fresh)) == fresh
    sparse = samples.batch(samples.item())
    del sparse.items[0].extension["flux"]
    sparse.items[0].candidate["sky"] = float("nan")
    back = decode_batch(encode_batch(sparse)).items[0]
    assert back.extension["flux"] is None
    assert back.candidate["sky"] is None


def test_a_large_batch_is_split_into_parts_below_the_limit() -> None:
    batch = samples.batch(*[samples.item(i) for i in range(12)])
    limit = 150_000
    parts = split_batch(batch, limit)
    assert len(parts) > 2
    assert [(p.chunk, p.n_chunks) for p in parts] == [(i, len(parts)) for i in range(len(parts))]
    assert all(len(encode_batch(p)) <= limit for p in parts)
    assert [item for p in parts for item in p.items] == batch.items
    assert [len(p.items) for p in split_batch(batch, 10)] == [1] * 12  # an item cannot be split
    assert split_batch(samples.batch(), 100)[0].items == []
    assert len(split_batch(batch, 10**9)) == 1


def test_reports_come_back() -> None:
    report = QuadrantReport(
        "n", 651, 2, 3, 1, 8, 1, 697, 69752384, 6975238408, 697523840815, 2458452.0, 2458452.1, 30.0
    )
    assert decode_report(encode_report(report)) == report
    report.status, report.stage, report.reason = Status.FAILED, "astrometry", "no stars"
    report.seeing, report.rejected, report.seconds = 2.5, {"shape": 3, "edge": 1}, {"calibrate": 0.125}
    report.corners, report.calids, report.notes = [1.0, 2.0], ["a"], ["no_bias"]
    assert decode_report(encode_report(report)) == report
    report.maglim = float("nan")
    assert decode_report(encode_report(report)).maglim is None


def test_streaks_and_tracklets_come_back() -> None:
    streak = Streak(7, 1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0, 8.0, 19.0, 8.75, 0.5, 0.25, 0.5, 0.75)
    batch = StreakBatch("n", 1, 651, 2, 8, 1, 2458452.0, 2458452.1, 30.0, [streak], [b"stamp"])
    assert decode_streaks(encode_streaks(batch)) == batch
    unscored = replace(streak, score=float("nan"))
    back = decode_streaks(encode_streaks(replace(batch, streaks=[unscored], stamps=[])))
    assert math.isnan(back.streaks[0].score)
    tracklet = Tracklet(5, (5, 6, 9), 2458452.0, 1.0, 2.0, 0.25, 90.0, 0.125, 20.5, "20181129")
    assert decode_tracklet(encode_tracklet(tracklet)) == tracklet


@pytest.mark.parametrize("name", sorted(CODECS))
@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_crash_a_decoder(name: str, data: bytes) -> None:
    try:
        CODECS[name][1](data)
    except MessageError:
        return


def test_cut_and_padded_messages_are_refused() -> None:
    data = encode_batch(samples.batch(samples.item()))
    for broken in (data[:-1], data + b"\x00", data[:50], b""):
        with pytest.raises(MessageError):
            decode_batch(broken)
    report = QuadrantReport("n", 651, 2, 3, 1, 8, 1, 697, 1, 1, 1, 2458452.0, 2458452.1, 30.0)
    good = encode_report(report)
    with pytest.raises(MessageError, match="status"):
        decode_report(good.replace(b"\x04ok", b"\x04no"))


def test_a_batch_that_does_not_fit_names_the_field() -> None:
    batch = samples.batch(samples.item())
    batch.items[0].candidate["fid"] = "r"
    with pytest.raises(MessageError, match="fid"):
        encode_batch(batch)
