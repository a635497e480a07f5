"""The whole search on painted pairs: transients of known flux through ``subtract`` into ``extract``."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import reference_of, science_of, sky_wcs, varying_psf
from scipy.spatial import cKDTree
from synthetic import star_field

from stream.core.records import Candidate
from stream.extract import ExtractSettings, extract, find_streaks
from stream.subtract import subtract

SHAPE, REFERENCE_SHAPE = (640, 640), (680, 680)
FLUX = 400.0  # DN, about S/N 15 in the difference


@pytest.fixture(scope="module")
def search():
    """Candidates of a quadrant with 350 constant stars and about 100 transients away from them."""
    wcs = sky_wcs(SHAPE)
    x, y, flux = star_field(SHAPE, 350, 1, (300.0, 60_000.0))
    rng = np.random.default_rng(4)
    places = np.mgrid[45 : SHAPE[1] - 45 : 50, 45 : SHAPE[0] - 45 : 50].reshape(2, -1).T + rng.uniform(-8, 8, (121, 2))
    distance, _ = cKDTree(np.column_stack([x, y])).query(places)
    tx, ty = places[distance > 8].T
    sky, transient = wcs.all_pix2world(x, y, 0), wcs.all_pix2world(tx, ty, 0)
    science = science_of(
        SHAPE, *(np.append(a, b) for a, b in zip(sky, transient, strict=True)),
        np.append(0.9 * flux, np.full(len(tx), FLUX)), wcs, varying_psf(2.6, SHAPE), magzp=26.1,
    )  # fmt: skip
    reference = reference_of(
        REFERENCE_SHAPE, *sky, flux, sky_wcs(REFERENCE_SHAPE, 0.37, -0.61, 0.02), varying_psf(2.2, REFERENCE_SHAPE)
    )
    difference = subtract(science, reference)
    candidates = extract(science, reference, difference, ExtractSettings(profile="noise-aware"))
    return science, difference, candidates, tx, ty


def sent_at(candidates: list[Candidate], tx, ty) -> tuple[list[Candidate], np.ndarray, np.ndarray]:
    sent = [c for c in candidates if c.rejected is None]
    distance, index = cKDTree(np.column_stack([tx, ty])).query(
        [(c.fields["xpos"] - 1, c.fields["ypos"] - 1) for c in sent]
    )
    return sent, distance, index


def test_transients_come_out_and_constant_stars_do_not(search):
    _, _, candidates, tx, ty = search
    _, distance, index = sent_at(candidates, tx, ty)
    assert len(set(index[distance < 1.5])) >= 0.98 * len(tx)
    assert np.sum(distance >= 1.5) <= 2


def test_their_fluxes_and_errors_are_true(search):
    _, _, candidates, tx, ty = search
    sent, distance, _ = sent_at(candidates, tx, ty)
    good = [c for c, d in zip(sent, distance, strict=True) if d < 1.5]
    pull = np.array([(c.extra["flux"] - FLUX) / c.extra["fluxerr"] for c in good])
    assert abs(np.mean(pull)) < 0.4
    assert 0.8 < np.std(pull) < 1.2
    assert np.median([c.fields["chipsf"] for c in good]) == pytest.approx(1.0, abs=0.1)


def test_the_local_limit_agrees_with_the_quadrants(search):
    _, difference, candidates, *_ = search
    limits = [c.extra["limmag"] for c in candidates if c.rejected is None]
    assert np.median(limits) == pytest.approx(difference.diffmaglim, abs=0.1)


def test_no_streak_is_made_of_points(search):
    science, difference, *_ = search
    assert find_streaks(science, difference) == []
