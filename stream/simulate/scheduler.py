"""Which field is taken when: nights as the survey's own queue would make them, and the plain night of one field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core import identity
from stream.core.errors import UsageError
from stream.simulate import almanac
from stream.simulate.conditions import Weather, clock, on_sky, under_the_sky, weather_of
from stream.simulate.plan import NightPlan, SimExposure, Survey, field_centre, field_centres, seeded

F64 = NDArray[np.float64]

SECOND = 1.0 / 86_400.0
MAX_AIRMASS = 2.5
GOOD_AIRMASS = 1.8  # fields that are chosen for a survey are at least so high while they are wanted
MOON_DISTANCE = 25.0  # deg from the moon when it is up, more the fuller it is
READOUT = 8.66  # s between exposures: the survey's mean overhead, in which the readout is
SETTLE = 1.0  # s after a slew
FILTER_CHANGE = 135.0  # s
SLEW = ((0.4, 2.5), (0.5, 3.0))  # deg/s^2 and deg/s, in hour angle and declination
PRIMARY_GRID = 1000  # identifiers below are of the primary grid
SOUTHERN_LIMIT = -31.5  # deg
AFTERNOON = 0.6 * 3600.0  # s after 0 h UT: at Palomar before any sky exposure of the UT date
PLAIN = NightPlan()
EARLIEST_REFERENCE = 30  # days before the first night of a survey


def schedule(plan: NightPlan) -> tuple[SimExposure, ...]:
    """All exposures of the plan in time order: calibration, references, science.

    Raises
    ------
    UsageError
        The plan cannot be: two exposures in the same second, or fields that are not up.
    """
    # What does not change a survey's schedule is left out, so that a field's plan finds that of the whole survey.
    if plan.survey is None:
        return _schedule(plan)
    return _schedule(replace(plan, ccds=PLAIN.ccds, qids=PLAIN.qids, noise_seed=PLAIN.noise_seed, field=PLAIN.field))


@lru_cache(maxsize=8)
def _schedule(plan: NightPlan) -> tuple[SimExposure, ...]:
    if plan.survey is None:
        exposures = [*_calibrations(plan, _first_night(plan), (plan.fid,)), *_references(plan), *_one_field(plan)]
    else:
        exposures = _survey(plan, plan.survey)
    exposures.sort(key=lambda exposure: exposure.jd)
    if len({exposure.expid for exposure in exposures}) < len(exposures):
        raise UsageError("two exposures would start in the same second: choose another cadence")
    return tuple(exposures)


def science_of(plan: NightPlan) -> tuple[SimExposure, ...]:
    """Science exposures of the plan's own field, in time order."""
    return tuple(e for e in schedule(plan) if e.role == "sci" and e.field == plan.field)


def fields_of(plan: NightPlan) -> tuple[int, ...]:
    """Fields that the plan's exposures see, in order of their numbers."""
    if plan.survey is None:
        return (plan.field,)
    return tuple(sorted({exposure.field for exposure in schedule(plan) if exposure.role != "cal"}))


# -- one field


def _reference_nights(plan: NightPlan) -> list[float]:
    days = [1.0 + 14.0 * (1 - (i + 1) / plan.n_reference) for i in range(plan.n_reference)]
    return [plan.midnight - round(day) for day in days]


def _first_night(plan: NightPlan) -> float:
    return min([*_reference_nights(plan), plan.midnight])


def _references(plan: NightPlan) -> Iterator[SimExposure]:
    per_night: dict[float, int] = {}
    for i, midnight in enumerate(_reference_nights(plan)):
        k = per_night[midnight] = per_night.get(midnight, -1) + 1
        yield on_sky(plan, "ref", i, midnight, 6.1 * 3600.0 + 61.3 * i + k * plan.cadence)


def _one_field(plan: NightPlan) -> Iterator[SimExposure]:
    for i in range(plan.n_science):
        yield on_sky(plan, "sci", i, plan.midnight, 5.05 * 3600.0 + i * plan.cadence)


