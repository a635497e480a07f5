"""When a reference is made anew, as a table of decisions."""

from __future__ import annotations

import pytest

from stream.core.flags import Info
from stream.reference import Current, Epoch, EpochConfig, UpdateConfig, decide_rebuild

CONFIG = UpdateConfig(EpochConfig(minimum=4, maximum=10), gain=0.1, sharper=0.1, new=3, loss=0.03)


def epochs(n: int, start: int = 0, seeing: float = 2.0, maglim: float = 20.5, infobits: int = 0) -> list[Epoch]:
    return [Epoch(f"ztf_{start + k:03d}", infobits, seeing, maglim, 26.2) for k in range(n)]


def current(of: list[Epoch], **changes: object) -> Current:
    return Current(**({"version": "v1", "inputs": tuple(e.name for e in of), "epochs": tuple(of)} | changes))  # type: ignore[arg-type]


OLD = epochs(6)


@pytest.mark.parametrize(
    ("now", "there", "rebuild", "why"),
    [
        (None, epochs(4), True, "none yet"),
        (None, epochs(3), False, "3 exposures pass every rule, 4 asked"),
        (None, [], False, "none of 0"),
        (current(OLD), OLD, False, "same exposures"),
        (current(OLD), OLD + epochs(2, 6), False, "2 new exposures"),
        (current(OLD), OLD + epochs(3, 6), True, "0.22 mag deeper"),
        (current(OLD), OLD + epochs(3, 6, maglim=19.4), False, "would gain 0.03"),
        (current(OLD, pinned="v1, ada: a supernova"), OLD + epochs(4, 6), False, "pinned: v1, ada"),
        # The inputs of old are no longer there: what is left must be as deep.
        (current(OLD), epochs(4, 6), False, "0.22 mag shallower"),
        (current(OLD), epochs(10, 6), True, "deeper with 10"),
        (current(OLD), epochs(6, 6, seeing=1.75), True, "seeing 1.75 arcsec instead of 2.00"),
        (current(OLD), epochs(6, 6, seeing=1.95), False, "0.1 asked"),
        (current(OLD, relaxed=True), epochs(6, 6), True, "break rules"),
        # An input turned out to be bad.
        (current(OLD), OLD[1:] + epochs(1, 0, infobits=int(Info.BAD_QUALITY)), True, "bad by now: ztf_000"),
        # A log without figures.
        (current(OLD, epochs=()), OLD + epochs(3, 6), True, "no depth"),
        (current(OLD, epochs=()), epochs(6, 6), False, "no depth"),
    ],
)
def test_decisions(now: Current | None, there: list[Epoch], rebuild: bool, why: str) -> None:
    verdict = decide_rebuild(now, there, CONFIG)
    assert (verdict.rebuild, why in verdict.reason) == (rebuild, True), verdict.reason


def test_a_renewed_reference_is_not_renewed_again() -> None:
    there = OLD + epochs(4, 6)
    verdict = decide_rebuild(current(OLD), there, CONFIG)
    assert verdict.selection is not None
    made = current([there[i] for i in verdict.selection.chosen])
    assert not decide_rebuild(made, there, CONFIG).rebuild
