"""Streaks: painted trails of known length, angle and flux, and empty noise."""

from __future__ import annotations

import math

import extract_scene as scene
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from scipy.optimize import least_squares

from stream.extract import STREAK_VERSION, StreakSettings, find_streaks
from stream.extract.streaks import find_clumps
from stream.extract.trail import Line, best_extent, trail_profile
from stream.extract.trailkernels import fit_ends, score_along, weighed_places

SHAPE = (512, 512)


def painted_trail(shape, line: Line, flux: float) -> np.ndarray:
    """Many point sources along a segment: nothing of the finder's own model is in it."""
    n = max(int(line.length * 5), 2)
    t = (np.arange(n) + 0.5) / n
    x, y = line.x1 + t * (line.x2 - line.x1), line.y1 + t * (line.y2 - line.y1)
    return scene.point_sources(shape, x, y, np.full(n, flux / n))


def segment(cx: float, cy: float, length: float, angle: float) -> Line:
    hx, hy = 0.5 * length * math.cos(angle), 0.5 * length * math.sin(angle)
    return Line(cx - hx, cy - hy, cx + hx, cy + hy)


def trail_error(length: float) -> float:
    """Theoretical flux error of a trail, DN."""
    image = painted_trail((401, 401), segment(200, 200, length, 0.0), 1.0)
    return scene.SIGMA / math.sqrt(float(np.sum(image**2)))


def ends(streak, wcs) -> Line:
    x, y = wcs.all_world2pix([streak.ra1, streak.ra2], [streak.dec1, streak.dec2], 0)
    return Line(float(x[0]), float(y[0]), float(x[1]), float(y[1]))


@pytest.mark.parametrize(
    ("length", "snr", "fraction"), [(8, 15, 0.9), (20, 12, 0.9), (60, 15, 0.9), (150, 20, 0.9), (280, 30, 0.99)]
)
def test_trails_are_found_with_true_length_angle_and_flux(length, snr, fraction):
    rng = np.random.default_rng(length)
    science = scene.science_of(SHAPE)
    flux = snr * trail_error(length)
    step = 100 if length < 80 else 170
    recovered, total, angles, lengths, fluxes = 0, 0, [], [], []
    for seed in range(2):
        lines = [
            segment(
                256 + rng.uniform(-1, 1) if length > 80 else 70 + step * i + rng.uniform(-1, 1),
                80 + step * j + rng.uniform(-1, 1),
                length,
                rng.uniform(0, math.pi) if length < 80 else rng.uniform(-0.2, 0.2),
            )
            for i in range(4 if length < 80 else 1)
            for j in range(4 if length < 80 else 3)
        ]
        signal = sum((painted_trail(SHAPE, line, flux) for line in lines), np.zeros(SHAPE))
        streaks = find_streaks(science, scene.difference_of(signal, seed=seed))
        assert len(streaks) <= len(lines) + 1
        total += len(lines)
        for line in lines:
            middle = (0.5 * (line.x1 + line.x2), 0.5 * (line.y1 + line.y2))
            for streak in streaks:
                seen = ends(streak, science.astrometry.wcs)
                if math.hypot(0.5 * (seen.x1 + seen.x2) - middle[0], 0.5 * (seen.y1 + seen.y2) - middle[1]) < 4:
                    recovered += 1
                    true = math.atan2(line.y2 - line.y1, line.x2 - line.x1)
                    mine = math.atan2(seen.y2 - seen.y1, seen.x2 - seen.x1)
                    angles.append((math.degrees(mine - true) + 90) % 180 - 90)
                    lengths.append((streak.length - length) / streak.sig_length)
                    fluxes.append((streak.flux - flux) / streak.sigflux)
    assert recovered >= fraction * total
    assert abs(np.median(lengths)) < 2
    assert np.std(lengths) < 2
    assert np.std(angles) < math.degrees(3.0 * 2.5 / length / snr * 2.5)
    assert abs(np.median(fluxes)) < 1


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_streaks(seed):
    shape = (1024, 1024)
    assert find_streaks(scene.science_of(shape), scene.difference_of(np.zeros(shape), seed=seed)) == []


def test_point_sources_are_not_streaks():
    x, y = scene.grid_places(SHAPE, 40, 5)
    flux = np.geomspace(10, 500, len(x)) * scene.flux_error()
    difference = scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=5)
    assert find_streaks(scene.science_of(SHAPE), difference) == []


