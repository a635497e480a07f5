"""What to simulate, as a value, and the exposures of the night that follow from it."""

from __future__ import annotations

import csv
import datetime as dt
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from stream.core import identity
from stream.core.camera import FULL, Camera
from stream.core.errors import UsageError
from stream.simulate.effects import Effects

# Zero point (30 s, airmass 1) and colour coefficient per filter: the median real headers (g 26.4, r 26.2, i 25.6).
BASE_ZEROPOINT = {1: 26.30, 2: 26.20, 3: 25.60}
COLOUR_TERM = {1: -0.06, 2: 0.10, 3: 0.19}
EXTINCTION = {1: 0.20, 2: 0.15, 3: 0.07}  # mag per airmass, as in the survey's cloud rule
DARK_SKY = {1: 170.0, 2: 290.0, 3: 380.0}  # DN per pixel in 30 s: with 2.3 px seeing 5 sigma at about 20.6
NIGHT_ZERO = dt.date(2017, 1, 1)
ALL_EFFECTS = Effects()
# Default numbers a quadrant, on a full one and on a smaller one.
PER_QUADRANT = {"transients": (40, 8), "asteroids": (4, 2), "streaks": (2, 1), "eruptive": (4, 1), "faders": (6, 1)}
NAME_TICKS = 1_000_000  # the packet's name carries six digits of the day


def seeded(*key: int | str) -> np.random.Generator:
    """Generator that belongs to a key of numbers and words: the same whatever ran before, and in which process."""
    words = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else int(part) for part in key]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


@dataclass(frozen=True, slots=True)
class Survey:
    """Nights of several fields, taken in the order in which a scheduler would take them.

    Parameters
    ----------
    nights, every : int
        How many nights, and how many days from one to the next. The first is ``NightPlan.night``.
    n_fields : int or None
        Fields of the primary grid, neighbours that are well up in every night. None: as many as a night has time for.
    fields : tuple of int
        These fields and no others.
    visits : int
        Of a field in a night, in turn in the filters.
    gap : float
        Minutes between two visits of a field, at least.
    filters : tuple of int
        1 g, 2 r, 3 i.
    limit : int or None
        Most exposures in a night.
    programs : (float, float, float)
        Shares of program 1 (public), 2 (partnership) and 3 (Caltech).
    """

    nights: int = 1
    every: int = 1
    n_fields: int | None = None
    fields: tuple[int, ...] = ()
    visits: int = 2
    gap: float = 30.0
    filters: tuple[int, ...] = (1, 2)
    limit: int | None = None
    programs: tuple[float, float, float] = (0.4, 0.4, 0.2)

    def __post_init__(self) -> None:
        if min(self.nights, self.every, self.visits) < 1 or (self.n_fields is not None and self.n_fields < 1):
            raise UsageError("a survey wants at least one night, one field and one visit")
        if not self.filters or not set(self.filters) <= set(identity.FILTER_CODES):
            raise UsageError(f"filters {self.filters}: want some of 1 (g), 2 (r) and 3 (i)")
        if self.gap <= 0 or (self.limit is not None and self.limit < 1):
            raise UsageError("the gap between visits and the limit of exposures have to be positive")
        if min(self.programs) < 0 or sum(self.programs) <= 0:
            raise UsageError(f"shares of programs {self.programs}: want numbers that are not negative")
        for field in self.fields:
            field_centre(field)


