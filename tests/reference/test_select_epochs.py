"""The choice of exposures, as a table of decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import ReferenceBuildError
from stream.core.flags import Info
from stream.reference import Epoch, EpochConfig, select_epochs


def good(k: int, **changes: float) -> Epoch:
    values = {"infobits": 0, "seeing": 2.0, "maglim": 20.5 + 0.01 * k, "magzp": 26.2} | changes
    return Epoch(f"ztf_{k:03d}", int(values["infobits"]), values["seeing"], values["maglim"], values["magzp"])


def test_all_good_ones_deepest_first() -> None:
    selection = select_epochs([good(k) for k in range(20)])
    assert selection.chosen == tuple(range(19, -1, -1))
    assert (selection.relaxed, selection.rejected, selection.sufficient) == ((), {}, True)


def test_no_more_than_the_maximum() -> None:
    selection = select_epochs([good(k) for k in range(60)])
    assert len(selection.chosen) == 50
    assert min(selection.chosen) == 10
    assert selection.rejected["ztf_000"] == "more exposures than needed"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seeing": 3.0}, "seeing"),
        ({"seeing": 1.5}, "seeing"),
        ({"maglim": 18.0}, "MAGLIM"),
        ({"maglim": 23.0}, "MAGLIM"),
        ({"infobits": float(Info.FEW_SOURCES)}, "INFOBITS"),
        ({"magzp": 25.7}, "MAGZP"),
        ({"magzp": float("nan")}, "no zero point"),
        ({"infobits": float(Info.NO_ASTROMETRY)}, "astrometry"),
        ({"seeing": float("nan")}, "PSF"),
    ],
)
def test_each_rule_rejects(change: dict[str, float], why: str) -> None:
    epochs = [good(k) for k in range(15)] + [good(15, **change)]
    selection = select_epochs(epochs)
    assert 15 not in selection.chosen
    assert why in selection.rejected["ztf_015"]
    assert selection.sufficient


def test_the_least_bad_fill_up_when_good_ones_are_few() -> None:
    epochs = [good(0), good(1, seeing=3.0), good(2, seeing=3.0, maglim=18.0), good(3, infobits=float(Info.NO_PSF))]
    selection = select_epochs(epochs, EpochConfig(minimum=2))
    assert (selection.chosen, selection.relaxed, selection.sufficient) == ((0, 1), (1,), False)
    assert select_epochs(epochs).chosen == (0, 1, 2)
    assert select_epochs(epochs, EpochConfig(relax=False)).chosen == (0,)


def test_nothing_usable_is_an_error_that_says_why() -> None:
    with pytest.raises(ReferenceBuildError, match="there is none"):
        select_epochs([])
    with pytest.raises(ReferenceBuildError, match="ztf_000: no zero point"):
        select_epochs([good(0, infobits=float(Info.NO_ZEROPOINT))])


@given(st.permutations(range(12)), st.integers(1, 12))
def test_the_choice_does_not_depend_on_the_order(order: list[int], minimum: int) -> None:
    epochs = [good(k, seeing=1.6 + 0.1 * k) for k in range(12)]
    config = EpochConfig(minimum=minimum)
    straight = {epochs[i].name for i in select_epochs(epochs, config).chosen}
    shuffled = [epochs[i] for i in order]
    assert {shuffled[i].name for i in select_epochs(shuffled, config).chosen} == straight
