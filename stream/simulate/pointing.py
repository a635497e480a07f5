"""Where the telescope points: the error all exposures of a field share, and the survey's own lists of sources."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import deproject, quadrant_layout
from stream.core.errors import UsageError
from stream.simulate.plan import NightPlan, SimExposure, field_centre, seeded


def common_error(plan: NightPlan) -> tuple[float, float, float]:
    """Pointing error (xi, eta; deg) and rotation (deg) that all exposures of the plan share.

    With a source list it is such that the list fills its quadrant.
    """
    rng = seeded(plan.seed, "pointing", plan.field)
    angle = rng.uniform(0, 2 * math.pi)
    size = plan.pointing_error * rng.uniform(0.7, 1.0)
    sign = 1.0 if rng.uniform() < 0.5 else -1.0
    rotation = sign * plan.rotation * rng.uniform(0.7, 1.0)
    if plan.source_list is None:
        return size * math.cos(angle), size * math.sin(angle), rotation
    listed = read_source_list(plan)
    xi, eta = project(*field_centre(plan.field), *listed.middle)
    layout_xi, layout_eta = quadrant_layout()[listed.rcid]
    c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    return xi - float(c * layout_xi - s * layout_eta), eta - float(s * layout_xi + c * layout_eta), rotation


@dataclass(frozen=True, slots=True, eq=False)
class SourceList:
    """A reference PSF catalogue of the survey: its quadrant, sky positions (deg) and magnitudes (PS1-like)."""

    rcid: int
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mag: NDArray[np.float64]

    @property
    def middle(self) -> tuple[float, float]:
        """Middle of the region that the list covers (deg)."""
        return float(self.ra.min() + self.ra.max()) / 2, float(self.dec.min() + self.dec.max()) / 2


@lru_cache(maxsize=2)
def read_source_list(plan: NightPlan) -> SourceList:
    """The plan's source list.

    Raises
    ------
    UsageError
        The plan has none, the file is no such catalogue, or it is of another field, filter or CCD.
    """
    path = plan.source_list
    if path is None:
        raise UsageError("the plan names no source list")
    try:
        with fits.open(path) as hdus:
            header, rows = hdus[0].header, np.asarray(hdus["PSF_CATALOG"].data)
            field, fid, rcid = (int(header[key]) for key in ("FIELDID", "FILTERID", "RCID"))
            mag = rows["mag"].astype(float) + float(header["MAGZP"])
            ra, dec = rows["ra"].astype(float), rows["dec"].astype(float)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not a reference PSF catalogue: {error}") from error
    ccd, qid = identity.ccd_qid_of(rcid)
    if (field, fid) != (plan.field, plan.fid) or rcid not in plan.rcids:
        raise UsageError(f"{path} is of field {field}, filter {fid}, CCD {ccd}, quadrant {qid}: plan the same")
    return SourceList(rcid, ra, dec, mag)


def project(ra0: float, dec0: float, ra: float, dec: float) -> tuple[float, float]:
    """Gnomonic offset (xi, eta; deg) of a sky position from a tangent point (deg): ``deproject`` undone."""
    d0, d, dra = math.radians(dec0), math.radians(dec), math.radians(ra - ra0)
    denominator = math.sin(d0) * math.sin(d) + math.cos(d0) * math.cos(d) * math.cos(dra)
    xi = math.cos(d) * math.sin(dra) / denominator
    eta = (math.cos(d0) * math.sin(d) - math.sin(d0) * math.cos(d) * math.cos(dra)) / denominator
    return math.degrees(xi), math.degrees(eta)


def telescope_pointing(exposure: SimExposure) -> tuple[float, float]:
    """Where the telescope really looked (deg): the nominal pointing moved by the pointing error."""
    return deproject(exposure.ra, exposure.dec, *exposure.error)
