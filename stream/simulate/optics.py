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
from stream.simulate.plan import NightPlan, SimExposure, seeded
from stream.simulate.pointing import telescope_pointing

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Terms of the TPV convention that the survey's headers carry, as powers of the axis' own and the other coordinate.
TPV_TERMS = {4: (2, 0), 5: (1, 1), 6: (0, 2), 7: (3, 0), 8: (2, 1), 9: (1, 2), 10: (0, 3),
             12: (4, 0), 13: (3, 1), 14: (2, 2), 15: (1, 3), 16: (0, 4)}  # fmt: skip
BETA_CORE = 3.0  # Moffat exponent of the seeing disc: (1 + q)^-3
BETA_WING = 2.0  # of the aureole, whose light falls as r^-4
WING_FRACTION = 0.02  # of the light
WING_SCALE = 3.0  # aureole scale over the core's
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
    in px and its ellipticity.
    """

    shape: tuple[int, int]
    alpha: tuple[float, ...]
    e1: tuple[float, ...]
    e2: tuple[float, ...]

    def at(self, x: ArrayLike, y: ArrayLike) -> tuple[F64, F64, F64]:
        """Scale (px) and ellipticity components at places (px)."""
        ny, nx = self.shape
        u = np.clip((np.asarray(x, float) - (nx - 1) / 2) / (nx / 2), -1.2, 1.2)
        v = np.clip((np.asarray(y, float) - (ny - 1) / 2) / (ny / 2), -1.2, 1.2)
        terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)
        return terms @ np.array(self.alpha), terms @ np.array(self.e1), terms @ np.array(self.e2)

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
        """Pixel values of unit-flux stars, (n, size, size), on the pixel nearest to each place."""
        half = size // 2
        grid = np.arange(-half, half + 1, dtype=np.float64)
        dx = (grid[None, :] - (x - np.rint(x))[:, None]).astype(np.float32)
        dy = (grid[None, :] - (y - np.rint(y))[:, None]).astype(np.float32)
        a, b, c = (part.astype(np.float32)[:, None] for part in self.quadratic(x, y))
        out = np.zeros((len(x), size, size), np.float32)
        nodes = zip(_NODES, _WEIGHTS, strict=True)
        for node_x, weight_x in nodes:
            for node_y, weight_y in zip(_NODES, _WEIGHTS, strict=True):
                out += np.float32(weight_x * weight_y) * _profile(
                    dx + np.float32(node_x), dy + np.float32(node_y), a, b, c
                )
        total = np.sqrt(a * c - b * b / 4).astype(np.float64)[:, 0] / self.core_fraction(x, y)
        out *= total.astype(np.float32)[:, None, None]
        return out


def _profile(dx: F32, dy: F32, a: F32, b: F32, c: F32) -> F32:
    """The profile (n, size, size) that integrates to ``1 / sqrt(ac - b^2/4)``."""
    q = (a * dx * dx)[:, None, :] + (c * dy * dy)[:, :, None]
    q += (b * dx)[:, None, :] * dy[:, :, None]
    core = 1.0 / (1.0 + q)
    wing = 1.0 / (1.0 + q * np.float32(1.0 / WING_SCALE**2))
    core = core * core * core * np.float32((1 - WING_FRACTION) * (BETA_CORE - 1) / math.pi)
    wing *= wing
    wing *= np.float32(WING_FRACTION * (BETA_WING - 1) / (math.pi * WING_SCALE**2))
    out: F32 = core + wing
    return out


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


def psf_field(plan: NightPlan, exposure: SimExposure, rcid: int) -> PsfField:
    """The PSF of a quadrant of an exposure: the exposure's seeing at the centre, a few percent of variation.

    Focus curvature and ellipticity belong mostly to the place in the focal plane and a little to the exposure.
    """
    alphas, fwhms, _ = _tables()
    alpha = float(np.interp(exposure.seeing, fwhms, alphas))
    fixed = seeded(plan.seed, "focus", rcid)
    moving = seeded(plan.seed, "guiding", exposure.expid)
    slope = fixed.normal(0, 0.012, 5) + moving.normal(0, 0.004, 5)
    guiding = moving.normal(0, 0.012, 2)
    e1 = fixed.normal(0, 0.012, 6)
    e2 = fixed.normal(0, 0.012, 6)
    e1[0] += guiding[0]
    e2[0] += guiding[1]
    return PsfField(
        plan.camera.shape,
        (alpha, *(alpha * float(value) for value in slope)),
        tuple(float(value) for value in e1),
        tuple(float(value) for value in e2),
    )


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
