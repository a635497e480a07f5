"""The compiled step of the simultaneous fit against dense matrices of whole images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.psf import STAMP, PsfModel, moffat_psf, read_gradients
from stream.core.psfread import psf_table
from stream.photometry.groups import Groups, groups_of, lone_groups
from stream.photometry.kernels import (
    COVERED,
    FIGURES,
    MAX_STEP,
    PLACE_PRIOR,
    RIDGE,
    SKY_PART,
    TILE,
    VARIANCE,
    step_groups,
)
from stream.photometry.models import CELL, Pixels, Sources, Step, Tables, draw_sources, stir_places

SHAPE, SIZE, GAIN = (60, 70), 11, 6.0
# A triple, a pair over the image's corner, and one alone beside bad pixels.
X = np.array([20.2, 22.9, 25.4, 1.3, 0.2, 50.0])
Y = np.array([30.1, 31.6, 30.0, 2.2, 0.4, 40.5])
FLUX = np.array([4000.0, 900.0, 2000.0, 3000.0, 1500.0, 700.0])


@dataclass(frozen=True)
class Case:
    psf: PsfModel
    pixels: Pixels
    sources: Sources


def shifted_stamp(psf: PsfModel, x: float, y: float) -> NDArray[np.float64]:
    """P, dP/dx, dP/dy of a source as whole images (3, ny, nx), within its window."""
    ix, iy = round(x), round(y)
    parts = read_gradients(psf.grids([x], [y], SIZE), np.array([x - ix]), np.array([y - iy]), SIZE, psf.oversample)
    padded = np.zeros((3, SHAPE[0] + 2 * SIZE, SHAPE[1] + 2 * SIZE))
    low_y, low_x = iy - SIZE // 2 + SIZE, ix - SIZE // 2 + SIZE
    padded[:, low_y : low_y + SIZE, low_x : low_x + SIZE] = np.concatenate(parts)
    return padded[:, SIZE:-SIZE, SIZE:-SIZE]


@pytest.fixture
def case() -> Case:
    rng = np.random.default_rng(5)
    psf = moffat_psf(2.4, SHAPE)
    truth = sum(
        f * psf_image
        for f, psf_image in zip(FLUX, (shifted_stamp(psf, x, y)[0] for x, y in zip(X, Y, strict=True)), strict=True)
    )
    image = (truth + rng.normal(0, 8, SHAPE)).astype(np.float32)
    unusable = np.zeros(SHAPE, bool)
    unusable[38:44, 51] = unusable[31, 22] = True
    x, y, flux = X + rng.normal(0, 0.1, 6), Y + rng.normal(0, 0.1, 6), FLUX * rng.normal(1, 0.1, 6)
    noise, row, wide = np.full(6, 64, np.float32), np.arange(6), np.zeros(6, bool)
    sources = Sources(x, y, flux, X.copy(), Y.copy(), noise, row, psf.coefficients(x, y), wide)
    residual = image.copy()
    draw_sources(residual, np.arange(6), sources, tables(psf), -1.0)
    spoiled = np.zeros((-(-SHAPE[0] // TILE), -(-SHAPE[1] // TILE)), bool)
    rows, columns = np.nonzero(unusable)
    spoiled[rows // TILE, columns // TILE] = True
    stirred = np.zeros((-(-SHAPE[0] // CELL), -(-SHAPE[1] // CELL)), np.int64)
    return Case(psf, Pixels(image, residual, unusable, spoiled, stirred), sources)


def tables(psf: PsfModel, bright: float = np.inf) -> Tables:
    """Models of faint sources are drawn as far as their windows reach, with all of their light as well."""
    return Tables(psf_table(psf, SIZE), psf_table(psf, STAMP), bright)


def plain_step(
    case: Case, rows: list[int], pairs: list[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Change (n, 3) of flux and place of one group, and its fluxes' variances, by matrices of whole images."""
    sources, n = case.sources, len(rows)
    designs, weights = [], []
    light = case.pixels.image.astype(float) - case.pixels.residual
    weight = np.where(case.pixels.unusable, 0, 1 / (64 + np.maximum(light, 0) / GAIN))
    for s in rows:
        design = shifted_stamp(case.psf, sources.x[s], sources.y[s])
        weights.append(np.where(design[0] != 0, weight, 0))
        design[1:] *= sources.flux[s]
        designs.append(design)
    matrix, right = np.zeros((n, 3, n, 3)), np.zeros((n, 3))
    for a, s in enumerate(rows):
        right[a] = (designs[a] * weights[a] * case.pixels.residual).sum(axis=(1, 2))
        right[a, 1:] += np.array([X[s] - sources.x[s], Y[s] - sources.y[s]]) / PLACE_PRIOR**2
        for b in range(n):
            if a == b or (min(rows[a], rows[b]), max(rows[a], rows[b])) in pairs:
                first = weights[min(a, b)]
                matrix[a, :, b] = np.einsum("iyx,yx,jyx->ij", designs[a], first, designs[b])
        matrix[a, 1:, a, 1:] += np.eye(2) / PLACE_PRIOR**2
        matrix[a, 0, a, 0] *= 1 + RIDGE * (n > 1)
    inverse = np.linalg.inv(matrix.reshape(3 * n, 3 * n))
    change = (inverse @ right.ravel()).reshape(n, 3)
    change[:, 1:] = np.clip(change[:, 1:], -MAX_STEP, MAX_STEP)
    return change, np.diag(inverse)[::3]


