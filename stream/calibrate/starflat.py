"""The star flat: what calibrators say about the flat, accumulated over exposures by detector position.

Dome and sky light a camera otherwise than stars do (the sky adds light that was scattered inside the telescope), and
only stars tell by how much: their magnitudes minus Pan-STARRS1's, as a function of where on the detector they fell
(Manfroid 1995, A&AS 113, 587). Each exposure's own median is taken off; cloud and the errors of PSF models average out
over exposures, PS1's over stars. The smooth map corrects the low-frequency flat with which the exposures were reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream.calibrate.skyflat import CELL, residual_map, with_star_residuals
from stream.core.errors import CalibrationError
from stream.core.instrument import CALIBRATION_TYPES, calid_of
from stream.core.records import F32, CalibrationFrame, Exposure
from stream.core.zeropointmap import ZeroPointMap, basis

F64 = NDArray[np.float64]
LOFLAT = str(CALIBRATION_TYPES["loflat"])  # last digit of a calibration identifier
MIN_EXPOSURES = 5
MIN_STARS = 1000  # measurements: with 20 mmag each the map's cells (12 x 12) are known to some 7 mmag, drawn to zero
CELLS = 12  # along a side: lamp, screen and scattered light are smooth over a twelfth of a quadrant
DEGREE, CLIP, ROUNDS = 3, 4.0, 3  # of the surface that is fitted before cells show what it leaves
MAX_TILT = 0.05  # mag between the halves of an image: cloud or a bad PSF, which says nothing about the flat
LN_TO_MAG = 0.9210340  # relative error of a flux per mag


@dataclass(frozen=True, slots=True)
class StarSample:
    """Calibrators of one exposure: places (px, first is 0), measured minus catalogue magnitude on the image's zero
    point without its map, and errors (mag); ``calids`` of the frames that the image was reduced with."""

    exposure: Exposure
    rcid: int
    x: F64
    y: F64
    residual: F64
    sigma: F64
    calids: tuple[str, ...] = ()

    @property
    def loflat(self) -> str:
        """Identifier of the low-frequency flat that the image was divided by; empty: none."""
        return next((calid for calid in self.calids if calid.endswith(LOFLAT)), "")


def build_starflat(
    samples: Sequence[StarSample], base: CalibrationFrame | None, shape: tuple[int, int]
) -> CalibrationFrame:
    """The low-frequency flat corrected by stars.

    Parameters
    ----------
    samples : sequence of StarSample
        Of one channel and filter. Exposures that were reduced with another low-frequency flat than ``base`` are left
        out, with the reason; so are those whose stars show a tilt of cloud.
    base : CalibrationFrame or None
        The low-frequency flat that the exposures were reduced with; None: without any.
    shape : (ny, nx)
        Of the quadrant.

    Returns
    -------
    CalibrationFrame
        A ``loflat`` of the newest exposure's night. ``qa``: ``n_stars`` (measurements), ``star_rms`` (mag, of the
        correction), ``base`` (identifier), ``rejected``, ``n_fields``.

    Raises
    ------
    CalibrationError
        Several channels or filters, too few exposures or stars, or no exposure newer than the base's night (its
        identifier would then name two different frames).
    """
    kinds = {(one.rcid, one.exposure.fid) for one in samples}
    if len(kinds) != 1:
        raise CalibrationError(f"a star flat is of one channel and filter, got {sorted(kinds)}: sort them")
    rcid, fid = kinds.pop()
    ordered = sorted(samples, key=lambda one: (one.exposure.jd, one.exposure.name))
    wanted = base.calid if base is not None else ""
    rejected = {one.exposure.name: reason for one in ordered if (reason := _unfit(one, wanted, shape)) is not None}
    good = [one for one in ordered if one.exposure.name not in rejected]
    n_stars = sum(len(one.x) for one in good)
    if len(good) < MIN_EXPOSURES or n_stars < MIN_STARS:
        raise CalibrationError(
            f"star flat of channel {rcid}: {len(good)} good exposures of {len(ordered)} with {n_stars} calibrators, at "
            f"least {MIN_EXPOSURES} and {MIN_STARS} needed; rejected: {rejected or 'none'}: process more exposures",
            rcid=rcid, n_frames=len(ordered), n_good=len(good), n_stars=n_stars,
        )  # fmt: skip
    newest = good[-1].exposure
    if base is not None and newest.night <= base.night:
        raise CalibrationError(
            f"star flat of channel {rcid}: no exposure is newer than the night {base.night} of the low-frequency flat "
            f"{base.calid} that it corrects: process exposures of a later night first",
            rcid=rcid, calid=base.calid,
        )  # fmt: skip
    x, y, sigma = (np.concatenate([getattr(one, name) for one in good]) for name in ("x", "y", "sigma"))
    residual = np.concatenate([one.residual - np.median(one.residual) for one in good])
    surface, value = _surface(x, y, residual, sigma, shape)
    correction = surface + residual_map(x, y, residual - value, sigma, shape, max(min(shape) // CELLS, CELL))
    error = LN_TO_MAG * CELLS / float(np.sqrt((1 / sigma**2).sum()))  # of a typical cell
    start = base if base is not None else _flat(rcid, newest, shape)
    made = with_star_residuals(start, correction, n_stars)
    qa = made.qa | {
        "base": wanted, "rejected": dict(sorted(rejected.items())), "n_rejected": len(rejected), "cell": CELL,
        "n_fields": len({one.exposure.field for one in good}), "n_frames": len(good),
        "jd_start": good[0].exposure.jd, "jd_end": newest.jd,
    }  # fmt: skip
    return replace(
        made, nid=newest.nid, night=newest.night, n_frames=len(good), qa=qa,
        unc=np.hypot(start.unc, np.float32(error)).astype(np.float32),
        calid=calid_of("loflat", newest.nid, rcid, fid),
    )  # fmt: skip


def _surface(x: F64, y: F64, residual: F64, sigma: F64, shape: tuple[int, int]) -> tuple[F32, F64]:
    """A surface of low degree through the residuals, outliers left out: as a map (mag), and at the stars."""
    columns = basis(x, y, shape, DEGREE)
    use = np.ones(len(x), bool)
    value: F64 = np.zeros(len(x))
    coefficients: F64 = np.zeros(columns.shape[1])
    for _ in range(ROUNDS):
        weight = 1 / sigma[use]
        found = np.linalg.lstsq(columns[use] * weight[:, None], residual[use] * weight, rcond=None)[0]
        coefficients = np.asarray(found, np.float64)
        value = np.asarray(columns @ coefficients, np.float64)
        off = np.abs(residual - value)
        use = off <= CLIP * np.maximum(sigma, 1.4826 * float(np.median(off)))
    fitted = ZeroPointMap(DEGREE, shape, tuple(map(float, coefficients)), (0.0,) * len(coefficients))
    return fitted.expand(), value


def _flat(rcid: int, newest: Exposure, shape: tuple[int, int]) -> CalibrationFrame:
    """What an image without a low-frequency flat was divided by."""
    return CalibrationFrame(
        "loflat", rcid, newest.fid, newest.nid, newest.night, np.ones(shape, np.float32), np.zeros(shape, np.float32),
        np.zeros(shape, np.uint16), 0, "",
    )  # fmt: skip


def _unfit(sample: StarSample, wanted: str, shape: tuple[int, int]) -> str | None:
    """Why an exposure is no good for a star flat."""
    if sample.loflat != wanted:
        return f"reduced with the low-frequency flat {sample.loflat or 'none'}, not {wanted or 'none'}"
    if len(sample.x) < 30:
        return f"only {len(sample.x)} calibrators"
    halves = [place > (n - 1) / 2 for place, n in ((sample.x, shape[1]), (sample.y, shape[0]))]
    tilts = [np.median(sample.residual[half]) - np.median(sample.residual[~half]) for half in halves if half.any()]
    worst = max((abs(float(tilt)) for tilt in tilts if np.isfinite(tilt)), default=0.0)
    return f"tilt of {worst:.3f} mag: cloud" if worst > MAX_TILT else None