def _calibrations(plan: NightPlan, midnight: float, fids: tuple[int, ...]) -> Iterator[SimExposure]:
    """Bias frames, darks and dome flats of an afternoon."""
    seconds = AFTERNOON
    sorts = [("bias", plan.n_bias, 0.0, fids[0]), ("dark", plan.n_dark, 30.0, fids[0])]
    sorts += [("flat", plan.n_flat, 10.0, fid) for fid in fids]
    for imgtype, count, exptime, fid in sorts:
        for i in range(count):
            jd, stamp = clock(midnight, seconds)
            seconds += 25.0 + exptime
            level = seeded(plan.seed, "lamp", identity.expid_of(jd)).uniform(18_000, 22_000)
            level = level if imgtype == "flat" else 0.0
            yield SimExposure("cal", imgtype, i, 0, fid, jd, exptime, 0, stamp, level=level)


# -- a survey


def _survey(plan: NightPlan, survey: Survey) -> list[SimExposure]:
    """Science of all nights, references of their fields and filters, calibration frames of every night."""
    nights = [plan.midnight + k * survey.every for k in range(survey.nights)]
    chosen = choose_fields(plan, survey, nights)
    science: list[SimExposure] = []
    for midnight in nights:
        science += Queue(plan, survey, midnight, chosen).run(len(science))
    if not science:
        raise UsageError(f"no exposure fits into {survey.nights} nights from {plan.night}: closed dome or fields down")
    pairs = sorted({(exposure.field, exposure.fid) for exposure in science})
    references = [e for field_, fid in pairs for e in _survey_references(plan, field_, fid, pairs.index((field_, fid)))]
    first = min([math.floor(e.jd - 0.5) + 0.5 for e in references] + nights)
    frames = [e for midnight in sorted({first, *nights}) for e in _calibrations(plan, midnight, survey.filters)]
    return [*frames, *references, *science]


def choose_fields(plan: NightPlan, survey: Survey, nights: list[float]) -> tuple[int, ...]:
    """Fields of the survey: those that are named, or neighbours that are well up in every night, or all of the grid.

    Raises
    ------
    UsageError
        Fewer fields are up than are wanted.
    """
    if survey.fields:
        return survey.fields
    centres = field_centres()
    names = np.array([n for n in centres if n < PRIMARY_GRID and centres[n][1] > SOUTHERN_LIMIT])
    if survey.n_fields is None:
        return tuple(int(n) for n in names)
    places = np.array([centres[int(n)] for n in names])
    hours = np.full(len(names), np.inf)
    for midnight in nights:
        evening, morning = almanac.dark_hours(midnight)
        times = np.arange(evening, morning, 15.0 / 1440.0)
        high = [almanac.airmass(almanac.altitude(places[:, 0], places[:, 1], jd)) < GOOD_AIRMASS for jd in times]
        moon = almanac.moon(0.5 * (evening + morning))
        away = almanac.separation(places[:, 0], places[:, 1], moon.ra, moon.dec) > MOON_DISTANCE + 20.0 * moon.lit
        hours = np.minimum(hours, 0.25 * np.sum(high, axis=0) * away)
    enough = (survey.visits - 1) * survey.gap / 60.0 + 0.5
    up = np.flatnonzero(hours >= enough)
    if len(up) < survey.n_fields:
        raise UsageError(f"only {len(up)} fields are up for {enough:.1f} h in each night from {plan.night}")
    rng = seeded(plan.seed, "fields", plan.night)
    longest = up[np.argsort(-hours[up], kind="stable")][: max(20, survey.n_fields)]
    first = int(rng.choice(longest))
    order = up[
        np.argsort(almanac.separation(places[first, 0], places[first, 1], places[up, 0], places[up, 1]), kind="stable")
    ]
    return tuple(int(n) for n in names[order[: survey.n_fields]])


