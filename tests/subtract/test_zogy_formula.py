"""The tile arithmetic against the paper's formulas written out in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.psf import gaussian_psf
from stream.subtract.zogy import Plan, TileInput, subtract_tile

N, SIZE = 96, 35


def wrapped(stamp: NDArray[np.float32]) -> NDArray[np.float64]:
    """The PSF image on the tile with its centre at the origin."""
    image = np.zeros((N, N))
    image[:SIZE, :SIZE] = stamp
    return np.roll(image, (-(SIZE // 2), -(SIZE // 2)), axis=(0, 1))


def make_tile(seed: int = 1) -> TileInput:
    rng = np.random.default_rng(seed)
    pn = gaussian_psf(2.5, (N, N), radius=17).stamp(40, 40, SIZE)
    pr = gaussian_psf(1.8, (N, N), radius=17).stamp(40, 40, SIZE)
    variance = rng.uniform(50, 150, (2, N, N)).astype(np.float32)
    images = rng.normal(0, 1, (2, N, N)).astype(np.float32) * np.sqrt(variance)
    ones = np.ones((N, N // 2 + 1), np.float32)
    return TileInput(images[0], images[1], variance[0], variance[1], pn, pr, 10.0, 4.0, ones, (0.1, 0.05))


def test_against_the_formulas_of_the_paper() -> None:
    tile = make_tile()
    out = subtract_tile(tile, Plan(N, SIZE))
    f = np.fft.fft2
    pn, pr = f(wrapped(tile.new_psf)), f(wrapped(tile.reference_psf))
    sn, sr = tile.new_sigma, tile.reference_sigma
    n, r = f(tile.new.astype(float)), f(tile.reference.astype(float))
    den = np.sqrt(sn**2 * abs(pr) ** 2 + sr**2 * abs(pn) ** 2 + 1e-14 * (sn**2 + sr**2))
    fd = 1 / np.sqrt(sn**2 + sr**2)
    d = np.fft.ifft2((pr * n - pn * r) / den).real / fd
    p_d = np.fft.fftshift(np.fft.ifft2(pr * pn / (fd * den)).real)
    middle = slice(N // 2 - 12, N // 2 + 13)
    norm = p_d[middle, middle].sum()
    kn, kr = np.conj(pn) * abs(pr) ** 2 / den**2, np.conj(pr) * abs(pn) ** 2 / den**2
    s_n, s_r = np.fft.ifft2(kn * n).real, np.fft.ifft2(kr * r).real
    v = np.fft.ifft2(f(tile.new_variance.astype(float)) * f(np.fft.ifft2(kn).real ** 2)).real
    v += np.fft.ifft2(f(tile.reference_variance.astype(float)) * f(np.fft.ifft2(kr).real ** 2)).real
    gx = (np.roll(s_r, -1, 1) - np.roll(s_r, 1, 1)) / 2
    gy = (np.roll(s_r, -1, 0) - np.roll(s_r, 1, 0)) / 2
    v += 0.1**2 * gx**2 + 0.05**2 * gy**2
    inner = np.s_[1:-1, 1:-1]
    assert out.difference == pytest.approx(d / norm, abs=2e-4 * d.std())
    assert out.score == pytest.approx(s_n - s_r, abs=2e-4 * s_n.std())
    assert out.score_variance[inner] == pytest.approx(v[inner], rel=2e-3)
    half = slice(N // 2 - SIZE // 2, N // 2 + SIZE // 2 + 1)
    assert out.psf == pytest.approx(p_d[half, half] / norm, abs=1e-5)
    assert out.psf[5:30, 5:30].sum() == pytest.approx(1)


def test_difference_of_white_noise_is_white_and_has_the_stated_variance() -> None:
    rng = np.random.default_rng(2)
    tile = make_tile()
    shape = (N, N)
    powers = []
    plan = Plan(N, SIZE)
    for _ in range(30):
        white = TileInput(
            rng.normal(0, 10, shape).astype(np.float32), rng.normal(0, 4, shape).astype(np.float32),
            np.full(shape, 100, np.float32), np.full(shape, 16, np.float32), tile.new_psf, tile.reference_psf,
            10.0, 4.0, tile.transfer, (0.0, 0.0),
        )  # fmt: skip
        out = subtract_tile(white, plan)
        powers.append(np.abs(np.fft.fft2(out.difference)) ** 2 / N**2)
        assert np.var(out.score) == pytest.approx(float(np.mean(out.score_variance)), rel=0.25)
    power = np.mean(powers, axis=0)
    assert power.mean() == pytest.approx(float(out.variance.mean()), rel=0.01)
    low, high = power[:12, :12].mean(), power[36:48, 36:48].mean()
    assert low == pytest.approx(high, rel=0.1)


def test_an_injected_source_is_its_flux_times_the_psf() -> None:
    tile = make_tile()
    empty = np.zeros((N, N), np.float32)
    source = np.roll(wrapped(tile.new_psf), (50, 45), axis=(0, 1)).astype(np.float32) * 1234
    clean = TileInput(
        source, empty, tile.new_variance, tile.reference_variance, tile.new_psf, tile.reference_psf, 10.0, 4.0,
        tile.transfer, (0.0, 0.0),
    )  # fmt: skip
    out = subtract_tile(clean, Plan(N, SIZE))
    stamp = out.difference[50 - 17 : 50 + 18, 45 - 17 : 45 + 18]
    assert stamp == pytest.approx(1234 * out.psf, abs=1234 * 1e-5)
    core = out.psf[5:30, 5:30]
    assert (stamp[5:30, 5:30] * core).sum() / (core**2).sum() == pytest.approx(1234, rel=1e-4)


def test_kernels_read_off_few_frequencies_are_the_kernels() -> None:
    plan = Plan(480, SIZE)
    psf = gaussian_psf(2.2, (N, N), radius=17).stamp(40, 40, SIZE)
    assert plan.core(plan.transform(psf)) == pytest.approx(psf, abs=1e-6)
