"""What to simulate, as a value, and the exposures of the night that follow from it."""

from __future__ import annotations

import csv
import datetime as dt
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from stream.core import identity
from stream.core.camera import FULL, Camera, deproject, quadrant_layout
from stream.core.errors import UsageError
from stream.simulate.effects import Effects

# Zero point (30 s, airmass 1) and colour coefficient per filter: the median real headers (g 26.4, r 26.2, i 25.6).
BASE_ZEROPOINT = {1: 26.30, 2: 26.20, 3: 25.60}
COLOUR_TERM = {1: -0.06, 2: 0.10, 3: 0.19}
EXTINCTION = {1: 0.20, 2: 0.15, 3: 0.07}  # mag per airmass, as in the survey's cloud rule
DARK_SKY = {1: 170.0, 2: 290.0, 3: 380.0}  # DN per pixel in 30 s: with 2.3 px seeing 5 sigma at about 20.6
NIGHT_ZERO = dt.date(2017, 1, 1)
ALL_EFFECTS = Effects()
NAME_TICKS = 1_000_000  # the packet's name carries six digits of the day


def seeded(*key: int | str) -> np.random.Generator:
    """Generator that belongs to a key of numbers and words: the same whatever ran before, and in which process."""
    words = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else int(part) for part in key]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


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
        frames are of the afternoon of the first night, so that they precede every exposure.
    cadence : float
        Seconds between the starts of science exposures.
    exptime : float
        Seconds.
    programid : int
    transients, asteroids, streaks : int or None
        Per quadrant; None: 40, 4, 2 on a full quadrant and 8, 2, 1 on a smaller one.
    satellite : bool
        One trail across the first quadrant in the middle science exposure.
    star_density : float or None
        Times 5,000 stars brighter than 20.6 on a full quadrant. None: 1, for a smaller camera 2, so that a
        512 x 512 quadrant has more than the hundred Gaia stars that the quality bits ask for.
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
    satellite: bool = True
    star_density: float | None = None
    seeing: tuple[float, float] = (1.6, 3.0)
    sky: float | None = None
    cloud: float = 0.0
    pointing_error: float = 0.04
    rotation: float = 0.1
    bright_stars: int = 0
    compress: bool = True
    source_list: Path | None = None
    effects: Effects = ALL_EFFECTS

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
        if min(self.n_per_quadrant("transients"), self.n_per_quadrant("asteroids"), self.n_per_quadrant("streaks")) < 0:
            raise UsageError("numbers of transients, asteroids and streaks cannot be negative")
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

    @property
    def density(self) -> float:
        """Star density in units of the default sky."""
        if self.star_density is not None:
            return self.star_density
        return 1.0 if self.is_full else 2.0

    def n_per_quadrant(self, what: str) -> int:
        """Transients, asteroids or streaks a quadrant."""
        given: int | None = {"transients": self.transients, "asteroids": self.asteroids, "streaks": self.streaks}[what]
        if given is not None:
            return given
        full, small = {"transients": (40, 8), "asteroids": (4, 2), "streaks": (2, 1)}[what]
        return full if self.is_full else small


@dataclass(frozen=True, slots=True)
class SimExposure:
    """One exposure of the plan and the conditions under which it was taken.

    ``jd`` is OBSJD, ``jd_mid`` the middle between the shutter's opening and closing. ``seeing`` is the FWHM in
    px, pixel included. ``transparency`` is in mag (0: clear). ``sky`` is DN per pixel, ``gradient`` its
    relative slope over half a quadrant in x and y. ``error`` is the pointing error (xi, eta; deg), ``rotation``
    deg. ``role`` is cal, ref or sci.
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
def _fields() -> dict[int, tuple[float, float]]:
    text = resources.files("stream.core").joinpath("data/fields.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {int(row["field"]): (float(row["ra"]), float(row["dec"])) for row in rows}


def field_centre(field: int) -> tuple[float, float]:
    """Centre (deg) of a field of the survey's grid; ``UsageError`` for a number that is not in it."""
    try:
        return _fields()[field]
    except KeyError:
        raise UsageError(f"field {field} is not in the survey's grid") from None


def _time(midnight: float, seconds: float) -> tuple[float, str]:
    """Start on a tick of the name's clock, and the name's time stamp."""
    ticks = round(seconds / 86_400.0 * NAME_TICKS)
    day, tick = divmod(ticks, NAME_TICKS)
    jd = midnight + day + tick / NAME_TICKS
    return jd, f"{identity.utc_of(midnight + day + 0.5):%Y%m%d}{tick:06d}"


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