def test_a_step_is_that_of_the_normal_equations(case: Case) -> None:
    groups = groups_of(X, Y, np.arange(6), 2.4)
    assert np.diff(groups.start).tolist() == [3, 2, 1]
    start = np.stack([case.sources.flux, case.sources.x, case.sources.y], axis=1).copy()
    wanted = [
        plain_step(case, [0, 1, 2], [(0, 1), (1, 2)]),
        plain_step(case, [3, 4], [(3, 4)]),
        plain_step(case, [5], []),
    ]
    figures = np.full((6, len(FIGURES)), np.nan)
    step = Step(SIZE, 1 / GAIN, False, True, True, False, 1)
    step_groups(case.pixels, case.sources, groups, tables(case.psf), step, figures)
    end = np.stack([case.sources.flux, case.sources.x, case.sources.y], axis=1)
    change = np.concatenate([part[0] for part in wanted])
    assert end - start == pytest.approx(change, rel=1e-3, abs=1e-4)
    assert figures[:, VARIANCE] == pytest.approx(np.concatenate([part[1] for part in wanted]), rel=1e-4)
    assert np.abs(end[:, 0] - FLUX).max() < np.abs(start[:, 0] - FLUX).max()  # and it is one towards the truth
    assert (figures[[0, 2], COVERED] > 0.95).all()
    assert (figures[[4, 5], COVERED] < 0.95).all()  # the corner, the bad pixels
    assert (figures[:, SKY_PART] > 0.1).all()
    assert (figures[:, SKY_PART] < 1).all()


def test_one_alone_needs_no_residual_image(case: Case) -> None:
    """The model taken off in the window or before in the image: the same step."""
    ends = []
    for alone in (True, False):
        copy = Sources(*(column.copy() for column in case.sources))
        pixels = case.pixels._replace(residual=case.pixels.image) if alone else case.pixels
        step_groups(
            pixels,
            copy,
            lone_groups(np.array([5])),
            tables(case.psf),
            Step(SIZE, 1 / GAIN, alone, True, False, False, 1),
            np.empty((6, len(FIGURES))),
        )
        ends.append((copy.flux[5], copy.x[5], copy.y[5]))
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