@dataclass(slots=True)
class Queue:
    """One night's decisions: what is taken next, where the telescope is, which filter is in.

    A field's visits are in turn in the survey's filters, at least the gap apart. The filter stays for about a gap, so
    that changes are rare. Among what is due the highest field near the telescope comes first; a field is begun only
    if the night has time for its last visit.
    """

    plan: NightPlan
    survey: Survey
    midnight: float
    fields: tuple[int, ...]
    visits: NDArray[np.int64] = field(init=False)
    last: F64 = field(init=False)
    filters: NDArray[np.int64] = field(init=False)
    places: F64 = field(init=False)
    pointing: tuple[float, float] | None = None
    fid: int = 0
    since: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.fields)
        self.visits, self.last = np.zeros(n, np.int64), np.full(n, -np.inf)
        self.places = np.array([field_centre(f) for f in self.fields]).reshape(n, 2)
        turns = np.arange(self.survey.visits)[None, :]
        self.filters = np.array(self.survey.filters)[turns.repeat(n, 0) % len(self.survey.filters)]
        self.fid = self.survey.filters[0]

    def run(self, first_index: int) -> list[SimExposure]:
        """The night's exposures."""
        evening, morning = almanac.dark_hours(self.midnight)
        weather = weather_of(self.plan, self.midnight)
        now = self.since = self._start(evening, morning)
        out: list[SimExposure] = []
        while now + self.plan.exptime * SECOND < morning and len(out) < (self.survey.limit or math.inf):
            if (self.visits == self.survey.visits).all():
                break
            cloud, seeing = weather.at(now)
            k = None if math.isnan(cloud) else self._next(now, morning)
            if k is None:
                now += 60.0 * SECOND
                continue
            now += self._overhead(now, k) * SECOND
            out.append(self._take(first_index + len(out), now, k, (weather, cloud, seeing)))
            now += self.plan.exptime * SECOND
        return out

    def _start(self, evening: float, morning: float) -> float:
        """When to begin: at dusk, or with few fields so that they are highest when half of their visits are done."""
        needed = len(self.fields) * self.survey.visits * (self.plan.exptime + READOUT) * SECOND
        span = max((self.survey.visits - 1) * self.survey.gap / 1440.0, needed)
        if span > 0.7 * (morning - evening):
            return evening
        times = np.arange(evening, morning, 10.0 / 1440.0)
        worst = [
            float(almanac.airmass(almanac.altitude(self.places[:, 0], self.places[:, 1], jd)).max()) for jd in times
        ]
        best = float(times[int(np.argmin(worst))])
        return min(max(evening, best - 0.5 * span), morning - span - 0.02)

    def _next(self, now: float, morning: float) -> int | None:
        """The field to take, with the filter that is in or, when its time is over or nothing is due, another."""
        gap = self.survey.gap / 1440.0
        ready = (self.visits < self.survey.visits) & (now - self.last >= gap) & self._up(now)
        fresh = self.visits == 0
        remaining = (self.survey.visits - 1) * gap + 0.01
        ready &= ~fresh | ((now + remaining < morning) & self._up(min(now + remaining, morning)))
        if not ready.any():
            return None
        wanted = self.filters[np.arange(len(self.visits)), np.minimum(self.visits, self.survey.visits - 1)]
        in_filter = ready & (wanted == self.fid)
        over = now - self.since >= gap and (ready & ~fresh & (wanted != self.fid)).any()
        if over or not in_filter.any():
            counts = {fid: int((ready & ~fresh & (wanted == fid)).sum()) for fid in self.survey.filters}
            others = [fid for fid in self.survey.filters if fid != self.fid and (ready & (wanted == fid)).any()]
            if others:
                fid = max(others, key=lambda fid: counts[fid])
                in_filter = ready & (wanted == fid)
        choices = np.flatnonzero(in_filter)
        airmass = almanac.airmass(almanac.altitude(self.places[choices, 0], self.places[choices, 1], now))
        far = np.zeros(len(choices))
        if self.pointing is not None:
            far = almanac.separation(*self.pointing, self.places[choices, 0], self.places[choices, 1])
        score = airmass + 0.02 * far - 1.0 * (self.visits[choices] > 0)
        return int(choices[int(np.argmin(score))])

    def _up(self, jd: float) -> NDArray[np.bool_]:
        """Which fields are high enough and away from the moon."""
        up = almanac.airmass(almanac.altitude(self.places[:, 0], self.places[:, 1], jd)) < MAX_AIRMASS
        moon = almanac.moon(round(jd * 48) / 48)
        if moon.altitude > 0:
            away = almanac.separation(self.places[:, 0], self.places[:, 1], moon.ra, moon.dec)
            up &= away > MOON_DISTANCE + 20.0 * moon.lit
        return np.asarray(up)

    def _overhead(self, now: float, k: int) -> float:
        """Seconds until the shutter opens: readout while the telescope moves, and a change of filter."""
        wanted = int(self.filters[k, self.visits[k]])
        seconds = READOUT
        if self.pointing is not None:
            turns = ((self.places[k, 0] - self.pointing[0] + 180) % 360 - 180, self.places[k, 1] - self.pointing[1])
            moves = [slew_time(abs(turn), *how) for turn, how in zip(turns, SLEW, strict=True)]
            seconds = max(READOUT, max(moves) + SETTLE)
        if wanted != self.fid:
            seconds += FILTER_CHANGE
            self.fid, self.since = wanted, now
        return seconds

    def _take(self, index: int, now: float, k: int, sky: tuple[Weather, float, float]) -> SimExposure:
        weather, cloud, seeing = sky
        self.visits[k] += 1
        self.last[k] = now
        self.pointing = (float(self.places[k, 0]), float(self.places[k, 1]))
        shares = np.array(self.survey.programs) / sum(self.survey.programs)
        rng = seeded(self.plan.seed, "program", identity.nid_of(now), self.fields[k])
        program = 1 + int(rng.choice(3, p=shares))  # a field's visits of a night belong together
        what = (self.fields[k], self.fid, program)
        return under_the_sky(self.plan, "sci", index, now, what, (cloud, weather.haze, seeing))


