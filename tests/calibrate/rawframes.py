"""Raw quadrants with a known past: light, flat, hits, gain, non-linearity, bias structure, drift, read noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.linearity import linearity_coefficients
from stream.core.records import Exposure, Quadrant, RawQuadrant

F64 = NDArray[np.float64]
GAIN, READNOISE = 6.2, 10.0
JD = 2459000.7


@dataclass
class Detector:
    """The truth about one channel."""

    shape: tuple[int, int] = (512, 512)
    ccdid: int = 3
    qid: int = 2
    seed: int = 1
    flat: F64 = field(init=False)
    bias: F64 = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0])
        ny, nx = self.shape
        y, x = np.mgrid[0:ny, 0:nx]
        large = 1 - 0.15 * ((x / nx - 0.6) ** 2 + (y / ny - 0.3) ** 2)
        self.flat = large * rng.normal(1, 0.01, self.shape)
        self.flat /= np.median(self.flat)
        self.bias = 4 * np.exp(-x / 60.0) + 1.5 * np.sin(x / 17.0) + 0.002 * y + rng.normal(0, 0.3, self.shape)

    def raw(
        self,
        light: F64 | float,
        seed: int,
        imgtype: str = "object",
        hits: F64 | float = 0.0,
        level: float = 1000.0,
        drift: float = 6.0,
        jitter: float = 0.1,
        saturate: float = 60_000.0,
        fid: int = 2,
        number: int = 0,
    ) -> RawQuadrant:
        """A raw frame: ``light`` (DN over a perfect detector) through flat, photons, ``hits`` (DN) and read-out."""
        rng = np.random.default_rng([self.seed, seed])
        ny = self.shape[0]
        expected = np.broadcast_to(np.asarray(light, float), self.shape) * self.flat * GAIN
        electrons = rng.poisson(np.clip(expected, 0, None)) + np.asarray(hits) * GAIN
        jd = JD + number * 1e-3
        a, b = linearity_coefficients(self.ccdid, self.qid, jd)
        measured = self._bend(electrons / GAIN, a, b)
        rows = level + drift * np.cos(np.arange(ny) / ny * 5) + rng.normal(0, jitter, ny)
        noise = READNOISE / GAIN
        image = measured + self.bias + rows[:, None] + rng.normal(0, noise, self.shape)
        overscan = np.broadcast_to(rows[:, None], (ny, 30)) + rng.normal(0, noise, (ny, 30))
        overscan[:, :15] += 0.002 * measured[:, -1:] * np.exp(-np.arange(15) / 3.0)  # trailed charge
        exposure = Exposure(
            name=f"ztf_20200531{200000 + number:06d}_000402_zr_c{self.ccdid:02d}_{imgtype[0]}",
            imgtype=imgtype, field=402, fid=fid, ccdid=self.ccdid, programid=1, jd=jd, jd_mid=jd + 2e-4,
            exptime=30.0, ra=10.0, dec=20.0,
        )  # fmt: skip
        stored = [np.clip(np.rint(pixels), 0, 65535).astype(np.uint16) for pixels in (image, overscan)]
        return RawQuadrant(Quadrant(exposure, self.qid), stored[0], stored[1], GAIN, READNOISE, saturate)

    @staticmethod
    def _bend(true: F64, a: float, b: float) -> F64:
        """What the amplifier makes of true DN: the inverse of x / (A x^2 + B x + 1), by iteration."""
        x = true.copy()
        for _ in range(6):
            x = true * (a * x * x + b * x + 1)
        return x
