"""What surrounds a candidate: errors under stars, tracks of particles, defects, forced fluxes, the zero point's map."""

from __future__ import annotations

import json
from dataclasses import replace

import extract_scene as scene
import numpy as np
import pytest

from stream.core.flags import Mask
from stream.core.zeropointmap import ZeroPointMap
from stream.extract import PROFILES, ExtractSettings, extract, rejection

SHAPE = (512, 512)
OURS = ExtractSettings(profile="inclusive")
PLACE = np.array([250.3]), np.array([250.6])


def one(difference, science=None, reference=None):
    """The brightest candidate."""
    science = science or scene.science_of(SHAPE)
    found = extract(science, reference or scene.reference_of(science), difference, OURS)
    return max(found, key=lambda c: c.fields["scorr"])


def test_a_fit_claims_no_more_than_the_score_that_knows_of_misplaced_stars():
    flux = np.array([100 * scene.flux_error()])
    difference = scene.difference_of(scene.point_sources(SHAPE, *PLACE, flux), seed=4)
    alone = one(difference)
    difference.scorr[240:262, 240:262] /= 10  # what registration noise under a bright star does
    under_a_star = one(difference)
    snr = [c.extra["flux"] / c.extra["fluxerr"] for c in (alone, under_a_star)]
    assert snr[0] == pytest.approx(100, rel=0.1)
    assert snr[1] == pytest.approx(10, rel=0.15)
    assert under_a_star.extra["flux"] == pytest.approx(alone.extra["flux"], rel=1e-5)


def test_a_particles_track_is_no_light_and_a_trail_is():
    track = np.zeros(SHAPE)
    track[250, 200:240] = 60 * scene.SIGMA
    found = extract(
        scene.science_of(SHAPE), scene.reference_of(scene.science_of(SHAPE)), scene.difference_of(track, 4), OURS
    )
    near = [c for c in found if abs(c.fields["ypos"] - 251) < 4 and 195 < c.fields["xpos"] < 245]
    assert len(near) >= 3
    assert all(c.rejected in ("sharp", "unmeasurable", "low_snr") for c in near)
    steps = np.linspace(-6, 6, 25)
    flux = np.full(25, 3 * scene.flux_error())
    trail = one(scene.difference_of(scene.point_sources(SHAPE, 250 + steps, 250 + 0.5 * steps, flux), seed=4))
    assert trail.rejected is None
    survey = PROFILES["survey-2018"]
    assert rejection(trail.fields, trail.extra, survey) in ("elong", "fwhm", "magdiff")  # it would not have sent it


def test_chi_square_by_radius_sees_what_lies_around_the_core():
    x, y = np.array([250.0, 255.5]), np.array([250.0, 250.0])
    flux = np.array([200.0, 12.0]) * scene.flux_error()
    candidate = one(scene.difference_of(scene.point_sources(SHAPE, x, y, flux), seed=4))
    alone = one(scene.difference_of(scene.point_sources(SHAPE, x[:1], y[:1], flux[:1]), seed=4))
    assert alone.extra["chi7px"] == pytest.approx(1.0, abs=0.3)
    assert candidate.extra["chi7px"] > 1.2 * alone.extra["chi7px"]
    assert candidate.extra["chi2px"] < 1.5 * max(alone.extra["chi2px"], 1.0)


def test_mask_shares_and_the_way_to_a_persistent_artefact():
    mask = np.zeros(SHAPE, np.uint16)
    mask[:, 252:] |= np.uint16(Mask.HALO)
    mask[240:262, 262] |= np.uint16(Mask.PERSISTENT)
    flux = np.array([60 * scene.flux_error()])
    signal = scene.point_sources(SHAPE, *PLACE, flux)
    candidate = one(scene.difference_of(signal, seed=4, mask=mask))
    shares = json.loads(candidate.extra["masked"])
    assert shares == {"halo": pytest.approx(4 / 11, abs=1e-3)}
    assert candidate.extra["persistdist"] == pytest.approx(12.0, abs=0.5)
    plain = one(scene.difference_of(signal, seed=4))
    assert (plain.extra["masked"], plain.extra["persistdist"]) == ("{}", None)


def test_forced_fluxes_of_both_images_with_true_errors():
    rng = np.random.default_rng(8)
    pulls = []
    for k in range(6):
        science = scene.science_of((256, 256))
        x, y = scene.grid_places((256, 256), 40, 20 + k)
        flux = np.full(len(x), 40 * scene.flux_error())
        stars = scene.point_sources((256, 256), x, y, flux)
        noise = rng.normal(0, scene.SIGMA, (256, 256))
        image = (science.data + stars + noise).astype(np.float32)
        science = replace(science, data=image, gain=1e9)
        reference = scene.reference_of(science, 3 * stars)
        difference = scene.difference_of(stars, seed=30 + k, reference=3 * stars)
        for c in extract(science, reference, difference, OURS):
            if c.rejected is None:
                pulls.append((c.extra["sciflux"] - flux[0]) / c.extra["scifluxerr"])
                assert c.extra["refflux"] == pytest.approx(3 * flux[0], rel=0.03)
                assert c.extra["reffluxerr"] == pytest.approx(scene.flux_error() / scene.SIGMA, rel=0.05)
    assert len(pulls) > 100
    # The place is the difference's: a little flux is lost beside the peak, as for any forced measurement.
    assert abs(np.mean(pulls)) < 0.4
    assert 0.8 < np.std(pulls) < 1.25


def test_the_zero_points_map_is_in_fluxes_and_magnitudes():
    flux = np.array([300 * scene.flux_error()])
    difference = scene.difference_of(scene.point_sources(SHAPE, *PLACE, flux), seed=4)
    science = scene.science_of(SHAPE)
    bent = ZeroPointMap(1, SHAPE, (0.0, 0.05, -0.02), (0.0, 0.0, 0.0))
    mapped = replace(science, zeropoint=replace(science.zeropoint, map=bent))
    plain, corrected = one(difference, science), one(difference, mapped)
    offset = float(bent.offset(*PLACE)[0])
    assert corrected.fields["magpsf"] == pytest.approx(plain.fields["magpsf"] + offset, abs=1e-5)
    assert corrected.extra["flux"] == pytest.approx(plain.extra["flux"] * 10 ** (-0.4 * offset), rel=1e-5)
    assert corrected.fields["sigmapsf"] == pytest.approx(plain.fields["sigmapsf"], rel=1e-5)
