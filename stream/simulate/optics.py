"""Light on its way to the pixels: the distorted WCS of a quadrant and its point spread function."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from stream.core.camera import Camera, deproject, nominal_wcs, quadrant_layout
from stream.core.psf import STAMP
from stream.simulate import almanac
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.pointing import telescope_pointing

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Terms of the TPV convention that the survey's headers carry, as powers of the axis' own and the other coordinate.
TPV_TERMS = {4: (2, 0), 5: (1, 1), 6: (0, 2), 7: (3, 0), 8: (2, 1), 9: (1, 2), 10: (0, 3),
             12: (4, 0), 13: (3, 1), 14: (2, 2), 15: (1, 3), 16: (0, 4)}  # fmt: skip
# Shape of stars in the real cut-outs (docs/simulator.md): a seeing disc (1 + q)^-3.5, and a near aureole.
BETA_CORE = 3.5
BETA_WING = 2.0  # of the aureole, whose light falls as r^-4
WING_FRACTION = 0.014  # of the light
WING_SCALE = 3.0  # aureole scale over the core's
# Focus in um at f/2.4: the blur grows by 1 / 2.4 um per um, seven tenths of which widen the FWHM; 15 um pixels.
FOCUS_ERROR, FOCUS_TILT, CURVATURE, MOUNT = 12.0, 15.0, 80.0, 15.0
DEFOCUS_SCALE = (0.7 / 2.4 / 15.0 / 0.94) ** 2  # px^2 of the core's scale (FWHM = 0.94 alpha) per um^2
ASTIGMATISM = 0.05  # ellipticity at the rim, 20 um out of focus
GUIDING, WARP = 0.045, 0.012  # r.m.s. ellipticity of an exposure; of a detector's own terms
DISPERSION = {1: 170.0, 2: 75.0, 3: 50.0}  # mas r.m.s. over the band and tan z: air.REFRACTION over the bands' widths
COMA, DECENTRE = 0.10, 0.03  # lopsidedness at the rim; of an exposure's misalignment
RIM = 5.0  # deg, the outermost quadrants' corners
VIGNETTING = 0.12  # loss at the rim, to the centre; a Schmidt of 47 deg^2 cannot light its corners fully
VIGNETTING_MEAN = 0.37  # mean of (r / RIM)^2 over the 64 quadrants
FINE = 33  # px, side of the part of a stamp whose pixels are integrated
# Nodes and weights of Gauss-Legendre integration over one pixel.
_NODES, _WEIGHTS = (0.5 * part for part in np.polynomial.legendre.leggauss(3))


@dataclass(frozen=True, slots=True)
class Wcs:
    """The true WCS of a quadrant and its header."""

    wcs: WCS
    header: str  # JSON object of the cards

    def is_near(self, ra: ArrayLike, dec: ArrayLike) -> NDArray[np.bool_]:
        """Whether sky positions (deg) lie within 0.8 sides of the centre, or 0.2 deg if that is more.

        Further out the distortion's polynomial means nothing and cannot be inverted.
        """
        centre_ra, centre_dec = (float(value) for value in self.wcs.wcs.crval)
        east = (np.asarray(ra, float) - centre_ra + 180) % 360 - 180
        east = east * math.cos(math.radians(centre_dec))
        side = 2 * float(max(self.wcs.wcs.crpix)) * math.sqrt(abs(float(np.linalg.det(self.wcs.wcs.cd))))
        near: NDArray[np.bool_] = np.hypot(east, np.asarray(dec, float) - centre_dec) < max(0.8 * side, 0.2)
        return near

    def to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[F64, F64]:
        """Places (px, first is 0) of sky positions (deg)."""
        if np.size(ra) == 0:
            return np.zeros(0), np.zeros(0)
        x, y = self.wcs.all_world2pix(np.asarray(ra, float), np.asarray(dec, float), 0)
        return np.asarray(x), np.asarray(y)

    def to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
        """Sky positions (deg) of places (px, first is 0)."""
        if np.size(x) == 0:
            return np.zeros(0), np.zeros(0)
        ra, dec = self.wcs.all_pix2world(np.asarray(x, float), np.asarray(y, float), 0)
        return np.asarray(ra), np.asarray(dec)


def _distortion(plan: NightPlan, exposure: SimExposure, rcid: int) -> dict[tuple[int, int], float]:
    """TPV coefficients (axis, term): fixed for a quadrant but for a percent that changes between exposures.

    Drawn in units of the quadrant's half side, so that every camera has a visible distortion, and scaled to
    between a half and the whole of the largest shift at a corner: 3" on a full quadrant, 1" on a 512 px one.
    """
    if not plan.effects.distortion:
        return {}
    camera = plan.camera
    half = max(camera.nx, camera.ny) / 2 * camera.pixel_scale / 3600.0
    rng = seeded(plan.seed, "distortion", rcid)
    drift = seeded(plan.seed, "refraction", exposure.expid)
    coefficients: dict[tuple[int, int], float] = {}
    for axis in (1, 2):
        for term, (own, other) in TPV_TERMS.items():
            coefficients[axis, term] = rng.normal() * {2: 1.0, 3: 0.5, 4: 0.3}[own + other]
    corners = [(sx, sy) for sx in (-1, 1) for sy in (-1, 1)]
    worst = max(
        math.hypot(*(_shift(coefficients, axis, u, v) for axis, (u, v) in ((1, (sx, sy)), (2, (sy, sx)))))
        for sx, sy in corners
    )
    largest = min(3.0, 0.6 + 2.4 * camera.nx / 3072.0)
    amplitude = largest * rng.uniform(0.5, 1.0) / 3600.0 / worst
    return {
        (axis, term): value * amplitude * (1 + 0.01 * drift.normal()) / half ** sum(TPV_TERMS[term])
        for (axis, term), value in coefficients.items()
    }


def _shift(coefficients: dict[tuple[int, int], float], axis: int, own: float, other: float) -> float:
    return sum(coefficients[axis, term] * own**i * other**j for term, (i, j) in TPV_TERMS.items())


def quadrant_tangent(plan: NightPlan, rcid: int, error: tuple[float, float], rotation: float) -> tuple[float, float]:
    """Offset (xi, eta; deg) of a quadrant's true centre from the field's nominal centre, nearly."""
    xi, eta = _turned_layout(plan, rcid, rotation)
    return xi + error[0], eta + error[1]


def _turned_layout(plan: NightPlan, rcid: int, rotation: float) -> tuple[float, float]:
    """Place of the quadrant in the focal plane: the table, its own small error, and the camera's rotation."""
    rng = seeded(plan.seed, "layout", rcid)
    scatter = np.clip(rng.normal(0, 0.15 * plan.pointing_error, 2), -0.25 * plan.pointing_error, None)
    xi, eta = quadrant_layout()[rcid] + np.minimum(scatter, 0.25 * plan.pointing_error)
    c, s = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    return float(c * xi - s * eta), float(s * xi + c * eta)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a quadrant lies in the focal plane: its middle (xi east, eta north; deg from where the telescope looks).

    ``turn`` is the camera's rotation, rad. Distortion and projection, some arcsec, are left out.
    """

    camera: Camera
    xi: float
    eta: float
    turn: float

    def of_pixels(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
        """Places in the focal plane (deg) of pixels."""
        scale = self.camera.pixel_scale / 3600.0
        dx = scale * ((self.camera.nx - 1) / 2 - np.asarray(x, float))  # x grows to the west, y to the south
        dy = scale * ((self.camera.ny - 1) / 2 - np.asarray(y, float))
        c, s = math.cos(self.turn), math.sin(self.turn)
        return self.xi + c * dx - s * dy, self.eta + s * dx + c * dy

    def to_pixels(self, east: ArrayLike, north: ArrayLike) -> tuple[F64, F64]:
        """Shifts in px of shifts to the east and north, arcsec."""
        east, north = np.asarray(east, float), np.asarray(north, float)
        c, s = math.cos(self.turn), math.sin(self.turn)
        return -(c * east + s * north) / self.camera.pixel_scale, -(c * north - s * east) / self.camera.pixel_scale

    def pixels_of(self, xi: ArrayLike, eta: ArrayLike) -> tuple[F64, F64]:
        """Pixels, in the quadrant or not, of places in the focal plane (deg)."""
        dx, dy = self.to_pixels(3600 * (np.asarray(xi, float) - self.xi), 3600 * (np.asarray(eta, float) - self.eta))
        return (self.camera.nx - 1) / 2 + dx, (self.camera.ny - 1) / 2 + dy


def quadrant_place(plan: NightPlan, exposure: SimExposure, rcid: int) -> Place:
    """Where a quadrant lies in the focal plane in an exposure."""
    rotation = exposure.rotation if math.isfinite(exposure.rotation) else 0.0
    xi, eta = _turned_layout(plan, rcid, rotation)
    return Place(plan.camera, xi, eta, math.radians(rotation))


def vignetting(xi: ArrayLike, eta: ArrayLike) -> F64:
    """Light that reaches places of the focal plane (deg), 1 in the mean over the camera: less towards its rim."""
    r2 = np.asarray(xi, float) ** 2 + np.asarray(eta, float) ** 2
    return np.asarray(1.0 + VIGNETTING * (VIGNETTING_MEAN - r2 / RIM**2))


def throughput(plan: NightPlan, rcid: int) -> float:
    """Vignetting at the middle of a quadrant; 1 without."""
    return float(vignetting(*quadrant_layout()[rcid])) if plan.effects.vignetting else 1.0


@lru_cache(maxsize=32)
def true_wcs(plan: NightPlan, exposure: SimExposure, rcid: int) -> Wcs:
    """The WCS under which the quadrant is painted: TPV of degree 4, with the exposure's pointing error and rotation."""
    camera = plan.camera
    ra0, dec0 = telescope_pointing(exposure)
    centre = deproject(ra0, dec0, *_turned_layout(plan, rcid, exposure.rotation))
    wcs = nominal_wcs(camera, ra0, dec0, rcid)
    c, s = math.cos(math.radians(exposure.rotation)), math.sin(math.radians(exposure.rotation))
    stretch = 1.0 + seeded(plan.seed, "scale", exposure.expid).normal(0, 2e-5)
    cd = np.array([[c, -s], [s, c]]) @ np.asarray(wcs.wcs.cd) * stretch
    cards: dict[str, object] = {
        "WCSAXES": 2, "CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
        "CRPIX1": camera.crpix[0], "CRPIX2": camera.crpix[1], "CRVAL1": centre[0], "CRVAL2": centre[1],
        "CD1_1": cd[0, 0], "CD1_2": cd[0, 1], "CD2_1": cd[1, 0], "CD2_2": cd[1, 1],
        "PV1_0": 0.0, "PV1_1": 1.0, "PV1_2": 0.0, "PV2_0": 0.0, "PV2_1": 1.0, "PV2_2": 0.0,
    }  # fmt: skip
    for (axis, term), value in _distortion(plan, exposure, rcid).items():
        cards[f"PV{axis}_{term}"] = value
    return wcs_of(cards)


