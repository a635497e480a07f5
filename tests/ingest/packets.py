"""Test packets: a CCD file with the real layout, plain or Rice-compressed, with any keyword changed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core.camera import Camera

TINY = Camera("tiny", 48, 40)  # nx, ny
NAME = "ztf_20250216192384_000402_zr_c11_o.fits.fz"
PRIMARY: dict[str, Any] = {
    "IMGTYPE": "object", "FIELDID": 402, "FILTERID": 2, "OBSJD": 2460722.6923843, "EXPTIME": 30.0,
    "SHUTOPEN": "2025-02-16T04:37:03.328", "SHUTCLSD": "2025-02-16T04:37:33.331", "PROGRMID": 1,
    "TELRAD": 43.8798, "TELDECD": -2.64997, "AIRMASS": 2.166, "QCOMMENT": "all_sky", "CCDTMP11": 173.1,
    "PRESSURE": -9999.0, "HUMIDITY": -9999.0,
}  # fmt: skip


def pixels(camera: Camera, ccdid: int, qid: int, seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Image and overscan of one quadrant: noise about a level that tells CCD and quadrant apart."""
    rng = np.random.default_rng([seed, ccdid, qid])
    level = 1000 + 100 * ccdid + 10 * qid
    image = rng.normal(level + 500, 12, camera.shape)
    overscan = rng.normal(level, 2, (camera.ny, camera.n_overscan))
    image[3, 5] = 65535
    image[7, 9] = 0
    return image.astype(np.uint16), overscan.astype(np.uint16)


def make_packet(
    camera: Camera = TINY,
    primary: dict[str, Any] | None = None,
    extension: dict[int, dict[str, Any]] | None = None,
    compressed: bool = True,
    checksum: bool = True,
    ccdid: int = 11,
) -> bytes:
    """Bytes of a packet; a keyword given as ``None`` is left out. ``extension`` changes cards of HDU 1 to 8."""
    cards = {key: value for key, value in (PRIMARY | (primary or {})).items() if value is not None}
    hdus: list[Any] = [fits.PrimaryHDU(header=fits.Header(cards))]
    pairs = [pixels(camera, ccdid, qid) for qid in (1, 2, 3, 4)]
    for number, data in enumerate([pair[0] for pair in pairs] + [pair[1] for pair in pairs], start=1):
        kind = fits.CompImageHDU if compressed else fits.ImageHDU
        options = {"compression_type": "RICE_1", "tile_shape": (1, data.shape[1])} if compressed else {}
        hdu = kind(data, **options)
        own = {"CCD_ID": ccdid, "AMP_ID": (number - 1) % 4, "GAIN": 6.2, "READNOI": 9.1} if number <= 4 else {}
        for key, value in (own | (extension or {}).get(number, {})).items():
            if value is not None:
                hdu.header[key] = value
        hdus.append(hdu)
    out = io.BytesIO()
    fits.HDUList(hdus).writeto(out, checksum=checksum, output_verify="ignore")
    return out.getvalue()
