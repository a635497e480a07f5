"""Raw packets made of a good one: later, of another field, and hurt in ways that a night brings."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from stream.core.identity import FILTER_CODES, night_of, utc_of

AS_IS: dict[str, Any] = {
    "disable_image_compression": True, "do_not_scale_image_data": True, "lazy_load_hdus": False, "memmap": False,
}  # fmt: skip
SUMS = ("CHECKSUM", "DATASUM")
Change = Callable[[fits.HDUList], None]


def later(
    packet: Path, folder: Path, seconds: float, *, field: int | None = None, ccd: int | None = None,
    change: Change | None = None,
) -> Path:  # fmt: skip
    """The packet as if it had been exposed so much later (of another field or CCD), changed, its sums right again.

    ``change`` gets the extensions as they are stored: compressed tables.
    """
    with fits.open(packet, **AS_IS) as hdus:
        header = hdus[0].header
        jd = round((header["OBSJD"] + seconds / 86_400.0 - 0.5) * 1e6) / 1e6 + 0.5  # on a tick of the name's clock
        moved = jd - header["OBSJD"]
        header["OBSMJD"] += moved
        for key in ("SHUTOPEN", "SHUTCLSD"):
            shutter = fits_time(header[key]) + moved
            header[key] = f"{utc_of(shutter):%Y-%m-%dT%H:%M:%S.%f}"[:-3]
        header["OBSJD"] = jd
        header["FIELDID"] = field or header["FIELDID"]
        ticks = round((jd - 0.5) % 1 * 1e6)
        for hdu in hdus:
            if ccd is not None and "CCD_ID" in hdu.header:
                hdu.header["CCD_ID"] = ccd
        code, ccd = FILTER_CODES[header["FILTERID"]], hdus[1].header["CCD_ID"]
        name = f"ztf_{night_of(jd)}{ticks:06d}_{header['FIELDID']:06d}_{code}_c{ccd:02d}_o.fits.fz"
        header["ORIGNAME"] = name.removesuffix(".fz")
        for hdu in hdus:
            for key in SUMS:
                hdu.header.remove(key, ignore_missing=True)
        for hdu in hdus:
            hdu.add_checksum(when="test")
        if change is not None:
            change(hdus)
        hdus.writeto(folder / name)
    return folder / name


def fits_time(text: str) -> float:
    """Julian date of a FITS time."""
    from astropy.time import Time

    return float(Time(text, scale="utc").jd)


def cut(packet: Path, n_bytes: int) -> Path:
    """The packet without its last ``n_bytes``, in place."""
    data = packet.read_bytes()
    packet.write_bytes(data[:-n_bytes])
    return packet


def hurt_pixels(qid: int, *, with_sums: bool) -> Change:
    """Spoil the compressed rows in the middle of a quadrant; without sums only the decoder can find out."""

    def change(hdus: fits.HDUList) -> None:
        hdu = hdus[qid]
        rows = hdu.data.field(0)
        for k in range(250, 260):
            rows[k][:] = 0xFF
        for key in SUMS:
            if not with_sums:
                hdu.header.remove(key)

    return change


def flatten(packet: Path, levels: dict[int, int]) -> Path:
    """Quadrants (by qid) that hold one and the same number everywhere, overscan as it was; in place, without sums."""
    with fits.open(packet, memmap=False, lazy_load_hdus=False) as hdus:
        for qid, level in levels.items():
            header = hdus[qid].header
            for key in SUMS:
                header.remove(key, ignore_missing=True)
            image = np.full(hdus[qid].data.shape, level, np.uint16)
            hdus[qid] = fits.CompImageHDU(image, header, compression_type="RICE_1", tile_shape=(1, image.shape[1]))
        out = io.BytesIO()
        hdus.writeto(out)
    packet.write_bytes(out.getvalue())
    return packet
