"""A batch of candidates gets its objects, histories, counts and forced photometry.

What is asked of the memory is asked once a batch, not once a candidate; what it answers is put together by the pure
rules of ``stream.enrich.history``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.core.identity import night_of
from stream.core.records import BatchItem, CandidateBatch, Row
from stream.enrich.forced import ForcedSource, forced_histories
from stream.enrich.history import (
    ALL_PROGRAMS,
    KEEP_DAYS,
    MATCH_RADIUS,
    Depth,
    Epoch,
    Event,
    History,
    Match,
    assemble_history,
    is_known_mover,
    limit_row,
    newest_versions,
    quadrant_depth,
    separation,
    visible_programs,
)


def enrich_batch(
    batch: CandidateBatch,
    history: History,
    prv_fields: Sequence[str],
    forced: ForcedSource | None = None,
    depth: Depth = quadrant_depth,
) -> None:
    """Give every item of a batch its objectId, history, counts and forced points, and remember it.

    Parameters
    ----------
    prv_fields : sequence of str
        Names of the packet's ``prv_candidate`` record, which the remembered rows take from the candidate.
    forced : ForcedSource, optional
        Measures on the stored difference images; without it there are no forced points.
    depth : Depth
        How deep an epoch was at a place.

    Notes
    -----
    Counts and the first date of the history tell of epochs of visible programs only: a public packet does not say
    that a private one exists.
    """
    if not batch.items:
        return
    rows = [item.candidate for item in batch.items]
    candids, night = [row["candid"] for row in rows], night_of(batch.jd)
    programs = visible_programs(batch.programid)
    tracks = history.movers(candids, night)
    # A tracklet is named after its first detection: who may not see all programs sees the public tracklet's name only.
    named = tracks if programs == ALL_PROGRAMS else history.movers(candids, night, public=True)
    events = [
        Event(row["ra"], row["dec"], row["jd"], row["candid"], row["candid"] in tracks or is_known_mover(row))
        for row in rows
    ]
    matches = history.match(events)
    known = history.detections(sorted({name for match in matches for name in match.near}))
    epochs = history.epochs([e.ra for e in events], [e.dec for e in events], batch.jd)
    since = batch.jd - KEEP_DAYS
    visible = [epoch for epoch in epochs if epoch.programid in programs and epoch.jd >= since]
    inside = covering(visible, [e.ra for e in events], [e.dec for e in events])
    for i, (item, match) in enumerate(zip(batch.items, matches, strict=True)):
        item.object_id = match.name
        if events[i].candid in named:
            item.extension["trackid"] = named[events[i].candid]
        covered = [visible[k] for k in np.flatnonzero(inside[i])]
        seen = [
            row for name in match.near for row in known[name] if row["programid"] in programs and row["jd"] >= since
        ]
        _remind(item, seen, covered, prv_fields, depth)
    if forced is not None:
        still = [event.moving for event in events]
        points = forced_histories(batch, list(zip(matches, still, strict=True)), visible, history, forced)
        for item, found in zip(batch.items, points, strict=True):
            item.fp_hists = found or None
    history.add_detections(_detections(rows, matches, prv_fields))


def _remind(item: BatchItem, seen: list[Row], covered: list[Epoch], prv_fields: Sequence[str], depth: Depth) -> None:
    """History and counts of one event from the detections near it and the epochs that covered it."""
    row = item.candidate
    ra, dec, jd = row["ra"], row["dec"], row["jd"]
    here = [k for k in newest_versions(seen) if separation(ra, dec, k["ra"], k["dec"]) <= MATCH_RADIUS]
    limits = []
    for epoch in covered:
        limit = depth(epoch, ra, dec)
        if limit is not None:
            limits.append(dict.fromkeys(prv_fields) | limit_row(epoch, limit))
    item.prv_candidates = assemble_history(here, limits, jd, row["candid"], (0, 1, 2, 3)) or None
    same_channel = [k for k in here if k["jd"] < jd and (k["field"], k["rcid"]) == (row["field"], row["rcid"])]
    row["ndethist"] = len(same_channel) + 1
    row["ncovhist"] = len(covered) + 1
    row["jdstarthist"] = min([k["jd"] for k in same_channel], default=jd)
    row["jdendhist"] = jd


def _detections(rows: Sequence[Row], matches: Sequence[Match], fields: Sequence[str]) -> list[tuple[str, Row]]:
    return [(m.name, {name: row.get(name) for name in fields}) for m, row in zip(matches, rows, strict=True)]


def covering(epochs: Sequence[Epoch], ra: ArrayLike, dec: ArrayLike) -> NDArray[np.bool_]:
    """Which epochs' footprints contain which places: ``history.covers`` for many at once.

    Returns
    -------
    ndarray, (n_places, n_epochs), bool
    """
    ras, decs = (np.asarray(v, float)[:, None, None] for v in (ra, dec))
    if not epochs:
        return np.zeros((len(ras), 0), bool)
    corners = np.array([epoch.corners for epoch in epochs], float).reshape(len(epochs), -1, 2)
    x = ((corners[..., 0] - ras + 180.0) % 360.0 - 180.0) * np.cos(np.radians(corners[..., 1]))
    y = corners[..., 1] - decs
    sign = x * np.roll(y, -1, axis=-1) - np.roll(x, -1, axis=-1) * y
    inside: NDArray[np.bool_] = np.all(sign >= 0, axis=-1) | np.all(sign <= 0, axis=-1)
    return inside