@pytest.mark.parametrize("snr", [10, 15, 40])
def test_stars_in_a_row_are_not_streaks(snr):
    x = np.array([80.0, 110.0, 150.0, 170.0, 215.0, 240.0, 262.0])
    flux = np.full(len(x), snr * scene.flux_error())
    difference = scene.difference_of(scene.point_sources(SHAPE, x, 0.3 * x + 100, flux), seed=5)
    assert find_streaks(scene.science_of(SHAPE), difference) == []


def test_sky_angle_identity_and_sign():
    science = scene.science_of(SHAPE)
    line = segment(256, 256, 40, 0.6)
    signal = painted_trail(SHAPE, line, -60 * trail_error(40))
    difference = scene.difference_of(signal, seed=1)
    assert find_streaks(science, difference) == []
    (streak,) = find_streaks(science, difference, StreakSettings(negative=True))
    assert streak.flux == pytest.approx(-60 * trail_error(40), rel=0.1)
    assert streak.mag == pytest.approx(scene.ZP - 2.5 * math.log10(-streak.flux))
    assert streak.candid == science.quadrant.pid * 10**6 + STREAK_VERSION * 10**4
    a = SkyCoord(streak.ra1 * u.deg, streak.dec1 * u.deg)
    b = SkyCoord(streak.ra2 * u.deg, streak.dec2 * u.deg)
    assert streak.angle == pytest.approx(a.position_angle(b).deg % 180, abs=0.1)
    assert a.separation(b).arcsec == pytest.approx(40 * 1.0125, rel=0.03)
    assert 0 <= streak.angle < 180
    assert math.isnan(streak.score)


def test_a_trail_across_a_hole_and_off_the_edge():
    science = scene.science_of(SHAPE)
    signal = painted_trail(SHAPE, segment(256, 256, 80, 0.3), 80 * trail_error(80))
    signal += painted_trail(SHAPE, segment(505, 100, 60, 0.1), 80 * trail_error(60))
    difference = scene.difference_of(signal, seed=1)
    for image in (difference.data, difference.scorr):
        image[250:260, 253:258] = np.nan
    streaks = find_streaks(science, difference)
    lengths = sorted(s.length for s in streaks)
    assert len(streaks) == 2
    assert lengths[1] == pytest.approx(80, abs=3)
    assert lengths[0] == pytest.approx(36.5, abs=3)  # what of it is on the image


def test_the_trail_model_has_unit_flux_and_clumps_are_connected():
    y, x = np.mgrid[0:101, 0:101].astype(float)
    assert trail_profile(x, y, Line(30.2, 40.7, 70.9, 61.0), 1.1).sum() == pytest.approx(1.0, abs=1e-6)
    score = np.zeros((20, 30), np.float32)
    score[5, 3:9] = 5.0
    score[6, 9] = 4.0  # touches by its corner
    score[10, 29], score[11, 0] = 9.0, 9.0  # neighbours in memory only
    clumps = find_clumps(score, 3.0, 1)
    assert sorted(clumps.n.tolist()) == [1, 1, 7]
    assert find_clumps(score, 3.0, -1).n.tolist() == []


def test_the_best_extent_is_the_bright_run():
    row = np.zeros(200)
    row[60:100] = 1.0
    i, j, score = best_extent(row, 150)
    assert abs(i - 60) <= 4
    assert abs(j - 100) <= 4
    assert score == pytest.approx(math.sqrt(40), rel=0.05)


def trail_pixels(ends: tuple[float, ...], flux: float) -> tuple[np.ndarray, ...]:
    """Pixels x, y, a noisy trail over its noise, and the noise."""
    rng = np.random.default_rng(7)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(40.0), np.arange(30.0)))
    noise = rng.uniform(0.8, 1.3, len(x))
    return x, y, flux * trail_profile(x, y, Line(*ends), 1.1) / noise + rng.normal(size=len(x)), noise


BOUNDS = np.array([[-0.5] * 4, [39.5, 29.5, 39.5, 29.5]])
ENDS = [(8.3, 5.1, 25.7, 18.2), (30.0, 20.0, 10.0, 20.0), (12.0, 4.0, 12.0, 26.0)]