@pytest.mark.parametrize("bright", [np.inf, 0.0, 150.0])
def test_the_residual_image_follows_the_steps(case: Case, bright: float) -> None:
    """After a step it is the image without the models as they are now, those that hardly changed and those that became
    bright, whose wings are drawn."""
    groups, figures = groups_of(X, Y, np.arange(6), 2.4), np.empty((6, len(FIGURES)))
    half = np.array([0, 3])
    case.sources.flux[half] /= 2
    draw_sources(case.pixels.residual, half, case.sources, tables(case.psf), 1.0)
    for turn in (1, 2):
        step = Step(SIZE, 1 / GAIN, False, True, False, True, turn)
        step_groups(case.pixels, case.sources, groups, tables(case.psf, bright), step, figures)
    assert case.sources.wide[[0, 3, 1, 5]].tolist() == [bright < 190] * 2 + [False] * 2
    wanted = case.pixels.image.copy()
    draw_sources(wanted, np.arange(6), case.sources, tables(case.psf), -1.0)  # as ``wide`` says
    # A small change is drawn within the window around the place before, which another pixel's may be now.
    assert np.abs(case.pixels.residual - wanted).max() < 0.01 * np.abs(case.pixels.image - wanted).max()


def test_no_member_of_a_group_goes_far_below_nothing(case: Case) -> None:
    """A source that is not there, beside one that is wider than the PSF says, takes no light from nowhere."""
    rows = np.array([0, 1])
    x, y = np.array([30.0, 31.3, 5.0]), np.array([20.0, 20.0, 5.0])
    image = np.zeros(SHAPE, np.float32)
    hole = shifted_stamp(case.psf, x[0], y[0])[0] * 5000 - shifted_stamp(case.psf, x[1], y[1])[0] * 2500
    image += hole.astype(np.float32)
    pixels = case.pixels._replace(image=image, residual=image.copy(), unusable=np.zeros(SHAPE, bool))
    pixels = pixels._replace(spoiled=np.zeros_like(pixels.spoiled))
    noise, flux = np.full(3, 64, np.float32), np.zeros(3)
    sources = Sources(
        x, y, flux, x.copy(), y.copy(), noise, np.arange(3), case.psf.coefficients(x, y), np.zeros(3, bool)
    )
    figures = np.full((3, len(FIGURES)), np.nan)
    groups = groups_of(x, y, rows, 2.4)
    assert len(groups.start) == 2
    step = Step(SIZE, 1 / GAIN, False, True, True, False, 1, positive=True)
    step_groups(pixels, sources, groups, tables(case.psf), step, figures)
    # Alone the first gets what its PSF sees: its flux, and what the hole takes of it.
    p, q = (shifted_stamp(case.psf, x[i], y[i])[0] for i in rows)
    weight = 1 / (64 + 0 * image)
    alone = 5000 - 2500 * (weight * p * q).sum() / (weight * p * p).sum()
    assert sources.flux[0] == pytest.approx(alone, rel=0.01)
    assert abs(sources.flux[1]) < 1
    assert np.sqrt(figures[1, VARIANCE]) > 10  # and nobody says that nothing is known well


def test_what_is_at_rest_is_left_alone(case: Case) -> None:
    """A turn passes over groups around which the one before changed nothing, until something stirs there."""
    groups, figures = groups_of(X, Y, np.arange(6), 2.4), np.empty((6, len(FIGURES)))
    step = Step(SIZE, 1 / GAIN, False, True, False, True, 5)  # nothing is marked: at rest since turn 0
    before = case.sources.flux.copy()
    step_groups(case.pixels, case.sources, groups, tables(case.psf), step, figures)
    assert (case.sources.flux == before).all()
    stir_places(case.pixels.stirred, np.array([51.0]), np.array([42.0]), 4)
    step_groups(case.pixels, case.sources, groups, tables(case.psf), step, figures)
    assert (case.sources.flux != before).tolist() == [False] * 5 + [True]


def test_groups_hold_their_pairs() -> None:
    groups = groups_of(X, Y, np.arange(6), 2.4)
    assert isinstance(groups, Groups)
    assert sorted(groups.members.tolist()) == list(range(6))
    assert [groups.members[i] for i in groups.first] == [0, 1, 3]
    assert [groups.members[i] for i in groups.second] == [1, 2, 4]
    assert groups.pair_start.tolist() == [0, 2, 3, 3]
