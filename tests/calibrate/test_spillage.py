"""Spilt charge: its place is found from the image, only until the readout was changed."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import add_noise

from stream.calibrate import mask_spillage
from stream.core.camera import read_order
from stream.core.flags import Mask
from stream.core.records import Background

GAIN, READNOISE = 6.2, 10.0
SHAPE = (400, 420)


def scene(delay: int, qid: int, light: float) -> tuple[np.ndarray, Background, np.ndarray, np.ndarray]:
    """Full pixels in three stars with wings, what they spilt ``delay`` px later in read order."""
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    sky = np.full(SHAPE, 300.0)
    full = np.zeros(SHAPE, bool)
    for x0, y0, size in ((200, 80, 4), (215, 200, 7), (190, 330, 3)):
        r = np.hypot(x - x0, y - y0)
        sky += 4e5 / (r**2 + 9) ** 1.2
        full |= r < size
    spilt = np.roll(full, -delay if read_order(qid)[0] else delay, axis=1)
    data = add_noise(sky - 300 + light * spilt, 300.0, GAIN, READNOISE, delay)
    data[full] = 50_000
    mask = np.where(full, int(Mask.SATURATED), 0).astype(np.uint16)
    level, rms = np.full(SHAPE, 300, np.float32), np.full(SHAPE, 7.2, np.float32)
    return data, Background(level, rms, 300.0, 7.2), mask, spilt


@pytest.mark.parametrize("qid", [1, 2, 3, 4])
@pytest.mark.parametrize("delay", [61, 97, 139])
def test_spilt_charge_is_masked_where_it_lies(qid: int, delay: int) -> None:
    data, background, mask, spilt = scene(delay, qid, 80.0)
    masked = mask_spillage(data, background, mask, qid, 58_700.0)
    assert ((masked & Mask.SPILLAGE) > 0)[spilt].all()
    assert not ((masked & Mask.SPILLAGE) > 0)[~spilt].any()
    assert (masked & ~np.uint16(Mask.SPILLAGE) == mask).all()


def test_not_after_the_change_nor_where_nothing_was_spilt() -> None:
    data, background, mask, _ = scene(90, 1, 80.0)
    assert mask_spillage(data, background, mask, 1, 58_779.2) is mask
    assert mask_spillage(data, background, mask, 1, float("nan")) is mask
    data, background, mask, _ = scene(90, 1, 0.0)
    assert mask_spillage(data, background, mask, 1, 58_700.0) is mask
    assert mask_spillage(data, background, np.zeros_like(mask), 1, 58_700.0).max() == 0
