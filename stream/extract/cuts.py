"""Which candidates are sent: named profiles of cuts and one decision function without side effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.core.errors import UsageError

# Fields of the packet's candidate record that may not be null and are made in this room; ``diffmaglim`` may by the
# schema, but brokers drop a point without it.
REQUIRED = (
    "jd", "fid", "pid", "programid", "candid", "isdiffpos", "ra", "dec", "magpsf", "sigmapsf", "ranr", "decnr",
    "diffmaglim", "jdstartref", "jdendref",
)  # fmt: skip
# 2.5 / ln 10: magnitudes per natural logarithm, and so sigma_m = this / (S/N).
POGSON = 2.5 / math.log(10.0)
# The lobes of a star's dipole stand within this many px of it: its PSF's width.
DIPOLE_REACH = 3.5


@dataclass(frozen=True, slots=True)
class CutProfile:
    """Limits that a sent candidate meets; the survey's names and units.

    ``noise_sigmas`` widens the shape limits of faint candidates by so many of their own standard deviations:
    0 applies them as they are. At S/N 5 the 14-px aperture alone scatters magdiff by 0.7 mag, so that the
    survey's plain limits lose about half of the real sources there. An infinite limit is none: a shape that could not
    be measured passes it. ``max_unexplained`` is what a PSF fit may leave over what it explains
    (``context.unexplained_of``), ``max_dipole`` the depth of the other lobe beside a source of the reference.
    """

    name: str
    min_snr: float = 5.0  # PSF-fit flux over its error
    max_magpsf: float = 23.5
    max_nbad: int = 4  # of 25 px
    max_fwhm: float = 7.0  # px
    max_elong: float = 1.6
    min_magdiff: float = -0.4
    max_magdiff: float = 0.75
    min_edge: float = 10.0  # px, no public packet has less (ztf-facts §5.5)
    noise_sigmas: float = 0.0
    max_unexplained: float = math.inf
    max_dipole: float = math.inf


_ANY = math.inf
PROFILES = {
    profile.name: profile
    for profile in (
        CutProfile("survey-2018"),  # ztf-facts §5.6, complete
        CutProfile("noise-aware", noise_sigmas=2.5),
        # What the survey's shape cuts throw away stays, trails, comets and merged pairs among it: the classifiers
        # judge. Only what no light can look like goes, and what is a star that was not where the reference has it.
        CutProfile(
            "inclusive", max_fwhm=_ANY, max_elong=_ANY, min_magdiff=-_ANY, max_magdiff=_ANY, max_unexplained=3.0,
            max_dipole=0.6,
        ),
    )
}  # fmt: skip


def profile_named(name: str) -> CutProfile:
    """The profile of that name; ``UsageError`` names the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        raise UsageError(f"no cut profile {name!r}: known are {', '.join(PROFILES)}") from None


def rejection(fields: Mapping[str, Any], extra: Mapping[str, Any], profile: CutProfile) -> str | None:
    """Why a candidate is not sent, or None.

    Parameters
    ----------
    fields, extra : mapping
        The packet's ``candidate`` record and our extension; None where not measurable.
    profile : CutProfile

    Returns
    -------
    str or None
        The first reason in this order: ``unmeasurable`` (a required number is missing), ``edge``, ``bad_pixels``,
        ``low_snr``, ``faint``, ``sharp``, ``dipole``, ``fwhm``, ``elong``, ``magdiff``. A shape that could not be
        measured fails its cut, unless the profile has none.
    """
    if any(fields.get(name) is None for name in REQUIRED) or not extra.get("fluxerr"):
        return "unmeasurable"
    if (fields["mindtoedge"] or 0.0) < profile.min_edge:
        return "edge"
    if fields["nbad"] is None or fields["nbad"] > profile.max_nbad:
        return "bad_pixels"
    snr = abs(extra["flux"]) / extra["fluxerr"]
    if snr < profile.min_snr:
        return "low_snr"
    if fields["magpsf"] > profile.max_magpsf:
        return "faint"
    unexplained = extra.get("unexplained")
    if unexplained is not None and unexplained > profile.max_unexplained:
        return "sharp"
    if _is_dipole(fields, extra, profile):
        return "dipole"
    return _shape_rejection(fields, snr, profile)


def _is_dipole(fields: Mapping[str, Any], extra: Mapping[str, Any], profile: CutProfile) -> bool:
    """Whether a candidate is one lobe of a source of the reference that does not fall on itself."""
    dipole, distance = extra.get("dipole"), fields.get("distnr")
    return dipole is not None and dipole > profile.max_dipole and distance is not None and distance <= DIPOLE_REACH


def _shape_rejection(fields: Mapping[str, Any], snr: float, profile: CutProfile) -> str | None:
    # Second moments in a PSF-sized window have a fractional error of about 1 / (S/N) along each axis; a
    # ratio of axes and a deconvolved width have about twice that.
    slack = profile.noise_sigmas * 2.0 / snr
    forgiving = profile.noise_sigmas > 0 and slack >= 1.0
    for name, limit in (("fwhm", profile.max_fwhm), ("elong", profile.max_elong)):
        value = fields[name]
        unmeasured_passes = forgiving or limit == _ANY
        if (value is None and not unmeasured_passes) or (value is not None and value > limit * (1 + slack)):
            return name
    return None if _magdiff_allowed(fields["magdiff"], fields["sigmagap"], snr, profile) else "magdiff"


def _magdiff_allowed(magdiff: float | None, sigmagap: float | None, snr: float, profile: CutProfile) -> bool:
    """Whether aperture and PSF flux agree; compared as a flux ratio where noise is allowed for."""
    if profile.max_magdiff == _ANY:
        return True
    if profile.noise_sigmas <= 0:
        return magdiff is not None and profile.min_magdiff <= magdiff <= profile.max_magdiff
    if magdiff is None or sigmagap is None:
        return snr < 10.0  # the aperture saw nothing: expected of a faint source, not of a bright one
    ratio = 10 ** (-0.4 * magdiff)
    error = profile.noise_sigmas * ratio * math.hypot(sigmagap / POGSON, 1 / snr)
    low, high = 10 ** (-0.4 * profile.max_magdiff), 10 ** (-0.4 * profile.min_magdiff)
    return low - error <= ratio <= high + error
