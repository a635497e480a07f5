"""Packets: what conforms goes through byte for byte, what does not fails for one quadrant or says why at once."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parent))
import packets as made

from stream.core.camera import Camera
from stream.core.errors import PacketError
from stream.ingest import parse_packet, pixels, read_packet, read_quadrant
from stream.ingest.fitsblocks import BLOCK

GOOD = made.make_packet()


def header_bytes(data: bytes, number: int) -> tuple[int, int]:
    """Offset and end of HDU ``number`` by astropy, the second opinion on where HDUs lie."""
    with fits.open(io.BytesIO(data), disable_image_compression=True) as hdus:
        info = hdus[number].fileinfo()
        return info["hdrLoc"], info["datLoc"] + info["datSpan"]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
def test_every_quadrant_comes_back_pixel_for_pixel(compressed: bool, checksum: bool) -> None:
    packet = parse_packet(made.make_packet(compressed=compressed, checksum=checksum), made.NAME, made.TINY)
    assert packet.failures == ()
    assert [entry.quadrant.qid for entry in packet.quadrants] == [1, 2, 3, 4]
    for entry in packet.quadrants:
        raw = read_quadrant(entry.payload, made.TINY)
        image, overscan = made.pixels(made.TINY, 11, entry.quadrant.qid)
        np.testing.assert_array_equal(raw.image, image)
        np.testing.assert_array_equal(raw.overscan, overscan)
        assert raw.image.dtype == raw.overscan.dtype == np.uint16
        assert raw.quadrant == entry.quadrant
        assert (raw.gain, raw.readnoise, raw.saturate) == (6.2, 9.1, 60_000.0)


@pytest.mark.parametrize("compressed", [True, False])
def test_payload_is_a_fits_file_of_the_original_bytes(compressed: bool) -> None:
    data = made.make_packet(compressed=compressed)
    packet = parse_packet(data, made.NAME, made.TINY)
    for entry in packet.quadrants:
        qid = entry.quadrant.qid
        source = b"".join(data[slice(*header_bytes(data, number))] for number in (0, qid, qid + 4))
        assert entry.payload.startswith(source)
        assert hashlib.sha256(source).hexdigest() == entry.sha256
        with fits.open(io.BytesIO(entry.payload), checksum=True) as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus[3:]] == ["ZTFPACKT", "AGGRESSORS"]
            np.testing.assert_array_equal(hdus[1].data, made.pixels(made.TINY, 11, qid)[0])
            assert hdus[3].header["SHA256"] == entry.sha256
            assert hdus[3].header["FILENAME"] == entry.quadrant.exposure.name


def test_exposure_follows_the_header() -> None:
    exposure = parse_packet(GOOD, "/some/where/" + made.NAME, made.TINY).exposure
    assert exposure.name == "ztf_20250216192384_000402_zr_c11_o"
    assert (exposure.field, exposure.fid, exposure.ccdid, exposure.programid) == (402, 2, 11, 1)
    assert exposure.jd == 2460722.6923843
    # The real header of this exposure has EXPID 296819238 and shutter open 0.8 s after OBSJD.
    assert exposure.expid == 296819238
    middle = 2460722.5 + (4 * 3600 + 37 * 60 + (3.328 + 33.331) / 2) / 86400
    assert exposure.jd_mid == pytest.approx(middle, abs=5e-5 / 86400 * 1e3)
    assert exposure.header["JDSOURCE"] == "OBSJD"
    assert "HUMIDITY" not in exposure.header  # -9999
    assert exposure.header["CCDTMP11"] == 173.1


def test_real_header_gives_the_surveys_own_identifiers(real_data: Path) -> None:
    for path in sorted((real_data / "images").glob("*sciimg.fits")):
        header = fits.getheader(path)
        name = path.name[: len("ztf_20250216192384_000402_zr_c11_o")]
        cards = {key: header[key] for key in made.PRIMARY if key in header}
        packet = parse_packet(made.make_packet(primary=cards, ccdid=header["CCD_ID"]), name + ".fits.fz", made.TINY)
        ids = {entry.quadrant.qid: entry.quadrant for entry in packet.quadrants}[header["QID"]]
        assert packet.exposure.expid == header["EXPID"]
        assert (ids.rcid, ids.rid) == (header["RCID"], header["DBRID"])
        assert packet.exposure.field == header["FIELDID"]


@pytest.mark.parametrize(
    ("offset_s", "source"), [(0.0, "OBSJD"), (9.0, "OBSJD"), (-9.0, "OBSJD"), (11.0, "SHUTOPEN"), (-3e6, "SHUTOPEN")]
)
def test_the_shutter_is_believed_beyond_ten_seconds(offset_s: float, source: str) -> None:
    shutter = 2460722.5 + (4 * 3600 + 37 * 60 + 3.328) / 86400
    obsjd = shutter + offset_s / 86400
    exposure = parse_packet(made.make_packet(primary={"OBSJD": obsjd}), made.NAME, made.TINY).exposure
    assert exposure.header["JDSOURCE"] == source
    assert exposure.jd == pytest.approx(obsjd if source == "OBSJD" else shutter, abs=1e-9)


@pytest.mark.parametrize("present", [("TELRAD", "TELDECD"), ("OBJRAD", "OBJDECD"), ("RAD", "DECD")])
def test_pointing_stands_in(present: tuple[str, str]) -> None:
    cards = {"TELRAD": None, "TELDECD": None, present[0]: 359.5, present[1]: -30.25}
    if present[0] == "RAD":
        cards |= {"OBJRAD": -9999.0, "OBJDECD": -9999.0}
    exposure = parse_packet(made.make_packet(primary=cards), made.NAME, made.TINY).exposure
    assert (exposure.ra, exposure.dec) == (359.5, -30.25)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in ("IMGTYPE", "FIELDID", "FILTERID", "OBSJD", "SHUTOPEN", "SHUTCLSD", "EXPTIME")],
        ("PROGRMID", None), ("TELRAD", None), ("PROGRMID", 4), ("PROGRMID", -1), ("FILTERID", 0), ("FILTERID", 4),
        ("FILTERID", 1), ("FILTERID", "two"), ("FILTERID", 2.5), ("FIELDID", 403), ("IMGTYPE", "bias"),
        ("IMGTYPE", 7), ("OBSJD", 51000.0), ("OBSJD", -9999.0), ("OBSJD", "tonight"), ("OBSJD", 2.5e6),
        ("EXPTIME", 0.0), ("EXPTIME", 1e9), ("EXPTIME", True), ("TELDECD", 91.0), ("TELRAD", 400.0),
        ("SHUTOPEN", "2025-02-16"), ("SHUTOPEN", "2025-02-30T00:00:00"), ("SHUTOPEN", "yesterday"),
        ("SHUTCLSD", "2025-02-16T04:37:01.000"), ("SHUTCLSD", "2025-02-16T14:37:01.000"), ("SHUTOPEN", 3.0),
        ("SHUTOPEN", "1999-02-16T04:37:03.328"),
    ],
)  # fmt: skip
def test_a_primary_that_breaks_the_contract_is_refused(key: str, value: object) -> None:
    cards = {key: value} | ({"TELDECD": None} if (key, value) == ("TELRAD", None) else {})
    with pytest.raises(PacketError, match=key) as caught:
        parse_packet(made.make_packet(primary=cards), made.NAME, made.TINY)
    assert caught.value.stage == "ingest"
    assert caught.value.context["file"] == "ztf_20250216192384_000402_zr_c11_o"


@pytest.mark.parametrize("number", ["NAN", "INF", "1E999", "1e-", "0x10", "'2460722.5'"])
def test_no_number_no_exposure(number: str) -> None:
    data = bytearray(made.make_packet(checksum=False))
    place = data.index(b"OBSJD   =")
    data[place : place + 80] = f"OBSJD   = {number:>20}".encode().ljust(80)
    with pytest.raises(PacketError, match="OBSJD"):
        parse_packet(bytes(data), made.NAME, made.TINY)


@pytest.mark.parametrize(
    "name",
    [
        "", "a.fits", "ztf_20250216192384_000402_zr_c11_o.fits.gz", "ztf_20250216192384_000402_zx_c11_o.fits",
        "ztf_20250216192384_000402_zr_c17_o.fits", "ztf_20250216192384_000402_zr_c00_o.fits",
        "ztf_20251316192384_000402_zr_c11_o.fits", "ztf_20250216192384_000402_zr_c11_x.fits",
        "ztf_20250216192384_000402_zr_c11_o_q1.fits", "ztf_2025021619238٤_000402_zr_c11_o.fits",
    ],
)  # fmt: skip
def test_names_that_identify_nothing(name: str) -> None:
    with pytest.raises(PacketError):
        parse_packet(GOOD, name, made.TINY)


@pytest.mark.parametrize(
    ("letter", "imgtype", "code", "primary"),
    [
        ("b", "bias", "bi", {"FILTERID": 0, "EXPTIME": 0.0, "SHUTOPEN": None, "SHUTCLSD": None, "PROGRMID": None}),
        ("b", "bias", "bi", {"FILTERID": 2, "EXPTIME": 0.0, "SHUTOPEN": "2025-02-15T23:00:00.000"}),
        ("d", "dark", "dk", {"FILTERID": None, "EXPTIME": 300.0}),
        ("f", "flat", "zr", {"EXPTIME": 20.0, "ILUM_LED": 3}),
    ],
)
def test_calibration_packets_have_no_pointing(letter: str, imgtype: str, code: str, primary: dict) -> None:
    name = f"ztf_20250216192384_000000_{code}_c11_{letter}.fits.fz"
    cards = {"IMGTYPE": imgtype, "FIELDID": 0, "TELRAD": None, "TELDECD": None} | primary
    packet = parse_packet(made.make_packet(primary=cards), name, made.TINY)
    exposure = packet.exposure
    assert len(packet.quadrants) == 4
    assert exposure.imgtype == imgtype
    assert math.isnan(exposure.ra)
    assert exposure.fid == (primary.get("FILTERID", 2) or 0)
    if imgtype != "flat":  # the shutter stayed shut: its keywords say nothing
        assert exposure.jd == 2460722.6923843
        assert exposure.jd_mid == pytest.approx(exposure.jd + exposure.exptime / 2 / 86400, abs=1e-9)
    again = read_quadrant(packet.quadrants[0].payload, made.TINY).quadrant.exposure
    assert repr(again) == repr(exposure)  # NaN is not equal to itself


def test_target_of_opportunity() -> None:
    packet = parse_packet(made.make_packet(primary={"QCOMMENT": "ToO_Neutrino"}), made.NAME, made.TINY)
    assert packet.exposure.too
    assert not parse_packet(GOOD, made.NAME, made.TINY).exposure.too


@pytest.mark.parametrize(
    ("number", "cards", "qid"),
    [
        (1, {"AMP_ID": None}, 1), (2, {"CCD_ID": None}, 2), (3, {"AMP_ID": 1}, 3), (4, {"CCD_ID": 12}, 4),
        (1, {"GAIN": 0.0}, 1), (2, {"GAIN": "high"}, 2), (3, {"READNOI": -1.0}, 3), (4, {"SATURATE": 5.0}, 4),
    ],
)  # fmt: skip
def test_a_hurt_extension_costs_one_quadrant(number: int, cards: dict, qid: int) -> None:
    packet = parse_packet(made.make_packet(extension={number: cards}), made.NAME, made.TINY)
    assert [entry.quadrant.qid for entry in packet.quadrants] == [q for q in (1, 2, 3, 4) if q != qid]
    (failure,) = packet.failures
    assert failure.context["qid"] == qid
    assert failure.context["rid"] == 29681923800 + 40 + qid - 1
    assert f"quadrant {qid}" in str(failure)
    assert next(iter(cards)) in str(failure)


def test_missing_amplifier_values_have_defaults() -> None:
    cards = {"GAIN": None, "READNOI": -9999.0, "SATURATE": 70_000.0}
    packet = parse_packet(made.make_packet(extension={1: cards}), made.NAME, made.TINY)
    raw = read_quadrant(packet.quadrants[0].payload, made.TINY)
    assert (raw.gain, raw.readnoise, raw.saturate) == (6.2, 10.0, 65_535.0)


def hurt(data: bytes, number: int, where: str) -> bytes:
    """The packet with one byte of an HDU changed: in its ``header``, first card (``mark``), or ``data``."""
    start, end = header_bytes(data, number)
    place = {"mark": start + 3, "header": start + 85, "data": end - 2000 if end - start > 6000 else end - 1}[where]
    changed = bytearray(data)
    changed[place] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("where", ["mark", "header", "data"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_changed_byte_is_noticed_where_it_is(number: int, where: str, compressed: bool) -> None:
    data = made.make_packet(compressed=compressed)
    packet = parse_packet(hurt(data, number, where), made.NAME, made.TINY)
    lost = (number - 1) % 4 + 1
    assert [entry.quadrant.qid for entry in packet.quadrants] == [q for q in (1, 2, 3, 4) if q != lost]
    assert [failure.context["qid"] for failure in packet.failures] == [lost]


def test_a_changed_byte_in_the_primary_refuses_the_packet() -> None:
    changed = bytearray(GOOD)
    changed[GOOD.index(b"2.166")] ^= 1
    with pytest.raises(PacketError, match="CHECKSUM"):
        parse_packet(bytes(changed), made.NAME, made.TINY)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_cut_file_gives_the_quadrants_that_are_whole(compressed: bool) -> None:
    data = made.make_packet(compressed=compressed)
    ends = [header_bytes(data, number)[1] for number in range(9)]
    for cut in range(0, len(data), BLOCK // 2):
        try:
            packet = parse_packet(data[:cut], made.NAME, made.TINY)
        except PacketError:
            assert cut < ends[0]
            continue
        whole = [qid for qid in (1, 2, 3, 4) if ends[qid + 4] <= cut]
        assert [entry.quadrant.qid for entry in packet.quadrants] == whole
        assert len(packet.failures) == 4 - len(whole)


def test_swapped_extensions_are_noticed() -> None:
    spans = [header_bytes(GOOD, number) for number in range(9)]
    parts = [GOOD[slice(*span)] for span in spans]
    parts[1], parts[2] = parts[2], parts[1]
    packet = parse_packet(b"".join(parts), made.NAME, made.TINY)
    assert [failure.context["qid"] for failure in packet.failures] == [1, 2]
    parts[1], parts[6] = parts[6], parts[1]  # an image where an overscan belongs
    assert [f.context["qid"] for f in parse_packet(b"".join(parts), made.NAME, made.TINY).failures] == [1, 2]


def test_another_camera_is_refused_quadrant_by_quadrant() -> None:
    packet = parse_packet(GOOD, made.NAME, Camera("other", 64, 64))
    assert packet.quadrants == ()
    assert all("48 x 40" in str(failure) for failure in packet.failures)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"'RICE_1  '", b"'GZIP_1  '", "RICE"),
        (b"ZNAXIS1 =                   48", b"ZNAXIS1 =   999999999999999999", "48 x 40"),
        (b"ZBITPIX =                   16", b"ZBITPIX =                   32", "16-bit"),
        (b"ZTILE2  =                    1", b"ZTILE2  =                   40", "one row"),
        (b"ZVAL2   =                    2", b"ZVAL2   =                    4", "16-bit"),
        (b"BZERO   =                32768", b"BZERO   =                    0", "BZERO"),
        (b"ZVAL1   =                   32", b"ZVAL1   =           2147483647", "ZVAL1"),
        (b"ZIMAGE  =                    T", b"ZIMAGE  =                    F", "tile-compressed"),
        (b"TFORM1  = '1PB(", b"TFORM1  = '1PX(", "descriptor"),
        (b"NAXIS2  =                   40", b"NAXIS2  =       99999999999999", "announces"),
        (b"PCOUNT  =  ", b"PCOUNT  = 9", "make no sense"),
        (b"BITPIX  =                    8", b"BITPIX  =                    7", "make no sense"),
    ],
)
def test_headers_that_promise_something_else(old: bytes, new: bytes, message: str) -> None:
    data = made.make_packet(checksum=False)
    start, end = header_bytes(data, 1)
    assert old in data[start:end]
    changed = data[:start] + data[start:end].replace(old, new, 1)[: end - start] + data[end:]
    packet = parse_packet(changed, made.NAME, made.TINY)
    assert [failure.context["qid"] for failure in packet.failures] == [1]
    assert message in str(packet.failures[0])


def test_broken_rice_rows_are_found_when_read() -> None:
    data = made.make_packet(checksum=False)
    (payload,) = [
        entry.payload for entry in parse_packet(data, made.NAME, made.TINY).quadrants if entry.quadrant.qid == 1
    ]
    with fits.open(io.BytesIO(payload), disable_image_compression=True) as hdus:
        table = hdus[1].fileinfo()["datLoc"]
    for descriptor in (b"\x00\x00\x00\x02\x00\x00\x00\x00", b"\x7f\xff\xff\xff\x00\x00\x00\x00", b"\xff" * 8, bytes(8)):
        changed = payload[:table] + descriptor + payload[table + 8 :]
        with pytest.raises(PacketError, match="row"):
            read_quadrant(changed, made.TINY)


def test_astropys_reader_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = parse_packet(GOOD, made.NAME, made.TINY).quadrants[2]
    fast = read_quadrant(entry.payload, made.TINY)
    monkeypatch.setattr(pixels, "RICE_DECODER", None)
    slow = read_quadrant(entry.payload, made.TINY)
    np.testing.assert_array_equal(fast.image, slow.image)
    np.testing.assert_array_equal(fast.overscan, slow.overscan)


def test_payloads_that_lack_something() -> None:
    entry = parse_packet(GOOD, made.NAME, made.TINY, aggressors=False).quadrants[0]
    with pytest.raises(PacketError, match="FILENAME"):
        read_quadrant(entry.payload[:-BLOCK], made.TINY)
    with pytest.raises(PacketError, match="missing"):
        read_quadrant(entry.payload[:BLOCK], made.TINY)
    with pytest.raises(PacketError):
        read_quadrant(b"", made.TINY)
    with_name = made.make_packet(primary={"ORIGNAME": made.NAME})
    entry = parse_packet(with_name, made.NAME, made.TINY, aggressors=False).quadrants[0]
    assert read_quadrant(entry.payload[:-BLOCK], made.TINY).quadrant == entry.quadrant


def test_read_packet_from_disc(tmp_path: Path) -> None:
    path = tmp_path / made.NAME
    path.write_bytes(GOOD)
    assert len(read_packet(path, made.TINY).quadrants) == 4
    with pytest.raises(PacketError, match="cannot be read"):
        read_packet(tmp_path / ("no" + made.NAME), made.TINY)
    with path.open("wb") as file:
        file.truncate(400_000_000)  # sparse: no disc is filled, and none of it is read
    with pytest.raises(PacketError, match="bytes is no CCD packet"):
        read_packet(path, made.TINY)
