"""Forced photometry of objects in earlier epochs: which points are due, each measured once and then kept.

A point belongs to an object and an image: it is measured at the object's own place (where it was first seen, for
good) on the difference image of one pid, remembered under (objectId, pid), and the same in every later packet. What a
packet lacks is measured when the object is met, all objects of a batch on one image at a time.

The alert's own epoch is among the points. The survey's packets begin with the night before; nothing forbids it, every
packet then carries a point (a batch without any breaks ALeRCE: first nights), and no packet has to be waited for.
Newest first, as in the survey's packets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.core.records import CandidateBatch, Row
from stream.enrich.history import HISTORY_DAYS, Epoch, History, Match, covers

F64 = NDArray[np.float64]


class ForcedSource(Protocol):
    """Measures fluxes at places on the difference images of epochs."""

    def points(self, name: str, ra: F64, dec: F64) -> list[Row | None] | None:
        """Rows of ``fp_hist`` at places (deg) on the difference image of a quadrant, None where there is no flux.

        None instead of a list: there is no such image (yet), nothing can be said.
        """
        ...


def forced_histories(
    batch: CandidateBatch,
    objects: Sequence[tuple[Match, bool]],
    epochs: Sequence[Epoch],
    history: History,
    source: ForcedSource,
) -> list[list[Row]]:
    """The forced points of every item of a batch.

    Parameters
    ----------
    objects : sequence of (Match, bool)
        The item's object, and whether it moves: where a mover is now, it was not before, so that only its own epoch
        is measured.
    epochs : sequence of Epoch
        Those that its packet may tell of.

    Returns
    -------
    list of list of dict
        Rows of ``fp_hist``, newest first, one a jd, of the last 30 days and the batch's own epoch.
    """
    recent = [e for e in epochs if e.diffmaglim is not None and 0 < batch.jd - e.jd < HISTORY_DAYS]
    names = {e.pid: e.name for e in recent} | {batch.pid: batch.name}
    times = {e.pid: e.jd for e in recent} | {batch.pid: batch.jd}
    wanted = [
        [batch.pid, *(e.pid for e in recent if not moving and covers(e.corners, match.ra, match.dec))]
        for match, moving in objects
    ]
    known = history.forced(sorted({match.name for match, _ in objects}))
    due: dict[int, dict[str, Match]] = defaultdict(dict)
    for (match, _), pids in zip(objects, wanted, strict=True):
        for pid in pids:
            if pid not in known[match.name]:
                due[pid][match.name] = match
    for pid in sorted(due):
        places = [due[pid][name] for name in sorted(due[pid])]
        rows = source.points(names[pid], np.array([m.ra for m in places]), np.array([m.dec for m in places]))
        if rows is None:
            continue
        made = [(m.name, pid, row) for m, row in zip(places, rows, strict=True)]
        for (name, _, _), row in zip(made, history.add_forced(made), strict=True):
            known[name][pid] = row
    return [_in_order(known[m.name], pids, times) for (m, _), pids in zip(objects, wanted, strict=True)]


def _in_order(known: dict[int, Row | None], pids: Sequence[int], times: dict[int, float]) -> list[Row]:
    """Newest first, one a jd."""
    rows: dict[float, Row] = {}
    for pid in sorted(pids, key=lambda pid: (-times[pid], pid)):
        row = known.get(pid)
        if row is not None:
            rows.setdefault(row["jd"], row)
    return list(rows.values())
