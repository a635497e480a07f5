"""The displacement field against fields that are known: the air of the simulator, none at all, and outliers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.displacement import MIN_STARS, Displacement, Trend, fit_displacement
from stream.core.robust import middle
from stream.simulate.fields import RandomField

F64 = NDArray[np.float64]
SHAPE = (3080, 3072)
PX = 1.012 / 3600.0  # deg


class Air:
    """Residuals of stars under an air of ``size`` px r.m.s. an axis, and the truth anywhere."""

    def __init__(self, seed: int, n: int, size: float, bad: float = 0.02) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.east, self.north = (RandomField.draw(rng, 0.04, 1.5, 1 / 3) for _ in range(2))
        self.x, self.y = rng.uniform(0, SHAPE[1] - 1, n), rng.uniform(0, SHAPE[0] - 1, n)
        snr = np.minimum(10 * rng.uniform(0, 1, n) ** -1.2, 3000.0)
        self.stated = np.hypot(0.005, 1.2 / snr)
        real = np.hypot(0.012, 0.9 / snr)  # what the field has to find out: another scale, another floor
        dx, dy = self.at(self.x, self.y)
        self.dx, self.dy = dx + real * rng.normal(size=n), dy + real * rng.normal(size=n)
        spoilt = rng.uniform(size=n) < bad
        self.dx[spoilt] += rng.normal(0, 0.5, int(spoilt.sum()))
        self.elsewhere = rng.uniform(0, SHAPE[1] - 1, 2000), rng.uniform(0, SHAPE[0] - 1, 2000)

    def at(self, x: F64, y: F64) -> tuple[F64, F64]:
        return self.size * self.east.at(x * PX, y * PX), self.size * self.north.at(x * PX, y * PX)

    def fit(self, degree: int = 4) -> Displacement:
        found = fit_displacement(self.x, self.y, self.dx, self.dy, self.stated, SHAPE, Trend(degree))
        assert found is not None
        return found

    def errors(self, found: Displacement) -> tuple[F64, F64]:
        """Errors (2n,) px at places without stars, and the stated ones."""
        dx, dy, sx, sy = found.at(*self.elsewhere)
        tx, ty = self.at(*self.elsewhere)
        return np.concatenate([dx - tx, dy - ty]), np.concatenate([sx, sy])

    def polynomial(self, degree: int = 4) -> F64:
        """Errors (2n,) of the weighted polynomial of the same stars without the spoilt ones."""
        out = []
        for observed, truth in zip((self.dx, self.dy), self.at(*self.elsewhere), strict=True):
            keep = np.abs(observed) < 0.3
            fit = np.polynomial.polynomial.polyvander2d(self.x / 1536 - 1, self.y / 1540 - 1, [degree, degree])
            some = np.array([i * (degree + 1) + j for i in range(degree + 1) for j in range(degree + 1 - i)])
            weight = 1 / np.hypot(self.stated, 0.012)
            answer = np.linalg.lstsq((fit[:, some] * weight[:, None])[keep], (observed * weight)[keep], rcond=None)[0]
            u, v = self.elsewhere
            there = np.polynomial.polynomial.polyvander2d(u / 1536 - 1, v / 1540 - 1, [degree, degree])[:, some]
            out.append(there @ answer - truth)
        return np.concatenate(out)


@pytest.mark.parametrize(("n", "gain"), [(600, 0.85), (1500, 0.8), (5000, 0.7)])
def test_it_takes_out_the_airs_motion_and_knows_its_own_error(n: int, gain: float) -> None:
    airs = [Air(seed, n, 0.02) for seed in range(4)]
    errors, stated = (np.concatenate(v) for v in zip(*(a.errors(a.fit()) for a in airs), strict=True))
    without = np.concatenate([a.polynomial() for a in airs])
    assert np.std(errors) < gain * np.std(without)
    assert np.sqrt(np.mean((errors / stated) ** 2)) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("n", [60, 200, 1500])
def test_it_does_no_harm_where_there_is_no_displacement(n: int) -> None:
    degree = 4 if n > 100 else 2
    airs = [Air(seed, n, 0.0) for seed in range(6)]
    errors, stated = (np.concatenate(v) for v in zip(*(a.errors(a.fit(degree)) for a in airs), strict=True))
    assert np.std(errors) < 1.1 * np.std(np.concatenate([a.polynomial(degree) for a in airs]))
    assert np.sqrt(np.mean((errors / stated) ** 2)) < 1.15


def test_it_finds_the_scale_and_floor_of_the_noise() -> None:
    found = [Air(seed, 3000, 0.0).fit() for seed in range(4)]
    faint = [np.hypot(f.noise_scale * np.hypot(0.005, 0.12), f.floor) for f in found]
    assert np.mean(faint) == pytest.approx(np.hypot(0.09, 0.012), rel=0.1)
    assert np.mean([np.hypot(f.noise_scale * 0.005, f.floor) for f in found]) == pytest.approx(0.0125, rel=0.25)


def test_knowledge_of_the_polynomial_holds_it() -> None:
    air = Air(3, 40, 0.0, bad=0.0)
    known = Trend(4, np.zeros((15, 2)), np.full((15, 2), 1e-4))
    held = fit_displacement(air.x, air.y, air.dx, air.dy, air.stated, SHAPE, known)
    free = air.fit(3)
    assert held is not None
    assert np.std(air.errors(held)[0]) < 0.5 * np.std(air.errors(free)[0])


def test_maps_agree_with_places_and_nodes() -> None:
    found = Air(1, 800, 0.02).fit()
    x, y = np.array([0, 7, 1536, 3071, 2222]), np.array([0, 3079, 1540, 0, 1111])
    for full, at in zip(found.expand(), found.at(x, y), strict=True):
        assert full.shape == SHAPE
        assert full.dtype == np.float32
        np.testing.assert_allclose(full[y, x], at, atol=2e-6)
    corner = found.at([0.0, SHAPE[1] - 1.0], [0.0, SHAPE[0] - 1.0])
    np.testing.assert_allclose(corner[0], [found.dx[0, 0], found.dx[-1, -1]], atol=1e-7)
    np.testing.assert_allclose(corner[3], [found.sigma_y[0, 0], found.sigma_y[-1, -1]], atol=1e-7)
    np.testing.assert_array_equal(found.at([-50.0], [4000.0])[1], found.at([0.0], [SHAPE[0] - 1.0])[1])
    assert np.isnan(found.at([np.nan], [1.0])[0]).all()
    assert found.expand((100, 80))[0].shape == (100, 80)


def test_the_same_stars_give_the_same_bytes_and_a_few_give_nothing() -> None:
    air = Air(2, 500, 0.02)
    assert air.fit().dx.tobytes() == air.fit().dx.tobytes()
    some = slice(0, MIN_STARS - 1)
    assert fit_displacement(air.x[some], air.y[some], air.dx[some], air.dy[some], air.stated[some], SHAPE) is None
    nothing = np.full(500, np.nan)
    assert fit_displacement(air.x, air.y, nothing, air.dy, air.stated, SHAPE) is None
    assert fit_displacement([], [], [], [], [], SHAPE) is None
    still = fit_displacement(air.x, air.y, 0 * air.dx, 0 * air.dy, air.stated, SHAPE)
    assert still is not None
    assert np.abs(still.dx).max() < 1e-6


def test_the_middle_of_a_sample() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 10, 101):
        values = rng.normal(size=n)
        assert middle(values) == np.sort(values)[n // 2]