def wcs_of(cards: dict[str, object]) -> Wcs:
    """A WCS from its header cards, e.g. those of the truth table (``json.loads``)."""
    from astropy.io.fits import Header

    header = Header()
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in cards.items()}
    for key, value in plain.items():
        header[key] = value
    return Wcs(WCS(header), json.dumps(plain))


@dataclass(frozen=True, slots=True)
class PsfField:
    """A point spread function that varies slowly over a quadrant: an elliptical Moffat disc with an aureole.

    The profile is known exactly; pixel values are its integral over the pixel. Flux is counted as everywhere
    in this project: a star of flux F puts F into the 25 x 25 px around it, and a little more beyond.

    ``alpha``, ``e1`` and ``e2`` are coefficients of 1, u, v, u^2, uv, v^2 with u, v in -1..1: the core's scale
    in px and its ellipticity. ``coma1`` and ``coma2`` are the same of the core's lopsidedness along x and y, which
    moves neither the flux nor the centroid.
    """

    shape: tuple[int, int]
    alpha: tuple[float, ...]
    e1: tuple[float, ...]
    e2: tuple[float, ...]
    coma1: tuple[float, ...] = (0.0,) * 6
    coma2: tuple[float, ...] = (0.0,) * 6

    def as_dict(self) -> dict[str, tuple[float, ...]]:
        """The coefficients, for JSON."""
        return {name: getattr(self, name) for name in ("alpha", "e1", "e2", "coma1", "coma2")}

    def _terms(self, x: ArrayLike, y: ArrayLike) -> F64:
        ny, nx = self.shape
        u = np.clip((np.asarray(x, float) - (nx - 1) / 2) / (nx / 2), -1.2, 1.2)
        v = np.clip((np.asarray(y, float) - (ny - 1) / 2) / (ny / 2), -1.2, 1.2)
        return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)

    def at(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64]:
        """Scale (px) and ellipticity components at places (px)."""
        terms = self._terms(x, y)
        return terms @ np.array(self.alpha), terms @ np.array(self.e1), terms @ np.array(self.e2)

    def coma(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64]:
        """Lopsidedness along x and y at places (px), per px of offset."""
        terms = self._terms(x, y)
        alpha = terms @ np.array(self.alpha)
        return terms @ np.array(self.coma1) / alpha, terms @ np.array(self.coma2) / alpha

    def quadratic(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64]:
        """Coefficients a, b, c of the core's q = a dx^2 + b dx dy + c dy^2."""
        alpha, e1, e2 = self.at(x, y)
        norm = 1.0 / (alpha**2 * np.sqrt(1.0 - e1**2 - e2**2))
        return norm * (1 - e1), norm * (-2 * e2), norm * (1 + e1)

    def fwhm(self, x: ArrayLike, y: ArrayLike) -> F64:
        """FWHM at places in px, pixel included."""
        alphas, fwhms, _ = _tables()
        return np.interp(self.at(x, y)[0], alphas, fwhms)

    def core_fraction(self, x: ArrayLike, y: ArrayLike) -> F64:
        """Share of all light inside the central 25 x 25 px."""
        alphas, _, fractions = _tables()
        return np.interp(self.at(x, y)[0], alphas, fractions)

    def stamps(self, x: F64, y: F64, size: int) -> F32:
        """Pixel values of unit-flux stars, (n, size, size), on the pixel nearest to each place.

        Within ``FINE`` px the core is integrated over every pixel (9 nodes); the aureole, and what lies further out,
        is smooth enough for its value at the pixel's centre.
        """
        a, b, c = (part.astype(np.float32)[:, None] for part in self.quadratic(x, y))
        kx, ky = (part.astype(np.float32)[:, None] for part in self.coma(x, y))
        root = np.sqrt(a * c - b * b / 4)
        total = root[:, 0] / self.core_fraction(x, y).astype(np.float32)
        dx, dy = (_offsets(place, size) for place in (x, y))
        q = _quadratic(dx, dy, a, b, c)
        out = _aureole(q, root)
        fine = slice((size - FINE) // 2, (size + FINE) // 2) if size > FINE else slice(None)
        if size > FINE:
            out += _core(q, None)
            out[:, fine, fine] = _aureole(q[:, fine, fine], root)
            dx, dy = dx[:, fine], dy[:, fine]
        lopsided = bool(kx.any() or ky.any())
        core = np.zeros((len(x), dx.shape[1], dy.shape[1]), np.float32)
        for node_x, weight_x in zip(_NODES, _WEIGHTS, strict=True):
            for node_y, weight_y in zip(_NODES, _WEIGHTS, strict=True):
                ex, ey = dx + np.float32(node_x), dy + np.float32(node_y)
                slope = (kx * ex)[:, None, :] + (ky * ey)[:, :, None] if lopsided else None
                part = _core(_quadratic(ex, ey, a, b, c), slope)
                part *= np.float32(weight_x * weight_y)
                core += part
        out[:, fine, fine] += core
        out *= total[:, None, None]
        return out


def _offsets(place: F64, size: int) -> F32:
    """Offsets (n, size) of a stamp's pixels from the star along one axis."""
    grid = np.arange(-(size // 2), size // 2 + 1, dtype=np.float64)
    return (grid[None, :] - (place - np.rint(place))[:, None]).astype(np.float32)


def _quadratic(dx: F32, dy: F32, a: F32, b: F32, c: F32) -> F32:
    """q = a dx^2 + b dx dy + c dy^2, (n, ny, nx)."""
    q = (b * dx)[:, None, :] * dy[:, :, None]
    q += (a * dx * dx)[:, None, :]
    q += (c * dy * dy)[:, :, None]
    return q


def _core(q: F32, slope: F32 | None) -> F32:
    """The seeing disc, which integrates to ``(1 - WING_FRACTION) / sqrt(ac - b^2/4)``; ``slope`` is its lopsidedness.

    The odd factor 1 + slope (1 - c q) / (1 + q)^2 has no flux, and with c = (BETA_CORE - 1) / 2 no first moment.
    """
    inverse = np.float32(1.0) / (q + np.float32(1.0))
    square: F32 = inverse * inverse
    out: F32 = square * inverse
    out *= np.sqrt(inverse)  # BETA_CORE of 3.5
    out *= np.float32((1 - WING_FRACTION) * (BETA_CORE - 1) / math.pi)
    if slope is not None:
        square *= slope
        square *= np.float32(1.0) - np.float32((BETA_CORE - 1) / 2) * q
        square += np.float32(1.0)
        out *= square
    return out


def _aureole(q: F32, g: F32) -> F32:
    """The near aureole in pixels, which integrates to ``WING_FRACTION / sqrt(ac - b^2/4)``; ``g`` is that root (n, 1).

    A pixel's mean is the value at its centre and a 24th of the Laplacian.
    """
    scaled = q * np.float32(1.0 / WING_SCALE**2)
    square = np.float32(1.0) / (scaled + np.float32(1.0))
    square *= square
    scaled *= np.float32(2.0)
    scaled -= np.float32(1.0)
    scaled *= square
    scaled *= (g * np.float32(1 / (3 * WING_SCALE**2)))[:, :, None]
    scaled += np.float32(1.0)
    scaled *= square
    scaled *= np.float32(WING_FRACTION * (BETA_WING - 1) / (math.pi * WING_SCALE**2))
    return scaled


@lru_cache(maxsize=1)
def _tables() -> tuple[F64, F64, F64]:
    """Core scale -> FWHM with the pixel, and -> share of the light in 25 x 25 px, for round PSFs."""
    alphas = np.linspace(0.5, 9.0, 120)
    fwhms, fractions = [], []
    offsets = np.linspace(0, 14.0, 561)
    nodes, weights = (0.5 * part for part in np.polynomial.legendre.leggauss(6))
    # A quarter of the square is enough, and the nodes crowd at the peak.
    fine = np.polynomial.legendre.leggauss(120)
    for alpha in alphas:
        # Cut through the centre of the profile integrated over a pixel.
        gx, gy = np.meshgrid(nodes, nodes)
        r2 = (offsets[:, None, None] + gx) ** 2 + gy**2
        cut = (_radial(r2, alpha) * np.outer(weights, weights)).sum(axis=(1, 2))
        fwhms.append(2 * np.interp(-0.5 * cut[0], -cut, offsets))
        t, w = (fine[0] + 1) * STAMP / 4, fine[1] * STAMP / 4
        fractions.append(4 * float((_radial(t[:, None] ** 2 + t[None, :] ** 2, alpha) * np.outer(w, w)).sum()))
    return alphas, np.array(fwhms), np.array(fractions)


def _radial(r2: F64, alpha: float) -> F64:
    """Profile of unit integral at squared radius ``r2``."""
    q = r2 / alpha**2
    core = (1 - WING_FRACTION) * (BETA_CORE - 1) / (math.pi * alpha**2) * (1 + q) ** -BETA_CORE
    wing = (WING_FRACTION * (BETA_WING - 1) / (math.pi * (WING_SCALE * alpha) ** 2)
            * (1 + q / WING_SCALE**2) ** -BETA_WING)  # fmt: skip
    return core + wing


@dataclass(frozen=True, slots=True)
class Focus:
    """State of the telescope in an exposure: focus error and tilts of the focal plane (um; um at the rim), guiding.

    ``guiding`` is the ellipticity that the whole camera shares, ``decentre`` its coma.
    """

    error: float
    tilt: tuple[float, float]
    guiding: tuple[float, float]
    decentre: tuple[float, float]


def focus_of(plan: NightPlan, exposure: SimExposure) -> Focus:
    """Focus, alignment and guiding of an exposure."""
    rng = seeded(plan.seed, "guiding", exposure.expid)
    e, c, t = rng.normal(0, GUIDING, 2), rng.normal(0, DECENTRE, 2), rng.normal(0, FOCUS_TILT, 2)
    return Focus(
        float(rng.normal(0, FOCUS_ERROR)), (float(t[0]), float(t[1])), (float(e[0]), float(e[1])),
        (float(c[0]), float(c[1])),
    )  # fmt: skip


def defocus(plan: NightPlan, focus: Focus, rcid: int, xi: F64, eta: F64) -> F64:
    """Distance of the detector from the best focus (um) at places of the focal plane (deg).

    The exposure's focus error and tilt, the curvature that the field flattener leaves, and how the CCD is mounted.
    """
    mount = seeded(plan.seed, "mount", rcid // 4).normal(0, MOUNT, 3)
    r2 = (xi**2 + eta**2) / RIM**2
    own = mount[0] + (mount[1] * (xi - xi.mean()) + mount[2] * (eta - eta.mean())) / 0.43
    tilt = (focus.tilt[0] * xi + focus.tilt[1] * eta) / RIM
    return np.asarray(focus.error + CURVATURE * (r2 - VIGNETTING_MEAN) + tilt + own)


def parallactic_angle(jd: float, ra: float, dec: float) -> float:
    """Direction of the zenith at a sky position (deg), rad from north through east."""
    a, d = math.radians(ra), math.radians(dec)
    up = almanac.zenith(jd)
    east = float(up @ np.array([-math.sin(a), math.cos(a), 0.0]))
    north = float(up @ np.array([-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)]))
    return math.atan2(east, north)


def dispersion(plan: NightPlan, exposure: SimExposure, alpha: float) -> tuple[float, float]:
    """Ellipticity by the air's dispersion, which draws every star out towards the zenith."""
    if not plan.effects.refraction:
        return 0.0, 0.0
    # A Moffat disc's second moment diverges slowly; as a Gaussian of its FWHM it has sigma = 0.4 alpha.
    drawn = DISPERSION[exposure.fid] / 1000.0 / plan.camera.pixel_scale
    size = drawn**2 * max(exposure.airmass**2 - 1.0, 0.0) / (2 * (0.4 * alpha) ** 2)
    angle = parallactic_angle(exposure.jd_mid, exposure.ra, exposure.dec)
    return -size * math.cos(2 * angle), size * math.sin(2 * angle)


def psf_field(plan: NightPlan, exposure: SimExposure, rcid: int) -> PsfField:
    """The PSF of a quadrant of an exposure: seeing, defocus, astigmatism, coma, guiding, the air's dispersion.

    Defocus adds to the seeing in quadrature, what it adds in the mean over the camera is taken off, so that the
    exposure's seeing is the camera's. Astigmatism lies along the radius on one side of the focus and across it on the
    other; coma points outwards. Over a quadrant all are quadratics, fitted to their values on a grid of places.
    """
    alphas, fwhms, _ = _tables()
    alpha = float(np.interp(exposure.seeing, fwhms, alphas))
    flat = (0.0,) * 5
    if not plan.effects.psf_variation:
        return PsfField(plan.camera.shape, (alpha, *flat), (0.0, *flat), (0.0, *flat))
    focus = focus_of(plan, exposure)
    place = quadrant_place(plan, exposure, rcid)
    u, v = (part.ravel() for part in np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)))
    ny, nx = plan.camera.shape
    xi, eta = place.of_pixels((nx - 1) / 2 + u * nx / 2, (ny - 1) / 2 + v * ny / 2)
    z = defocus(plan, focus, rcid, xi, eta)
    typical = FOCUS_ERROR**2 + (0.2 * CURVATURE) ** 2 + MOUNT**2 + 0.3 * FOCUS_TILT**2
    width = alpha**2 + DEFOCUS_SCALE * (z**2 - typical)
    own = seeded(plan.seed, "focus", rcid)
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    # How a detector is bent is its own: percents, whatever its size.
    sizes = np.sqrt(np.maximum(width, (0.8 * alpha) ** 2)) * (1 + terms[:, 1:] @ own.normal(0, WARP, 5))
    # Offsets from the axis in detector directions: x to the west, y to the south.
    px, py = -xi / RIM, -eta / RIM
    astigmatism = ASTIGMATISM * z / 20.0
    spread = dispersion(plan, exposure, alpha)
    e1 = astigmatism * (px**2 - py**2) + focus.guiding[0] + spread[0] + terms @ own.normal(0, WARP, 6)
    e2 = astigmatism * 2 * px * py + focus.guiding[1] + spread[1] + terms @ own.normal(0, WARP, 6)
    coma1, coma2 = COMA * px + focus.decentre[0], COMA * py + focus.decentre[1]

    def quadratic(values: F64) -> tuple[float, ...]:
        return tuple(float(value) for value in np.linalg.lstsq(terms, values, rcond=None)[0])

    shapes = (quadratic(values) for values in (sizes, e1, e2, coma1, coma2))
    return PsfField(plan.camera.shape, *shapes)


def noise_area(fwhm: float) -> float:
    """Noise-equivalent area (px) of a PSF of that FWHM: a background-limited flux error is sigma_px sqrt(area)."""
    field = PsfField(
        (101, 101), (float(np.interp(fwhm, _tables()[1], _tables()[0])), *[0.0] * 5), (0.0,) * 6, (0.0,) * 6
    )
    stamp = field.stamps(np.array([50.0]), np.array([50.0]), STAMP)[0].astype(np.float64)
    return float(1.0 / (stamp**2).sum())


def smaller(camera: Camera, nx: int, ny: int) -> Camera:
    """A camera of other quadrant size, for tests."""
    return replace(camera, name=f"{nx}x{ny}", nx=nx, ny=ny)