def _on_sky(plan: NightPlan, role: str, index: int, midnight: float, seconds: float) -> SimExposure:
    """One exposure of the field with its own seeing, sky, guiding and transparency."""
    jd, stamp = _time(midnight, seconds)
    rng = seeded(plan.seed, "exposure", identity.expid_of(jd))
    ra, dec = field_centre(plan.field)
    xi, eta, rotation = common_error(plan)
    guiding = rng.normal(0, 4.0 / 3600.0, 2)
    low, high = plan.seeing
    if role == "ref":
        high = 0.5 * (low + high)
    transparency = abs(rng.normal(0, 0.03))
    cloud = rng.uniform(0, plan.cloud) if role == "sci" else 0.0
    dark = (plan.sky if plan.sky is not None else DARK_SKY[plan.fid]) * plan.exptime / 30.0
    return SimExposure(
        role=role,
        imgtype="object",
        index=index,
        field=plan.field,
        fid=plan.fid,
        jd=jd,
        exptime=plan.exptime,
        programid=plan.programid,
        stamp=stamp,
        ra=ra,
        dec=dec,
        airmass=round(1.0 + rng.uniform(0.05, 0.5), 3),
        seeing=rng.uniform(low, high),
        transparency=transparency + cloud,
        sky=dark * rng.uniform(0.85, 1.2),
        gradient=(rng.normal(0, 0.02), rng.normal(0, 0.02)),
        error=(xi + guiding[0], eta + guiding[1]),
        rotation=rotation + rng.normal(0, 0.002),
    )


def schedule(plan: NightPlan) -> tuple[SimExposure, ...]:
    """All exposures of the plan in time order: calibration, references, science."""
    reference_days = [1.0 + 14.0 * (1 - (i + 1) / plan.n_reference) for i in range(plan.n_reference)]
    nights = [plan.midnight - round(day) for day in reference_days]
    first = min([*nights, plan.midnight])
    exposures: list[SimExposure] = []
    hour = 0.6 * 3600.0  # the afternoon at Palomar, before any sky exposure
    for imgtype, count, exptime in (
        ("bias", plan.n_bias, 0.0),
        ("dark", plan.n_dark, 30.0),
        ("flat", plan.n_flat, 10.0),
    ):
        for i in range(count):
            jd, stamp = _time(first, hour)
            hour += 25.0 + exptime
            level = seeded(plan.seed, "lamp", identity.expid_of(jd)).uniform(18_000, 22_000)
            fid = plan.fid
            exposures.append(
                SimExposure("cal", imgtype, i, 0, fid, jd, exptime, 0, stamp, level=level if imgtype == "flat" else 0.0)
            )
    per_night: dict[float, int] = {}
    for i, midnight in enumerate(nights):
        k = per_night[midnight] = per_night.get(midnight, -1) + 1
        exposures.append(_on_sky(plan, "ref", i, midnight, 6.1 * 3600.0 + 61.3 * i + k * plan.cadence))
    for i in range(plan.n_science):
        exposures.append(_on_sky(plan, "sci", i, plan.midnight, 5.05 * 3600.0 + i * plan.cadence))
    exposures.sort(key=lambda exposure: exposure.jd)
    if len({exposure.expid for exposure in exposures}) < len(exposures):
        raise UsageError("two exposures would start in the same second: choose another cadence")
    return tuple(exposures)


def zeropoint(plan: NightPlan, exposure: SimExposure, rcid: int) -> tuple[float, float]:
    """True MAGZP and CLRCOEFF of a quadrant of an exposure: m_PS1 - m_inst = MAGZP + CLRCOEFF x colour."""
    rng = seeded(plan.seed, "zeropoint", rcid, exposure.fid)
    magzp = (
        BASE_ZEROPOINT[exposure.fid]
        + 2.5 * math.log10(exposure.exptime / 30.0)
        - EXTINCTION[exposure.fid] * (exposure.airmass - 1.0)
        - exposure.transparency
        + rng.normal(0, 0.03)
    )
    return magzp, COLOUR_TERM[exposure.fid] + rng.normal(0, 0.004)


def telescope_pointing(exposure: SimExposure) -> tuple[float, float]:
    """Where the telescope really looked (deg): the nominal pointing moved by the pointing error."""
    return deproject(exposure.ra, exposure.dec, *exposure.error)