@pytest.mark.parametrize("ends", ENDS)
def test_the_normal_matrix_of_a_trail_is_that_of_its_profile(ends: tuple[float, ...]) -> None:
    x, y, data, noise = pixels = trail_pixels(ends, 900.0)
    normal, at = np.empty((5, 5)), np.array(ends)
    settled, flux = fit_ends(pixels, 1.1, at, BOUNDS, (0, 20.0, 5e-3), normal)
    profile = trail_profile(x, y, Line(*ends), 1.1) / noise
    assert not settled  # it was given no step
    assert flux == pytest.approx(profile @ data / (profile @ profile))
    jacobian = [profile]
    for k in range(4):
        step = 1e-5 * (np.arange(4) == k)
        up, down = (trail_profile(x, y, Line(*(at + s)), 1.1) / noise for s in (step, -step))
        jacobian.append(flux * (up - down) / 2e-5)
    expected = np.array(jacobian) @ np.array(jacobian).T
    assert np.allclose(normal, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("ends", ENDS)
def test_a_trails_ends_are_those_of_a_general_solver(ends: tuple[float, ...]) -> None:
    x, y, data, noise = pixels = trail_pixels(ends, 900.0)
    start = np.add(ends, (1.3, -0.8, -0.9, 1.1))
    fitted, normal = start.copy(), np.empty((5, 5))
    settled, flux = fit_ends(pixels, 1.1, fitted, BOUNDS, (16, 20.0, 5e-3), normal)
    assert settled

    def residual(p: np.ndarray) -> np.ndarray:
        return data - p[0] * trail_profile(x, y, Line(*p[1:]), 1.1) / noise

    best = least_squares(residual, [800.0, *start], x_scale=[100.0, 1, 1, 1, 1])
    errors = 1 / np.sqrt(np.diag(best.jac.T @ best.jac))
    assert (np.abs(np.array([flux, *fitted]) - best.x) < 0.05 * errors).all()
    assert np.allclose(np.sqrt(np.diag(np.linalg.inv(normal))), np.sqrt(np.diag(np.linalg.inv(best.jac.T @ best.jac))),
                       rtol=0.02)  # fmt: skip


def test_pixels_beside_a_line_are_those_that_numpy_takes() -> None:
    rng = np.random.default_rng(3)
    score = rng.normal(size=(60, 80)).astype(np.float32)
    score[rng.random(score.shape) < 0.05] = np.nan
    x, y, ux, uy = 50.3, 30.8, math.cos(0.7), math.sin(0.7)  # it leaves the image on both sides
    row, known = np.empty(201), np.empty(201, bool)
    score_along(score, x, y, ux, uy, row, known)
    steps, side = np.arange(-100, 101), np.array([-1, 0, 1])[:, None]
    px = np.rint(x + steps * ux - side * uy).astype(int)
    py = np.rint(y + steps * uy + side * ux).astype(int)
    inside = (px >= 0) & (px < 80) & (py >= 0) & (py < 60)
    band = np.where(inside, score[py.clip(0, 59), px.clip(0, 79)], np.nan)
    assert np.allclose(row, np.nan_to_num(band).mean(axis=0), atol=1e-6)
    assert np.array_equal(known, np.isfinite(band[1]))
    total, mx, my, cxx, cyy, cxy = weighed_places(score, 20.2, 10.1, 61.7, 55.4, 0.5, 1.5)
    steps = np.linspace(0, 1, int(math.hypot(41.5, 45.3)) + 1)
    ux, uy = np.array([41.5, 45.3]) / math.hypot(41.5, 45.3)
    side = np.arange(-3, 4)[:, None]
    px = np.rint(20.2 + steps * 41.5 - side * uy).astype(int)
    py = np.rint(10.1 + steps * 45.3 + side * ux).astype(int)
    inside = (px >= 0) & (px < 80) & (py >= 0) & (py < 60)
    seen = np.where(inside, score[py.clip(0, 59), px.clip(0, 79)], np.nan)
    weight = np.clip(np.nan_to_num(seen - 0.5), 0, 1.5)
    assert total == pytest.approx(weight.sum(), rel=1e-5)
    assert (mx, my) == pytest.approx(((weight * px).sum() / total, (weight * py).sum() / total), rel=1e-5)
    products = (px - mx) ** 2, (py - my) ** 2, (px - mx) * (py - my)
    assert (cxx, cyy, cxy) == pytest.approx([float((weight * p).sum()) for p in products], rel=1e-4)
