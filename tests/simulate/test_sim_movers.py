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
from stream.simulate.almanac import tt_of
from stream.simulate.movers import FAMILIES, cometels, movers, movers_near, mpcorb
from stream.simulate.orbits import (
    GM_SUN,
    PER_HALF_MONTH,
    Orbit,
    comet_designation,
    designation,
    elements_from,
    elements_of,
    ephemerides,
    ephemeris,
    observer_heliocentric,
    orbit_position,
    packed_epoch,
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
    names = [designation("20201005", k) for k in range(300)]
    assert names[0] == ("2020 TA1", "K20T01A")
    assert names[25] == ("2020 TA2", "K20T02A")
    assert names[299] == ("2020 TZ12", "K20T12Z")
    assert len({packed for _, packed in names}) == 300
    assert designation("20180120", 0) == ("2018 BA1", "K18B01A")
    # What a half month cannot count goes to the one before, over the year's end too.
    assert designation("20180103", PER_HALF_MONTH - 1)[1] == "K18Az9Z"
    assert designation("20180103", PER_HALF_MONTH) == ("2017 YA1", "K17Y01A")
    assert comet_designation("20201005", 0) == ("C/2020 T1", "CK20T010")
    assert comet_designation("20201005", 11) == ("C/2020 T12", "CK20T120")
    assert packed_epoch("20180131") == "K181V"


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


def test_asteroids_move_at_their_rate_and_in_time(plan):
    science = [e for e in schedule(plan) if e.role == "sci"]
    for mover in movers(plan):
        if mover.orbit is None or mover.family == "near_earth":
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


@pytest.fixture(scope="module")
def many() -> NightPlan:
    return NightPlan(n_science=1, asteroids=30, streaks=20, comets=3, ccds=(6, 11))


def test_families_have_their_orbits_and_rates(many):
    """Sizes, eccentricities and inclinations of the families, and rates of 0.1 to 2 arcsec a minute."""
    rates = []
    for mover in movers(many):
        if mover.kind != "asteroid":
            continue
        orbit = mover.orbit
        _, sizes, eccentricities, inclinations = FAMILIES[mover.family]
        if mover.family == "near_earth":
            assert orbit.a * (1 - orbit.e) < 1.3
        else:
            assert sizes[0] - 1e-6 < orbit.a < sizes[1] + 1e-6
            assert eccentricities[0] - 1e-6 < orbit.e < eccentricities[1] + 1e-6
            assert inclinations[0] - 1e-4 < orbit.inclination < max(inclinations[1], 12.0)
        rates.append((mover.family, mover.rate * 2.5))  # arcsec a minute
    found = {family: [rate for name, rate in rates if name == family] for family in FAMILIES}
    assert all(len(values) > 10 for values in found.values())
    assert np.median(found["trojan"]) < np.median(found["main_belt"]) < np.median(found["hungaria"])
    assert np.median(found["near_earth"]) > np.median(found["main_belt"])
    every = np.array([rate for _, rate in rates])
    assert ((every > 0.02) & (every < 6)).all()
    assert ((every > 0.1) & (every < 2)).mean() > 0.9


def test_trails_are_five_to_two_hundred_arcsec(many):
    lengths = [m.rate * 3600 / 86400 * 30 for m in movers(many) if m.kind == "streak"]
    assert 5 <= min(lengths) < 15
    assert 100 < max(lengths) <= 200


def test_many_orbits_are_as_one(many):
    chosen = [m for m in movers(many) if m.orbit is not None]
    jd = schedule(many)[-1].jd_mid + 0.3
    ra, dec, v = ephemerides(elements_from([m.orbit for m in chosen]), jd)
    one = np.array([ephemeris(m.orbit, jd) for m in chosen])
    assert np.allclose(np.stack([ra, dec, v], 1), one, rtol=0, atol=1e-9)
    place = chosen[5].at(jd)[:2]
    near = movers_near(many, *place, 0.3, jd)
    assert chosen[5] in near
    assert {m.truth_id for m in near} == {
        m.truth_id for m in movers(many) if SkyCoord(*place, unit="deg").separation(
            SkyCoord(*m.at(jd)[:2], unit="deg")).deg < 0.3
    }  # fmt: skip


@pytest.mark.parametrize("e", [0.0, 0.5, 0.95, 0.98])
def test_keplers_equation_holds_to_rounding(e):
    orbit = Orbit(2459127.5, 2.0, e, 10.0, 20.0, 30.0, 0.0, 15.0)
    for mean in np.linspace(0, 360, 25):
        x = orbit_position(Orbit(2459127.5, 2.0, e, 10.0, 20.0, 30.0, float(mean), 15.0), 2459127.5)
        r = np.linalg.norm(x)
        # Back from the place: the eccentric anomaly from r, the mean anomaly from Kepler's equation.
        cosine = np.clip((1 - r / orbit.a) / e, -1, 1) if e else None
        if cosine is not None and abs(math.sin(math.radians(float(mean)))) > 1e-3:
            anomaly = math.acos(cosine) if mean < 180 else 2 * math.pi - math.acos(cosine)
            assert math.degrees(anomaly - e * math.sin(anomaly)) == pytest.approx(float(mean), abs=1e-5)


def test_comet_lines_are_the_centres_and_hold_what_is_painted(many, tmp_path):
    """Read back by the Minor Planet Center's column numbers, and by our own reader."""
    from stream.sky.orbits import COMETS, orbit_key

    lines = cometels(many).splitlines()
    comets = [m for m in movers(many) if m.kind == "comet"]
    assert len(lines) == len(comets) == 6
    for line, mover in zip(lines, comets, strict=True):
        assert orbit_key(line)[0] == COMETS
        assert line[5:12].strip() == mover.packed[1:]
        assert line[4] == "C"
        assert line[102:158].startswith(mover.designation)
        year, month, day = int(line[14:18]), int(line[19:21]), float(line[22:29])
        q, e = float(line[30:39]), float(line[41:49])
        peri, node, inclination = float(line[51:59]), float(line[61:69]), float(line[71:79])
        assert line[81:89] == "20201005"
        h, slope = float(line[91:95]), float(line[96:100])
        assert slope == 4.0
        passed = Time(f"{year:04d}-{month:02d}-01", scale="tt").jd + day - 1
        a = q / (1 - e)
        mean = math.degrees(math.sqrt(GM_SUN / a**3)) * (2459127.5 - passed)
        read = Orbit(2459127.5, a, e, inclination, node, peri, mean % 360, h, comet=True)
        jd = schedule(many)[-1].jd_mid
        ours, theirs = mover.at(jd)[:2], ephemeris(read, jd)
        assert SkyCoord(*ours, unit="deg").separation(SkyCoord(*theirs[:2], unit="deg")).arcsec < 0.05
        assert theirs[2] == pytest.approx(mover.at(jd)[2][1] + 0.18, abs=0.01)


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
