"""The shutter's map: how much longer or shorter than EXPTIME each pixel sees the sky.

Blades need time to move; a pixel where they open first and close last sees ``EXPTIME + s`` seconds. The same lamp taken
short and long shows it: the ratio of the two flats is ``(t1 + s) / (t2 + s)`` up to the lamp, so that s follows up to
a constant, which is put to zero in the median (it is the header's EXPTIME that a zero point refers to). Matters only
where an exposure is short.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.calibrate.frames import build_flat
from stream.core.cells import cell_medians, filled, spread_cells
from stream.core.errors import CalibrationError
from stream.core.instrument import calid_of
from stream.core.records import CalibrationFrame, RawQuadrant, Row

CELL = 64  # px; blades have no structure on smaller scales
MIN_RATIO = 3.0  # of the exposure times: else the difference is the lamp's noise


def build_shutter(raws: Sequence[RawQuadrant], bias: CalibrationFrame | None) -> CalibrationFrame:
    """The shutter's map of one channel from flats of two exposure times.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        Flats of one channel and filter: three at least of the shortest and three of the longest exposure time.
    bias : CalibrationFrame or None
        Of the channel.

    Returns
    -------
    CalibrationFrame
        ``kind`` shutter, ``fid`` 0; ``data`` in seconds, median 0, smooth over 64 px; ``unc`` likewise.

    Raises
    ------
    CalibrationError
        Fewer than three good frames of either time, or times that do not differ three-fold.
    """
    times = sorted({raw.quadrant.exposure.exptime for raw in raws})
    if len(times) < 2 or times[-1] < MIN_RATIO * times[0]:
        raise CalibrationError(
            f"shutter map: flats of {', '.join(f'{t:g} s' for t in times) or 'no'} exposure times, two that differ "
            f"{MIN_RATIO:g}-fold are needed: take short and long ones",
        )
    t1, t2 = times[0], times[-1]
    short, long = (build_flat([r for r in raws if r.quadrant.exposure.exptime == t], bias) for t in (t1, t2))
    ratio = filled(cell_medians(short.data / long.data, CELL))
    ratio /= np.float32(np.median(ratio))
    per_second = np.float32(1 / t1 - 1 / t2)
    cells = (ratio - 1) / per_second
    noise = float(np.nanmedian(np.hypot(short.unc[::8, ::8], long.unc[::8, ::8]))) * 1.25 / CELL / float(per_second)
    shape = short.data.shape[0], short.data.shape[1]
    newest = max((raw.quadrant for raw in raws), key=lambda quadrant: quadrant.exposure.jd)
    exposure = newest.exposure
    qa: Row = {
        "cell": CELL, "t_short": t1, "t_long": t2, "gradient": float(cells.max() - cells.min()),
        "jd_start": min(raw.quadrant.exposure.jd for raw in raws), "jd_end": exposure.jd,
    }  # fmt: skip
    return CalibrationFrame(
        "shutter", newest.rcid, 0, exposure.nid, exposure.night, spread_cells(cells.astype(np.float32), CELL, shape),
        np.full(shape, noise, np.float32), np.zeros(shape, np.uint16), short.n_frames + long.n_frames,
        calid_of("shutter", exposure.nid, newest.rcid, 0), qa,
    )  # fmt: skip
