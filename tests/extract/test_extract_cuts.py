"""The cuts as a table, and row numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.extract import MAX_ROWS, PROFILES, assign_tblids, rejection

SURVEY, NOISE_AWARE, INCLUSIVE = (PROFILES[name] for name in ("survey-2018", "noise-aware", "inclusive"))
GOOD = {
    "jd": 2458451.7, "fid": 1, "pid": 1, "programid": 1, "candid": 1, "isdiffpos": "t", "ra": 1.0, "dec": 1.0,
    "magpsf": 19.0, "sigmapsf": 0.1, "ranr": 1.0, "decnr": 1.0, "mindtoedge": 100.0, "nbad": 0, "fwhm": 2.5,
    "elong": 1.1, "magdiff": 0.02, "sigmagap": 0.2, "diffmaglim": 20.6, "jdstartref": 1.0, "jdendref": 2.0,
}  # fmt: skip
EXTRA = {"flux": -1000.0, "fluxerr": 100.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"magpsf": None}, "unmeasurable"),
        ({"ranr": None}, "unmeasurable"),
        ({"diffmaglim": None}, "unmeasurable"),
        ({"fluxerr": None}, "unmeasurable"),
        ({"mindtoedge": 9.9}, "edge"),
        ({"mindtoedge": 10.0}, None),
        ({"mindtoedge": None}, "edge"),
        ({"nbad": 4}, None),
        ({"nbad": 5}, "bad_pixels"),
        ({"flux": 499.0}, "low_snr"),
        ({"flux": 500.0}, None),
        ({"magpsf": 23.5}, None),
        ({"magpsf": 23.6}, "faint"),
        ({"fwhm": 7.0}, None),
        ({"fwhm": 7.1}, "fwhm"),
        ({"fwhm": None}, "fwhm"),
        ({"elong": 1.6}, None),
        ({"elong": 1.61}, "elong"),
        ({"elong": None}, "elong"),
        ({"magdiff": -0.4}, None),
        ({"magdiff": -0.41}, "magdiff"),
        ({"magdiff": 0.75}, None),
        ({"magdiff": 0.76}, "magdiff"),
        ({"magdiff": None}, "magdiff"),
        ({"mindtoedge": 1.0, "nbad": 25, "fwhm": 30.0}, "edge"),
    ],
)
def test_the_surveys_limits(change, reason):
    fields, extra = dict(GOOD), dict(EXTRA)
    for name, value in change.items():
        (extra if name in EXTRA else fields)[name] = value
    assert rejection(fields, extra, SURVEY) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fwhm": 30.0, "elong": 9.0, "magdiff": -3.0}, None),  # a trail, a comet
        ({"fwhm": None, "elong": None, "magdiff": None}, None),
        ({"unexplained": 2.9}, None),
        ({"unexplained": 3.1}, "sharp"),  # a particle's track
        ({"dipole": 0.9, "distnr": 1.0}, "dipole"),
        ({"dipole": 0.9, "distnr": 8.0}, None),  # two real neighbours of opposite sign
        ({"dipole": 0.9, "distnr": None}, None),
        ({"dipole": 0.5, "distnr": 1.0}, None),
        ({"nbad": 5}, "bad_pixels"),
        ({"flux": 499.0}, "low_snr"),
    ],
)
def test_the_inclusive_profile_leaves_shapes_to_the_classifiers(change, reason):
    ours = ("flux", "unexplained", "dipole")
    fields = GOOD | {name: value for name, value in change.items() if name not in ours}
    extra = EXTRA | {name: value for name, value in change.items() if name in ours}
    assert rejection(fields, extra, INCLUSIVE) == reason


@pytest.mark.parametrize(
    ("change", "snr", "reason"),
    [
        ({"magdiff": 0.9, "sigmagap": 0.6}, 5.5, None),  # the aperture's noise explains it
        ({"magdiff": 0.9, "sigmagap": 0.01}, 100.0, "magdiff"),
        ({"magdiff": None, "sigmagap": None}, 6.0, None),  # the aperture saw nothing
        ({"magdiff": None, "sigmagap": None}, 60.0, "magdiff"),
        ({"elong": 1.9}, 6.0, None),
        ({"elong": 1.9}, 100.0, "elong"),
        ({"elong": None, "fwhm": None}, 5.0, None),
        ({"fwhm": None}, 50.0, "fwhm"),
        ({"fwhm": 30.0}, 5.0, "fwhm"),
    ],
)
def test_the_noise_aware_limits_open_only_for_faint_candidates(change, snr, reason):
    assert rejection({**GOOD, **change}, {"flux": 100.0 * snr, "fluxerr": 100.0}, NOISE_AWARE) == reason


def test_both_profiles_agree_on_bright_point_sources():
    for magdiff in np.linspace(-1, 1.5, 51):
        row = {**GOOD, "magdiff": float(magdiff), "sigmagap": 1e-4}
        bright = {"flux": 1e6, "fluxerr": 1.0}
        if min(abs(magdiff + 0.4), abs(magdiff - 0.75)) > 0.01:
            assert rejection(row, bright, SURVEY) == rejection(row, bright, NOISE_AWARE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans()), min_size=1, max_size=60)
)
def test_rows_are_consecutive_sent_first_and_in_reading_order(table):
    x, y, positive, accepted = (np.array(column) for column in zip(*table, strict=True))
    rows = assign_tblids(x, y, positive, accepted)
    for sign in (True, False):
        mine = np.flatnonzero(positive == sign)
        assert sorted(rows[mine].tolist()) == list(range(len(mine)))
        order = mine[np.argsort(rows[mine])]
        keys = [(not accepted[i], y[i], x[i]) for i in order]
        assert keys == sorted(keys)


def test_more_rows_than_numbers_are_refused():
    n = MAX_ROWS + 1
    with pytest.raises(ValueError, match="5001 rows"):
        assign_tblids(np.arange(n), np.arange(n), np.ones(n, bool), np.ones(n, bool))