def slew_time(degrees: float, acceleration: float, speed: float) -> float:
    """Seconds to turn an axis by an angle, speeding up and slowing down (deg/s^2) below a top speed (deg/s)."""
    if degrees < speed**2 / acceleration:
        return 2.0 * math.sqrt(degrees / acceleration)
    return degrees / speed + speed / acceleration


def _survey_references(plan: NightPlan, field_: int, fid: int, turn: int) -> Iterator[SimExposure]:
    """Clear moonless exposures of a field in a filter, one a night, a month and more before the survey.

    ``turn`` sets the field's place in the queue of a night's references.
    """
    ra, dec = field_centre(field_)
    taken, day = 0, EARLIEST_REFERENCE
    low, high = plan.seeing
    while taken < plan.n_reference:
        day += 1
        if day > EARLIEST_REFERENCE + 400:
            raise UsageError(f"field {field_} is up in too few dark nights before {plan.night} for its references")
        midnight = plan.midnight - day
        evening, morning = almanac.dark_hours(midnight)
        times = np.arange(evening + 0.01, morning - 0.06, 20.0 / 1440.0)
        airmass = np.array([float(almanac.airmass(almanac.altitude(ra, dec, jd))) for jd in times])
        jd = float(times[int(np.argmin(airmass))]) + turn * 61.0 * SECOND
        if airmass.min() > GOOD_AIRMASS or float(almanac.moonlight(ra, dec, jd, fid)) > 0.3:
            continue
        rng = seeded(plan.seed, "reference", field_, fid, day)
        seeing = rng.uniform(low, 0.5 * (low + high)) / airmass.min() ** 0.6
        yield under_the_sky(plan, "ref", taken, jd, (field_, fid, 1), (0.0, abs(rng.normal(0, 0.02)), seeing))
        taken += 1