@dataclass(frozen=True, slots=True)
class NightPlan:
    """Everything a simulated night depends on: the same plan gives the same bytes.

    Parameters
    ----------
    seed, noise_seed : int
        Of the sky and the instrument; of photon noise, read noise and cosmic rays.
    camera : Camera
    ccds, qids : tuple of int
        CCDs that get a packet; quadrants of them that see the sky (the others of a packet carry sky light only).
    field, fid : int
        Field of the survey's grid; 1 g, 2 r, 3 i.
    night : str
        UT date of the science exposures, YYYYMMDD.
    n_science, n_reference, n_bias, n_flat, n_dark : int
        Exposures of each sort. References lie 15 days to 1 day earlier and hold no transients. Calibration
        frames are of the afternoon of the first night, so that they precede every exposure. In a survey references
        are of each field and filter, a month and more earlier, and calibration frames of each night.
    cadence : float
        Seconds between the starts of science exposures.
    exptime : float
        Seconds.
    programid : int
    transients, asteroids, streaks, eruptive, faders : int or None
        Per quadrant; None: 40, 4, 2, 4, 6 on a full quadrant and 8, 2, 1, 1, 1 on a smaller one. ``eruptive`` are
        flares and dwarf novae; ``faders`` are bright in the references and faint afterwards.
    comets : int
        Per CCD of the plan, with a coma.
    satellite : bool
        One trail across the first quadrant in the middle science exposure.
    satellites, aircraft : float
        Mean number that cross the focal plane in a science exposure.
    variables : float
        Share of stars of medium brightness that are periodic variables.
    star_density : float or None
        Times 5,000 stars brighter than 20.6 on a full quadrant (150: a million a square degree). None: what a
        real field at that place in the Galaxy has; for a smaller camera 2, so that a 512 x 512 quadrant has more
        than the hundred Gaia stars that the quality bits ask for.
    galaxy_density : float
        Times the counts of a real field.
    seeing : (float, float)
        Range of the FWHM in px, pixel included. References take the better half.
    sky : float or None
        DN per pixel in 30 s; None: dark sky of the filter.
    cloud : float
        Science exposures lose up to so many magnitudes, each its own.
    pointing_error, rotation : float
        Degrees; common to all exposures up to a few arcsec (guiding) and a few thousandths of a degree.
    bright_stars : int
        Stars of V < 6.5 with their halo, per CCD of the plan.
    compress : bool
        ``.fits.fz`` (Rice, one row a tile) or plain ``.fits``.
    source_list : Path or None
        A reference PSF catalogue of the survey: its sources replace the generated stars, on its own field, CCD
        and quadrant, which then must be those of the plan.
    effects : Effects
        Which effects of air, optics, detector and electronics there are.
    survey : Survey or None
        Several fields and nights instead of ``n_science`` exposures of one; ``field``, ``fid``, ``cadence`` and
        ``programid`` then follow from it, ``seeing`` is that of r at the zenith and ``cloud`` the depth of thin cloud.
    """

    seed: int = 1
    noise_seed: int = 1
    camera: Camera = FULL
    ccds: tuple[int, ...] = (1,)
    qids: tuple[int, ...] = (1, 2, 3, 4)
    field: int = 448
    fid: int = 2
    night: str = "20201005"
    n_science: int = 2
    n_reference: int = 0
    n_bias: int = 5
    n_flat: int = 5
    n_dark: int = 0
    cadence: float = 1800.0
    exptime: float = 30.0
    programid: int = 1
    transients: int | None = None
    asteroids: int | None = None
    streaks: int | None = None
    eruptive: int | None = None
    faders: int | None = None
    comets: int = 0
    satellite: bool = True
    satellites: float = 0.0
    aircraft: float = 0.0
    variables: float = 0.012
    star_density: float | None = None
    galaxy_density: float = 1.0
    seeing: tuple[float, float] = (1.6, 3.0)
    sky: float | None = None
    cloud: float = 0.0
    pointing_error: float = 0.04
    rotation: float = 0.1
    bright_stars: int = 0
    compress: bool = True
    source_list: Path | None = None
    effects: Effects = ALL_EFFECTS
    survey: Survey | None = None

    def __post_init__(self) -> None:
        if not self.ccds or any(not 1 <= ccd <= 16 for ccd in self.ccds) or len(set(self.ccds)) != len(self.ccds):
            raise UsageError(f"ccds {self.ccds}: want different numbers of 1..16")
        if not self.qids or any(not 1 <= qid <= 4 for qid in self.qids):
            raise UsageError(f"qids {self.qids}: want numbers of 1..4")
        if self.fid not in identity.FILTER_CODES:
            raise UsageError(f"filter {self.fid}: want 1 (g), 2 (r) or 3 (i)")
        if min(self.n_science, self.n_reference, self.n_bias, self.n_flat, self.n_dark) < 0:
            raise UsageError("numbers of exposures cannot be negative")
        if not 1.2 <= self.seeing[0] <= self.seeing[1] <= 8.0:
            raise UsageError(f"seeing {self.seeing} px: want 1.2 <= low <= high <= 8")
        if self.programid not in (0, 1, 2, 3):
            raise UsageError(f"programid {self.programid}: want 0..3")
        if not 0 < self.exptime <= 3600 or self.cadence < self.exptime + 5:
            raise UsageError("exposure time must be 0 to 3600 s, and the cadence at least 5 s longer")
        counts = [self.n_per_quadrant(what) for what in PER_QUADRANT]
        if min(*counts, self.comets, self.satellites, self.aircraft, self.variables, self.galaxy_density) < 0:
            raise UsageError("numbers of transients, variables, movers and trails cannot be negative")
        if self.survey is not None and self.source_list is not None:
            raise UsageError("a source list is of one field: it cannot be painted in a survey")
        field_centre(self.field)
        self.midnight  # noqa: B018 - refuses an impossible date

    @property
    def midnight(self) -> float:
        """Julian date of 0 h UT of ``night``."""
        try:
            date = dt.datetime.strptime(self.night, "%Y%m%d")
        except ValueError:
            raise UsageError(f"night {self.night!r}: want YYYYMMDD") from None
        return identity.jd_of(date)

    @property
    def rcids(self) -> tuple[int, ...]:
        """Readout channels that see the sky, in order."""
        return tuple(identity.rcid_of(ccd, qid) for ccd in sorted(self.ccds) for qid in sorted(set(self.qids)))

    @property
    def is_full(self) -> bool:
        """Whether quadrants have survey size."""
        return self.camera.nx >= 2000

    def n_per_quadrant(self, what: str) -> int:
        """Transients, asteroids, streaks, eruptive stars or faders a quadrant."""
        given: int | None = getattr(self, what)
        return PER_QUADRANT[what][0 if self.is_full else 1] if given is None else given

    def of(self, exposure: SimExposure) -> NightPlan:
        """The plan as an exposure sees it: that of its own field, where there are several."""
        return replace(self, field=exposure.field) if self.survey is not None and exposure.role != "cal" else self


