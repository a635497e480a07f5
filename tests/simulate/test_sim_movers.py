"""Orbits, their printed elements, and trails: two-body motion judged by numerical integration."""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import CartesianRepresentation, HeliocentricMeanEcliptic, SkyCoord
from astropy.time import Time
from scipy.integrate import solve_ivp

from stream.core.camera import FULL, SMALL
from stream.simulate import NightPlan, paint_quadrant, schedule
from stream.simulate.movers import (
    GM_SUN,
    Orbit,
    designations,
    elements_of,
    ephemeris,
    movers,
    mpcorb,
    observer_heliocentric,
    orbit_position,
    packed_epoch,
    tt_of,
)


@pytest.fixture(scope="module")
def plan() -> NightPlan:
    return NightPlan(camera=SMALL, n_bias=0, n_flat=0, n_science=4, seed=6, satellite=False)


def columns_of(line: str) -> dict[str, str]:
    """Fields of an MPCORB line by the Minor Planet Center's column numbers."""
    places = {
        "name": (1, 7), "h": (9, 13), "g": (15, 19), "epoch": (21, 25), "m": (27, 35), "peri": (38, 46),
        "node": (49, 57), "incl": (60, 68), "e": (71, 79), "n": (81, 91), "a": (93, 103), "readable": (167, 194),
        "last": (195, 202),
    }  # fmt: skip
    return {key: line[first - 1 : last].strip() for key, (first, last) in places.items()}


def test_lines_have_the_columns_of_the_real_file(real_data, plan):
    real = (real_data / "asteroids" / "MPCORB.excerpt.DAT").read_text().splitlines()[0]
    assert columns_of(real)["readable"] == "(1) Ceres"  # the column numbers are right
    ours = mpcorb(plan).splitlines()[0]
    assert len(ours) == len(real) == 202
    # Blank where the real line is blank between fields, points where it has points.
    for column in (7, 13, 19, 25, 35, 46, 57, 68, 79, 91, 103):
        assert ours[column] == real[column] == " "
    for column in [i for i, c in enumerate(real[:103]) if c == "."]:
        assert ours[column] == "."


def test_lines_hold_the_orbits_that_are_painted(plan):
    lines = mpcorb(plan).splitlines()
    asteroids = [mover for mover in movers(plan) if mover.orbit is not None]
    assert len(lines) == len(asteroids) == 2 * 4
    for line, mover in zip(lines, asteroids, strict=True):
        fields, orbit = columns_of(line), mover.orbit
        printed = [float(fields[key]) for key in ("h", "m", "peri", "node", "incl", "e", "a")]
        assert printed == pytest.approx(
            [orbit.h, orbit.mean_anomaly, orbit.peri, orbit.node, orbit.inclination, orbit.e, orbit.a], abs=1e-12
        )
        assert float(fields["n"]) == pytest.approx(math.degrees(math.sqrt(GM_SUN / orbit.a**3)), abs=1e-8)
        assert fields["epoch"] == "K20A5"
        assert fields["readable"] == mover.designation


def test_designations_are_packed_as_the_centre_does():
    names = designations(NightPlan(night="20201005"), 300)
    assert names[0] == ("2020 TA1", "K20T01A")
    assert names[25] == ("2020 TA2", "K20T02A")
    assert names[299] == ("2020 TZ12", "K20T12Z")
    assert len({packed for _, packed in names}) == 300
    assert designations(NightPlan(night="20180120"), 1)[0] == ("2018 BA1", "K18B01A")
    assert packed_epoch(NightPlan(night="20180131")) == "K181V"


def test_elements_and_states_are_one_another():
    rng = np.random.default_rng(1)
    for _ in range(20):
        orbit = Orbit(2459127.5, rng.uniform(2, 3.5), rng.uniform(0.01, 0.4), *rng.uniform(0.5, 170, 1),
                      *rng.uniform(0, 360, 3), 15.0)  # fmt: skip
        h = 0.125  # exact in binary
        here = orbit_position(orbit, 2459127.5)
        velocity = (orbit_position(orbit, 2459127.5 + h) - orbit_position(orbit, 2459127.5 - h)) / (2 * h)
        again = elements_of(here, velocity, 2459127.5, 15.0)
        assert (again.a, again.e) == pytest.approx((orbit.a, orbit.e), abs=2e-6)
        for key in ("inclination", "node", "peri", "mean_anomaly"):
            turn = (getattr(again, key) - getattr(orbit, key) + 180) % 360 - 180
            assert abs(turn) < 1e-3


