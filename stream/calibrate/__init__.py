"""From raw pixels to a calibrated image, its mask, and the calibration frames this takes.

The order undoes what nature and the electronics did, last thing first (``interfaces.md`` §1), as the survey does:

1. *Overscan*: the bias level floats from row to row and was added last. It must go before anything that is not
   additive.
2. *Linearity*: its coefficients are defined on overscan-subtracted DN. The bias structure (some DN) rides on it,
   an error of 10^-3 of some DN, and the bias frame went through the same step.
3. *Bias*: additive structure, before the flat divides.
4. *Flat*: small and large scale at once, median 1 over the quadrant.
5. *Tagging*: saturation on raw DN (the converter's ceiling knows no calibration), defects from the frames, NaN, then
   hits of particles, which need the finished pixels and the defects.

Halos of bright stars need the astrometric solution and come later (``mask_halos``). Tracks, ghosts and cross-talk are
not tagged here: a trail is a detection of the difference search, and cross-talk needs the CCD's other quadrants.
"""

from stream.calibrate.frames import build_bias, build_flat
from stream.calibrate.halos import mask_halos
from stream.calibrate.image import calibrate, saturated_fraction, saturation_infobits
from stream.calibrate.linearity import linearity_coefficients
from stream.calibrate.overscan import OverscanLevel, overscan_level
from stream.calibrate.spikes import flag_spikes

__all__ = [
    "OverscanLevel",
    "build_bias",
    "build_flat",
    "calibrate",
    "flag_spikes",
    "linearity_coefficients",
    "mask_halos",
    "overscan_level",
    "saturated_fraction",
    "saturation_infobits",
]