@dataclass(frozen=True, slots=True)
class SimExposure:
    """One exposure of the plan and the conditions under which it was taken.

    ``jd`` is OBSJD, ``jd_mid`` the middle between the shutter's opening and closing. ``seeing`` is the FWHM in
    px, pixel included. ``transparency`` is in mag (0: clear), ``cloud`` the part of it that is cloud. ``sky`` is DN
    per pixel, of which ``moonlight`` is the moon's, and ``gradient`` its relative slope over half a quadrant in x
    and y. ``error`` is the pointing error (xi, eta; deg), ``rotation`` deg. ``moon`` is altitude, distance from the
    field (deg) and lit fraction. ``role`` is cal, ref or sci.
    """

    role: str
    imgtype: str
    index: int
    field: int
    fid: int
    jd: float
    exptime: float
    programid: int
    stamp: str  # YYYYMMDDdddddd
    ra: float = math.nan
    dec: float = math.nan
    airmass: float = math.nan
    seeing: float = math.nan
    transparency: float = 0.0
    sky: float = 0.0
    gradient: tuple[float, float] = (0.0, 0.0)
    error: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    level: float = 0.0  # DN, dome flats
    cloud: float = 0.0
    moonlight: float = 0.0
    moon: tuple[float, float, float] = (math.nan, math.nan, math.nan)

    @property
    def jd_open(self) -> float:
        """Shutter open, UTC: 0.8 s after OBSJD, as in real headers; to the millisecond of the keyword."""
        return self.jd + 0.8 / 86_400.0

    @property
    def jd_mid(self) -> float:
        """Middle of the exposure."""
        return self.jd_open + 0.5 * self.exptime / 86_400.0

    @property
    def expid(self) -> int:
        """Exposure identifier."""
        return identity.expid_of(self.jd)

    def name(self, ccdid: int) -> str:
        """Packet name without extension."""
        kind = {"object": "o", "bias": "b", "flat": "f", "dark": "d"}[self.imgtype]
        code = {"bias": "bi", "dark": "dk"}.get(self.imgtype, identity.FILTER_CODES[self.fid])
        return f"ztf_{self.stamp}_{self.field:06d}_{code}_c{ccdid:02d}_{kind}"


@lru_cache(maxsize=1)
def field_centres() -> dict[int, tuple[float, float]]:
    """Centres (deg) of all fields of the survey's grid."""
    text = resources.files("stream.core").joinpath("data/fields.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {int(row["field"]): (float(row["ra"]), float(row["dec"])) for row in rows}


def field_centre(field: int) -> tuple[float, float]:
    """Centre (deg) of a field of the survey's grid; ``UsageError`` for a number that is not in it."""
    try:
        return field_centres()[field]
    except KeyError:
        raise UsageError(f"field {field} is not in the survey's grid") from None