def test_kepler_agrees_with_integration():
    orbit = Orbit(2459127.5, 2.6, 0.23, 12.0, 80.0, 150.0, 33.0, 15.0)
    h = 0.125  # exact in binary
    start = orbit_position(orbit, orbit.epoch)
    velocity = (orbit_position(orbit, orbit.epoch + h) - orbit_position(orbit, orbit.epoch - h)) / (2 * h)

    def force(_t, state):
        r = state[:3]
        return np.concatenate([state[3:], -GM_SUN * r / np.linalg.norm(r) ** 3])

    end = solve_ivp(force, (0, 300), np.concatenate([start, velocity]), rtol=1e-11, atol=1e-13).y[:3, -1]
    assert orbit_position(orbit, orbit.epoch + 300) == pytest.approx(end, abs=1e-6)


def test_ephemeris_agrees_with_astropys_frames():
    """The same heliocentric place through astropy's ecliptic frame; astropy's obliquity differs by 0.04 arcsec."""
    orbit = Orbit(2459127.5, 2.6, 0.1, 5.0, 80.0, 150.0, 140.0, 15.0)
    jd = 2459127.8
    ra, dec, v = ephemeris(orbit, jd)
    observer = observer_heliocentric(jd)
    tt, light = tt_of(jd), 0.0
    for _ in range(5):
        line = orbit_position(orbit, tt - light) - observer
        light = np.linalg.norm(line) * 499.004784 / 86400
    seen = SkyCoord(
        CartesianRepresentation(*(line * 1e9), unit=u.au),  # so far off that the Sun's own place does not matter
        frame=HeliocentricMeanEcliptic(equinox="J2000", obstime=Time(jd, format="jd")),
    )
    assert seen.icrs.separation(SkyCoord(ra * u.deg, dec * u.deg)).arcsec < 0.2
    r, distance = np.linalg.norm(orbit_position(orbit, tt)), np.linalg.norm(line)
    assert v > 15.0 + 5 * math.log10(r * distance) - 0.01


def test_time_scale_is_tt():
    assert (tt_of(2459127.5) - 2459127.5) * 86400 == pytest.approx(69.184, abs=1e-3)


def test_asteroids_move_like_the_main_belt_and_in_time(plan):
    science = [e for e in schedule(plan) if e.role == "sci"]
    for mover in movers(plan):
        if mover.orbit is None:
            continue
        times = np.array([e.jd_mid for e in science])
        places = np.array([mover.at(t)[:2] for t in times])
        # Over two hours a straight line at the stated rate, to a fraction of the parallax' curvature.
        days = times - times[0]
        east = (places[:, 0] - places[0, 0]) * math.cos(math.radians(places[0, 1]))
        north = places[:, 1] - places[0, 1]
        angle = math.radians(mover.position_angle)
        assert np.abs(east - days * mover.rate * math.sin(angle)).max() * 3600 < 1.5
        assert np.abs(north - days * mover.rate * math.cos(angle)).max() * 3600 < 1.5
        assert 0.05 < mover.rate < 0.6
        assert 1.8 < mover.orbit.a < 5


def test_truth_rows_of_movers_follow_their_motion(plan):
    science = [e for e in schedule(plan) if e.role == "sci"]
    seen: dict[int, list] = {}
    for exposure in science:
        _, sources, _ = paint_quadrant(plan, exposure, 0)
        rows = sources[1]
        for k, identifier in enumerate(rows.get("truth_id", []) if isinstance(rows["truth_id"], list) else []):
            seen.setdefault(identifier, []).append({key: v[k] for key, v in rows.items() if isinstance(v, list)})
    asteroids = [rows for rows in seen.values() if rows[0]["kind"] == "asteroid"]
    assert any(len(rows) == 4 for rows in asteroids)
    for rows in asteroids:
        if len(rows) == 4:
            steps = 3600 * np.diff([[row["ra"], row["dec"]] for row in rows], axis=0)
            assert np.ptp(steps, axis=0).max() < 0.5  # arcsec: equal steps in equal times
            assert np.hypot(*steps.T).min() > 3
    streaks = [row for rows in seen.values() for row in rows if row["kind"] == "streak"]
    assert streaks
    for row in streaks:
        length = math.hypot(row["x2"] - row["x1"], row["y2"] - row["y1"])
        mover = next(m for m in movers(plan) if m.truth_id == row["truth_id"])
        assert length == pytest.approx(mover.rate * plan.exptime / 86400 * 3600 / SMALL.pixel_scale, rel=0.02)
        assert (row["x"], row["y"]) == pytest.approx(
            ((row["x1"] + row["x2"]) / 2, (row["y1"] + row["y2"]) / 2), abs=0.1
        )


def test_numbers_of_movers_can_be_chosen():
    assert movers(NightPlan(camera=SMALL, asteroids=0, streaks=0)) == ()
    assert mpcorb(NightPlan(camera=SMALL, asteroids=0)) == ""
    assert movers(NightPlan(camera=SMALL, n_science=0)) == ()
    assert len(movers(NightPlan(camera=FULL, ccds=(1, 2)))) == 8 * 6
