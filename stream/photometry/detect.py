"""First list of sources: matched-filter detection, deblending, windowed centroids."""

from __future__ import annotations

import numpy as np
import sep
from numpy.typing import NDArray

from stream.core.errors import PhotometryError
from stream.core.flags import BAD_BITS, Mask
from stream.core.records import DETECTION_DTYPE, F32, U16, Background, Table
from stream.photometry.stamps import box_flags

# FWHM of the filter, px: between the survey's best and median seeing. A filter off by 30 % in width costs a star
# of S/N 5 only 0.3.
FILTER_FWHM = 2.2
FILTER_SIZE = 5
# In units of the filtered noise. Of 9.5 million pixels about 20 noise peaks pass 4.5 sigma.
THRESHOLD = 4.5
# The filter has done the averaging: asking for more than one pixel only loses faint stars (at S/N 5 to 6 it finds
# 77 %, with three pixels 50 %).
MIN_PIXELS = 1
# Levels of the deblending tree: 16 find the same pairs as SExtractor's 32 to 0.3 %, in two thirds of the time.
DEBLEND_LEVELS = 16
DEBLEND_CONTRAST = 0.005
# Pixels that must not make a detection. Saturated ones stay: the star there is real. So does smooth light.
NOT_DETECTED_BITS = BAD_BITS & ~int(
    Mask.SATURATED | Mask.HALO | Mask.GHOST | Mask.SPILLAGE | Mask.LOW_RESPONSE | Mask.HIGH_RESPONSE | Mask.CROSSTALK
)
# sep's stack of active pixels and the contrast, tried in turn: a stack for 3 % of a quadrant suits a star field and
# costs 50 ms less than one for a third; a blend with more parts than the limit is taken undivided at last.
ATTEMPTS = ((300_000, DEBLEND_CONTRAST), (3_000_000, DEBLEND_CONTRAST), (3_000_000, 1.0))
SUB_OBJECTS = 4096
SIGMA_PER_FWHM = 1 / 2.3548200450309493


def detect(
    data: F32, background: Background, mask: U16, threshold: float = THRESHOLD, *, fwhm: float = FILTER_FWHM
) -> Table:
    """Sources above a threshold in the image filtered with a Gaussian.

    Parameters
    ----------
    data : ndarray, (ny, nx), float32
        DN, sky in; NaN allowed.
    background : Background
    mask : ndarray, (ny, nx), uint16
        Mask bits.
    threshold : float
        Matched-filter S/N of the faintest point source's peak.
    fwhm : float
        Of the filter, px.

    Returns
    -------
    ndarray of DETECTION_DTYPE
        Ordered by y, then x. ``x``, ``y`` are windowed centroids (SExtractor's XWIN), the isophotal ones where the
        windowed strayed by more than a pixel. ``snr`` is the filtered peak over the filtered noise. Empty if
        there is nothing.

    Raises
    ------
    PhotometryError
        Shapes differ, no noise figure, or so much of the image is above the threshold that it is no star field.
    """
    if data.shape != mask.shape or data.shape != background.level.shape:
        raise PhotometryError(f"image {data.shape}, mask {mask.shape}, sky {background.level.shape} must be equal")
    if not background.sigma > 0 or not threshold > 0:
        raise PhotometryError(f"detection needs a noise above 0, got {background.sigma}, and a threshold {threshold}")
    sky_off, unusable = subtract_sky(data, background, mask)
    kernel = _kernel(fwhm)
    gain = float(np.sqrt((kernel**2).sum()))  # what the filter leaves of the noise
    objects = _extract(sky_off, background, unusable, threshold * gain, kernel)
    return _table(objects, sky_off, background, mask, unusable, gain, fwhm)


def subtract_sky(data: F32, background: Background, mask: U16) -> tuple[F32, NDArray[np.bool_]]:
    """Image without its sky, 0 where it is unusable, and where that is."""
    sky_off = np.subtract(data, background.level, dtype=np.float32)
    unusable = (mask & np.uint16(NOT_DETECTED_BITS)) != 0
    unusable |= ~np.isfinite(sky_off)
    np.copyto(sky_off, np.float32(0), where=unusable)
    return sky_off, unusable


def _kernel(fwhm: float) -> NDArray[np.float64]:
    g = np.exp(-0.5 * ((np.arange(FILTER_SIZE) - FILTER_SIZE // 2) / (fwhm * SIGMA_PER_FWHM)) ** 2)
    kernel = np.outer(g, g)
    kernel /= kernel.sum()
    return kernel


def _extract(
    sky_off: F32, background: Background, unusable: NDArray[np.bool_], threshold: float, kernel: NDArray[np.float64]
) -> NDArray[np.void]:
    """Run sep; a blend beyond its limits is taken undivided, a flood of pixels is an error."""
    sep.set_sub_object_limit(SUB_OBJECTS)
    messages = []
    for stack, contrast in ATTEMPTS:
        sep.set_extract_pixstack(stack)
        try:
            objects: NDArray[np.void] = sep.extract(
                sky_off,
                threshold,
                err=background.rms,
                mask=unusable,
                minarea=MIN_PIXELS,
                filter_kernel=kernel,
                filter_type="conv",
                deblend_nthresh=DEBLEND_LEVELS,
                deblend_cont=contrast,
            )
            return objects
        except Exception as error:  # sep raises bare Exception for its limits
            messages.append(str(error))
    raise PhotometryError(
        f"source extraction gave up ({messages[-1]}): the image is no star field",
        sky=background.median,
        sigma=background.sigma,
    )


def _table(
    objects: NDArray[np.void],
    sky_off: F32,
    background: Background,
    mask: U16,
    unusable: NDArray[np.bool_],
    gain: float,
    fwhm: float,
) -> Table:
    ny, nx = sky_off.shape
    good = np.isfinite(objects["x"]) & np.isfinite(objects["y"]) & (objects["flux"] > 0)
    good &= (objects["x"] > -0.5) & (objects["x"] < nx - 0.5) & (objects["y"] > -0.5) & (objects["y"] < ny - 0.5)
    objects = objects[good]
    table = np.zeros(len(objects), DETECTION_DTYPE)
    if not len(objects):
        return table
    x, y = objects["x"], objects["y"]
    wx, wy, _ = sep.winpos(sky_off, x, y, np.full(len(x), fwhm * SIGMA_PER_FWHM), mask=unusable, subpix=3)
    kept = np.hypot(wx - x, wy - y) < 1.0  # also False where NaN
    table["x"], table["y"] = np.where(kept, wx, x), np.where(kept, wy, y)
    np.clip(table["x"], 0, nx - 1, out=table["x"])
    np.clip(table["y"], 0, ny - 1, out=table["y"])
    for name in ("flux", "peak", "a", "b", "theta", "npix"):
        table[name] = objects[name]
    noise = background.rms[objects["ycpeak"], objects["xcpeak"]]
    table["snr"] = objects["cpeak"] / (noise * gain)
    table["flags"] = box_flags(mask, table["x"], table["y"], edge=None)
    return table[np.lexsort((table["x"], table["y"]))]
