"""The block-wise arithmetic against the paper's formulas written out in double precision on the whole plane."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pairs import varying_psf
from scipy import ndimage

from stream.core.psf import gaussian_psf
from stream.extract.psffit import PsfGrid, fit_psf
from stream.subtract import zogy
from stream.subtract.kernels import GRID, WORK, Kernels, Psfs, difference_psf, make_kernels
from stream.subtract.zogy import Errors, Planes, subtract_planes

N = 256
SHAPE = (N, N)
NOISE = (10.0, 4.0)
WHITE = np.ones((GRID, GRID // 2 + 1))
MIDDLE = np.s_[64:192, 64:192]  # where neither way of treating the edges is seen
NODES = np.array([0.0, N - 1.0])


def psfs(new: float, reference: float) -> Psfs:
    stamps = [gaussian_psf(f, SHAPE, radius=17).stamps([40.0], [40.0], WORK, subpixel=False) for f in (new, reference)]
    return Psfs(np.array([40.0]), np.array([40.0]), stamps[0], stamps[1])


def errors(dx: float = 0.0, dy: float = 0.0, psf: float = 0.0) -> Errors:
    return Errors(NODES, NODES, np.full((2, 2), dx, np.float32), np.full((2, 2), dy, np.float32), psf)


def noise_planes(seed: int) -> Planes:
    rng = np.random.default_rng(seed)
    variance = [ndimage.gaussian_filter(rng.uniform(0, 60, SHAPE), 2).astype(np.float32) + 80 for _ in range(2)]
    images = [(rng.normal(0, 1, SHAPE) * np.sqrt(v)).astype(np.float32) for v in variance]
    return Planes(images[0], images[1], variance[0], variance[1])


def wrapped(stamp: NDArray[np.floating]) -> NDArray[np.float64]:
    """A small image on the plane with its centre at the origin."""
    image, side = np.zeros(SHAPE), stamp.shape[0]
    image[:side, :side] = stamp
    return np.roll(image, (-(side // 2), -(side // 2)), axis=(0, 1))


@pytest.mark.parametrize(("new", "reference"), [(2.5, 1.8), (1.9, 2.6), (3.4, 2.0)])
def test_against_the_formulas_of_the_paper(new: float, reference: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zogy, "BLOCK", 128)  # four blocks: their borders cross the region that is compared
    both, planes = psfs(new, reference), noise_planes(1)
    kernels = make_kernels(both, NOISE, WHITE, SHAPE)
    out = subtract_planes(planes, kernels, errors(0.1, 0.05))
    f = np.fft.fft2
    pn, pr = f(wrapped(both.new[0])), f(wrapped(both.reference[0]))
    sn, sr = NOISE
    n, r = f(planes.new.astype(float)), f(planes.reference.astype(float))
    den = np.sqrt(sn**2 * abs(pr) ** 2 + sr**2 * abs(pn) ** 2 + 1e-14 * (sn**2 + sr**2))
    fd = 1 / np.sqrt(sn**2 + sr**2)
    d = np.fft.ifft2((pr * n - pn * r) / den).real / fd
    p_d = np.fft.ifft2(pr * pn / (fd * den)).real
    norm = np.roll(p_d, (12, 12), axis=(0, 1))[:25, :25].sum()
    # S = P_D correlated with D, both scaled so that P_D has a core of sum 1.
    matched = np.conj(f(p_d / norm))
    kn, kr = matched * pr / (fd * den * norm), matched * pn / (fd * den * norm)
    s_n, s_r = np.fft.ifft2(kn * n).real, np.fft.ifft2(kr * r).real
    v = np.fft.ifft2(f(planes.new_variance.astype(float)) * f(np.fft.ifft2(kn).real ** 2)).real
    v += np.fft.ifft2(f(planes.reference_variance.astype(float)) * f(np.fft.ifft2(kr).real ** 2)).real
    gx = (np.roll(s_r, -1, 1) - np.roll(s_r, 1, 1)) / 2
    gy = (np.roll(s_r, -1, 0) - np.roll(s_r, 1, 0)) / 2
    v += 0.1**2 * gx**2 + 0.05**2 * gy**2
    assert np.abs(out.difference - d / norm)[MIDDLE].max() < 2e-3 * d.std() / norm
    score = s_n - s_r
    assert np.abs(out.score - score)[MIDDLE].max() < 3e-3 * score.std()
    assert out.scorr[MIDDLE] == pytest.approx((score / np.sqrt(v))[MIDDLE], abs=0.04)


def test_difference_of_white_noise_is_white_and_has_the_stated_variance() -> None:
    rng = np.random.default_rng(2)
    kernels = make_kernels(psfs(2.5, 1.8), NOISE, WHITE, SHAPE)
    flat = [np.full(SHAPE, s * s, np.float32) for s in NOISE]
    powers, scores = [], []
    for _ in range(4):
        white = Planes(*(rng.normal(0, s, SHAPE).astype(np.float32) for s in NOISE), *flat)
        out = subtract_planes(white, kernels, errors())
        powers.append(np.abs(np.fft.fft2(out.difference)) ** 2 / N**2)
        scores.append(out.scorr.std())
    power = np.mean(powers, axis=0)
    stated = kernels.gain_new * NOISE[0] ** 2 + kernels.gain_reference * NOISE[1] ** 2
    assert power.mean() == pytest.approx(stated, rel=0.01)
    assert power[:30, :30].mean() == pytest.approx(power[98:128, 98:128].mean(), rel=0.1)
    assert np.mean(scores) == pytest.approx(1, abs=0.03)


def varying_kernels() -> tuple[Kernels, list]:
    models = [varying_psf(2.4, SHAPE, 0.12), varying_psf(1.9, SHAPE, -0.08)]
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, N - 1, 9), np.linspace(0, N - 1, 9)))
    stamps = [m.stamps(x, y, WORK, subpixel=False) for m in models]
    return make_kernels(Psfs(x, y, stamps[0], stamps[1]), NOISE, WHITE, SHAPE), models


def test_stars_vanish_and_new_sources_are_their_flux_times_the_psf_wherever_they_are() -> None:
    kernels, (new, reference) = varying_kernels()
    assert len(kernels.variation)
    psf = difference_psf(new, kernels)
    flat = [np.full(SHAPE, s * s, np.float32) for s in NOISE]
    images = [np.zeros(SHAPE, np.float32) for _ in range(2)]
    places = [(y, x) for y in range(32, N, 64) for x in range(32, N, 64)]
    for k, (y, x) in enumerate(places):
        box = np.s_[y - 17 : y + 18, x - 17 : x + 18]
        images[0][box] += 1e4 * new.stamp(x, y, WORK)
        if k % 2:  # every other one is not new
            images[1][box] += 1e4 * reference.stamp(x, y, WORK)
    out = subtract_planes(Planes(*images, *flat), kernels, errors())
    for k, (y, x) in enumerate(places):
        seen = out.difference[y - 12 : y + 13, x - 12 : x + 13] / 1e4
        expected = 0.0 if k % 2 else psf.stamp(x, y)
        assert np.sqrt(((seen - expected) ** 2).sum()) < 0.015 * np.sqrt((psf.stamp(x, y) ** 2).sum())
    without = Kernels(**{f: getattr(kernels, f) for f in kernels.__slots__} | {"variation": kernels.variation[:0]})
    left = subtract_planes(Planes(*images, *flat), without, errors()).difference
    y, x = next(p for k, p in enumerate(places) if k % 2 and p[1] > 200)
    box = np.s_[y - 12 : y + 13, x - 12 : x + 13]
    # The variation mattered.
    assert np.abs(out.difference[box]).max() < 0.2 * np.abs(left[box]).max()


def test_a_relative_error_of_the_psfs_lowers_the_score_of_bright_sources_only() -> None:
    both = psfs(2.5, 1.8)
    kernels = make_kernels(both, NOISE, WHITE, SHAPE)
    flat = [np.full(SHAPE, s * s, np.float32) for s in NOISE]
    reference = np.zeros(SHAPE, np.float32)
    reference[111:146, 111:146] = 1e6 * both.reference[0]
    planes = Planes(np.zeros(SHAPE, np.float32), reference, *flat)
    exact, doubted = (subtract_planes(planes, kernels, errors(psf=e)).scorr for e in (0.0, 0.01))
    # S of the star over its error: 1 % of itself, less what is lost where the variance is kept on every second pixel.
    assert 100 < abs(doubted[128, 128]) < 150
    assert abs(exact[128, 128]) > 1000
    assert doubted[20:60, 20:60] == pytest.approx(exact[20:60, 20:60], abs=1e-3)


def test_the_psf_of_a_sharp_difference_is_known_between_pixels() -> None:
    new, reference = gaussian_psf(1.5, SHAPE, oversample=3), gaussian_psf(1.9, SHAPE, oversample=3)
    x, y = (np.full(1, N / 2) for _ in range(2))
    stamps = [m.stamps(x, y, WORK, subpixel=False) for m in (new, reference)]
    kernels = make_kernels(Psfs(x, y, stamps[0], stamps[1]), NOISE, WHITE, SHAPE)
    psf = difference_psf(new, kernels)
    flat = [np.full(SHAPE, s * s, np.float32) for s in NOISE]
    for dx, dy in ((0.0, 0.0), (0.5, 0.0), (-0.3, 0.45)):
        sky = np.zeros(SHAPE, np.float32)
        sky[111:146, 111:146] = 1e4 * new.stamps([128 + dx], [128 + dy], WORK)[0]
        d = subtract_planes(Planes(sky, np.zeros(SHAPE, np.float32), *flat), kernels, errors()).difference
        seen = d[116:141, 116:141]
        assert np.abs(seen / 1e4 - psf.stamps([128 + dx], [128 + dy])[0]).max() < 1e-3 * psf.stamp(128, 128).max()
        box = seen[None, 8:17, 8:17]  # a fit starts a little off
        start = np.array([dx + 0.2]), np.array([dy - 0.1])
        grid = PsfGrid(psf, SHAPE).select(np.array([128.0]), np.array([128.0]))
        fit = fit_psf(box, np.ones_like(box), np.ones(box.shape, bool), grid, *start)
        assert fit.flux[0] == pytest.approx(1e4, rel=2e-3)
        assert (fit.dx[0], fit.dy[0]) == pytest.approx((dx, dy), abs=2e-3)
