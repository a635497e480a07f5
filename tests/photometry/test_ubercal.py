"""Relative photometry against simulated light curves: exposures' errors found, bright stars repeat to a few mmag."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.errors import PhotometryError
from stream.core.records import SOURCE_DTYPE, ZeroPoint, ZeroPointMap
from stream.photometry import Observations, observations, solve_relative

F64 = NDArray[np.float64]
SHAPE = (3080, 3072)
FLOOR = 0.005  # mag, what every measurement scatters beyond its photons
N_EPOCHS, N_STARS = 30, 400
VARIABLES = 12


def light_curves(seed: int, *, tilt: float = 0.0, zeros: float = 0.02) -> tuple[Observations, F64, F64]:
    """Observations, the exposures' true errors, and the true magnitudes of the stars; some stars vary, some points are
    wrong, some stars are not always seen."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(14, 20.5, N_STARS)
    x, y = rng.uniform(0, SHAPE[1] - 1, N_STARS), rng.uniform(0, SHAPE[0] - 1, N_STARS)
    zero, slopes = rng.normal(0, zeros, N_EPOCHS), rng.normal(0, tilt, (N_EPOCHS, 2))
    epoch, star = (g.ravel() for g in np.meshgrid(np.arange(N_EPOCHS), np.arange(N_STARS)))
    seen = rng.random(len(epoch)) < 0.9
    epoch, star = epoch[seen], star[seen]
    sigma = 0.002 * 10 ** (0.3 * (true[star] - 14))
    u, v = 2 * x[star] / (SHAPE[1] - 1) - 1, 2 * y[star] / (SHAPE[0] - 1) - 1
    mag = true[star] + zero[epoch] + slopes[epoch, 0] * u + slopes[epoch, 1] * v
    mag += rng.normal(0, 1, len(mag)) * np.hypot(sigma, FLOOR)
    mag[star < VARIABLES] += 0.3 * np.sin(epoch[star < VARIABLES] * 1.7 + star[star < VARIABLES])
    wrong = rng.random(len(mag)) < 0.01
    mag[wrong] += rng.normal(0, 1.0, wrong.sum())
    mag[rng.random(len(mag)) < 0.005] = np.nan
    return Observations(epoch, star, mag, sigma, x[star], y[star], N_EPOCHS, N_STARS), zero, true


def test_exposures_errors_are_found_and_bright_stars_repeat() -> None:
    seen, zero, true = light_curves(1)
    found = solve_relative(seen, SHAPE)
    error = found.zero - (zero - zero.mean())
    assert np.std(error) < 0.001
    assert 0.7 < np.std((error - error.mean()) / found.zero_sigma) < 1.4
    assert found.floor == pytest.approx(FLOOR, rel=0.15)
    bright = (true < 17) & (np.arange(N_STARS) >= VARIABLES)
    assert np.median(found.rms[bright]) < 0.010
    assert np.std(seen.mag[bright[seen.star] & np.isfinite(seen.mag)]) > 0.01  # they did not before
    pulls = ((found.mean - true - (found.mean - true)[bright].mean()) / found.mean_sigma)[bright]
    assert 0.7 < np.std(pulls) < 1.4


def test_stars_that_vary_are_named_and_keep_their_amplitude() -> None:
    found = solve_relative(light_curves(2)[0], SHAPE)
    assert found.variable[:VARIABLES].all()
    assert found.variable[VARIABLES:].mean() < 0.01
    assert np.median(found.rms[:VARIABLES]) > 0.15


def test_a_gradient_of_each_exposure_is_taken_out() -> None:
    seen, _, true = light_curves(3, tilt=0.02)
    bright = (true < 17) & (np.arange(N_STARS) >= VARIABLES)
    flat, tilted = (solve_relative(seen, SHAPE, degree=degree) for degree in (0, 1))
    assert np.median(tilted.rms[bright]) < 0.6 * np.median(flat.rms[bright])
    assert tilted.floor == pytest.approx(FLOOR, rel=0.15)
    left = seen.mag - tilted.correction(seen.epoch, seen.x, seen.y) - tilted.mean[seen.star]
    good = bright[seen.star] & np.isfinite(left)
    assert 1.4826 * np.median(np.abs(left[good])) < 0.008


def test_an_exposure_that_is_no_good_is_not_corrected() -> None:
    seen, zero, _ = light_curves(4)
    rng = np.random.default_rng(4)
    mag = seen.mag + np.where(seen.epoch == 3, rng.normal(0, 0.4, len(seen.mag)), 0)
    few = (seen.epoch != 5) | (seen.star < 4)
    thin = {name: getattr(seen, name)[few] for name in ("epoch", "star", "sigma", "x", "y")}
    found = solve_relative(replace(seen, mag=mag[few], **thin), SHAPE)
    assert np.isnan(found.zero[[3, 5]]).all()
    others = np.delete(np.arange(N_EPOCHS), [3, 5])
    error = found.zero[others] - zero[others]
    assert np.std(error) < 0.001
    assert np.isnan(found.correction([3], [0.0], [0.0])).all()


def test_too_little_to_compare_is_a_clear_error() -> None:
    seen, _, _ = light_curves(5)
    one = seen.epoch == 0
    columns = {name: getattr(seen, name)[one] for name in ("epoch", "star", "mag", "sigma", "x", "y")}
    with pytest.raises(PhotometryError, match="two exposures"):
        solve_relative(replace(seen, **columns), SHAPE)
    with pytest.raises(PhotometryError, match="0 stars"):
        solve_relative(observations([], [], [], []), SHAPE)


def test_observations_of_catalogues() -> None:
    rng = np.random.default_rng(6)
    n = 50
    ra, dec = 10 + 0.01 * np.arange(n), np.full(n, 30.0)
    tables = []
    for _ in range(3):
        table = np.zeros(n, SOURCE_DTYPE)
        table["ra"], table["dec"] = ra + rng.normal(0, 0.1, n) / 3600, dec
        table["x"], table["y"] = np.linspace(0, SHAPE[1] - 1, n), 1500.0
        table["flux"], table["sigflux"] = 1000.0, 10.0
        tables.append(table[rng.permutation(n)])
    first = int(np.flatnonzero(tables[0]["ra"] == tables[0]["ra"].min())[0])
    tables[0]["flux"][first] = np.nan
    twin = tables[1][:1].copy()
    twin["ra"] += 1.0 / 3600
    zeropoint = ZeroPoint(26.0, 0.001, 0.02, 0.1, 0.001, 0.0, "g - R", n)
    tilted = replace(zeropoint, map=ZeroPointMap(1, SHAPE, (0.0, 0.01, 0.0), (0.0, 0.0, 0.0)))
    seen = observations(
        [tables[0], np.concatenate([tables[1], twin]), tables[2]], [zeropoint, zeropoint, tilted], ra, dec
    )
    assert (np.bincount(seen.epoch) == [n - 1, n, n]).all()
    assert not ((seen.epoch == 0) & (seen.star == 0)).any()
    assert (np.bincount(seen.epoch * n + seen.star) <= 1).all()
    np.testing.assert_allclose(seen.mag[seen.epoch < 2], 26.0 - 7.5)
    own = seen.epoch == 2
    np.testing.assert_allclose(seen.mag[own], 18.5 + 0.01 * (2 * seen.x[own] / (SHAPE[1] - 1) - 1))
    np.testing.assert_allclose(seen.sigma, 1.0857362 / 100)
