"""The latency ledger: when a quadrant passed each stage, carried in message headers as unix seconds (UTC, ASCII)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

STAGES = ("shutter_closed", "arrived", "calibrated", "subtracted", "scored", "enriched", "published")
PREFIX = "t."

_UNIX_EPOCH_JD = 2440587.5


def read(headers: Iterable[tuple[str, bytes]]) -> dict[str, float]:
    """Stage to unix seconds, in the order of the stages; entries that are no number are left out.

    A stage that occurs twice counts with its last value: a retried message passed it again.
    """
    found: dict[str, float] = {}
    for key, value in headers:
        name = key[len(PREFIX) :]
        if key.startswith(PREFIX) and name in STAGES and value is not None:
            try:
                seconds = float(value.decode("ascii"))
            except (ValueError, UnicodeDecodeError):
                continue
            if 0.0 <= seconds < 1e11:
                found[name] = seconds
    return {stage: found[stage] for stage in STAGES if stage in found}


def _check(times: Mapping[str, float]) -> None:
    unknown = sorted(set(times) - set(STAGES))
    if unknown:
        raise ValueError(f"no such stage: {', '.join(unknown)}; known are {', '.join(STAGES)}")


def in_order(times: Mapping[str, float]) -> dict[str, float]:
    """The ledger with no stage before the one that came before it, as if no clock had been set back meanwhile.

    From the arrival on: the shutter is the camera's clock, which may be ahead of ours.
    """
    _check(times)
    latest = 0.0
    ordered = {}
    for stage in (stage for stage in STAGES if stage in times):
        if stage != STAGES[0]:
            latest = max(latest, times[stage])
        ordered[stage] = times[stage] if stage == STAGES[0] else latest
    return ordered


def encode(times: Mapping[str, float]) -> tuple[tuple[str, bytes], ...]:
    """Headers of a ledger, milliseconds kept, in the order of the stages."""
    _check(times)
    return tuple((PREFIX + stage, f"{times[stage]:.3f}".encode()) for stage in STAGES if stage in times)


def extend(headers: Iterable[tuple[str, bytes]], **times: float) -> tuple[tuple[str, bytes], ...]:
    """``headers`` with the given stages added (or replaced) in their ledger, kept in order; other headers first."""
    headers = tuple(headers)
    others = tuple((key, value) for key, value in headers if not key.startswith(PREFIX))
    return (*others, *encode(in_order({**read(headers), **times})))


def unix_of_jd(jd: float) -> float:
    """Unix seconds of a UTC Julian date."""
    return (jd - _UNIX_EPOCH_JD) * 86_400.0


def seconds_between(times: Mapping[str, float], start: str, end: str) -> float | None:
    """How long it took from one stage to another, never negative; ``None`` where one is not in the ledger."""
    if start not in times or end not in times:
        return None
    return max(times[end] - times[start], 0.0)
