"""From raw pixels to a calibrated image, its mask, and the calibration frames this takes.

The order undoes what nature and the electronics did (``interfaces.md`` §1), last thing first:

1. *Overscan*: the bias level floats from row to row and was added last. It must go before anything that is not
   additive. Clean columns only, robust within a row, smooth along the rows.
2. *Cross-talk*: a share of what the CCD's other amplifiers *measured*, so it goes before their curve is undone. Sparse:
   only the bright pixels that came with the quadrant, saturated and bled ones too.
3. *Linearity*: coefficients by amplifier and epoch, defined on overscan-subtracted DN. The bias structure (some DN)
   rides on it, an error of 10^-3 of some DN, and the bias frame went through the same step.
4. *Bias*: additive structure, before anything multiplies.
5. *Pocket effect* (off by default): a shift of charge between pixels of a row, before their response is corrected.
6. *Flats*: the night's high-frequency flat (pixels, dust, dome lamp) and the low-frequency flat (lamp to sky, stars),
   both of median 1, in one pass; the shutter's map where an exposure is short.
7. *Fringes* (i): additive light that the flat has already divided; an amplitude of its own in every image.
8. *Tagging*: saturation on raw DN (the converter's ceiling knows no calibration), defects from the frames, NaN,
   cross-talk that could not be corrected, then hits of particles, which need the finished pixels and the defects.

A pixel's uncertainty is derived, never stored: variance = data / gain + (readnoise / gain)^2, in DN^2.

What needs more than this is masked later, on the way of the image (``stream.pipeline``). Once the sky is known:
*spillage* and *tracks* (``mask_spillage``, ``find_tracks``), before sources are detected, so that no piece of a trail
becomes a star which astrometry or the PSF would use. Once the place on the sky and the zero point are known: *halos*
and *ghosts* of bright stars (``mask_halos``, ``mask_ghosts``), smooth light that harms no fit; then the catalogues'
flags are read off the finished mask.

Calibration frames are made of a night's raw ones (``frames``), of the sky itself (``skyflat``, ``fringe``), and what an
observatory does not hand over is measured: cross-talk matrix (``crosstalk``), gain, read noise and saturation
(``transfer``), shutter (``shutter``), the geometry of ghosts (``ghosts``), persistent artefacts (``persistent``).
"""

from stream.calibrate.frames import build_bias, build_flat
from stream.calibrate.ghosts import calibrate_ghosts, focal_plane, ghost_sample, ghost_stars, mask_ghosts
from stream.calibrate.halos import halo_limit, mask_halos
from stream.calibrate.image import CalibrateSettings, calibrate, saturated_fraction, saturation_infobits
from stream.calibrate.linearity import linearity_coefficients
from stream.calibrate.overscan import OverscanLevel, overscan_level
from stream.calibrate.spikes import flag_spikes
from stream.calibrate.spillage import mask_spillage
from stream.calibrate.tracks import find_tracks, mask_tracks

__all__ = [
    "CalibrateSettings",
    "OverscanLevel",
    "build_bias",
    "build_flat",
    "calibrate",
    "calibrate_ghosts",
    "find_tracks",
    "flag_spikes",
    "focal_plane",
    "ghost_sample",
    "ghost_stars",
    "halo_limit",
    "linearity_coefficients",
    "mask_ghosts",
    "mask_halos",
    "mask_spillage",
    "mask_tracks",
    "overscan_level",
    "saturated_fraction",
    "saturation_infobits",
]
