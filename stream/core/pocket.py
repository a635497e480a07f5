"""The pocket effect: a trap beside each pixel of the serial register that takes charge and gives it back to the next.

After the published model of the survey's users (Lacroix et al. 2025, arXiv 2509.04073, and its code ``ztfsensors``):
along a row, in the order of reading, a pocket of charge q (e-) meets a pixel of n electrons; it gives
``cmax (q / cmax)^alpha`` and takes ``cmax (1 - q / cmax)^alpha (n / nmax)^beta``, neither more than there is. The pixel
is read with the difference, the pocket goes on to the next. A star loses some electrons on its near side and has a tail
on its far side, which changes with its flux and the sky: a few per cent of faint stars' light.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
# Fixed-point steps of the inverse. A step's error is the last one's times beta x taken / n, 0.02 at dark sky.
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Pocket:
    """Parameters of one amplifier: powers ``alpha``, ``beta``; capacities (e-) of the pocket and of a pixel."""

    alpha: float
    cmax: float
    beta: float
    nmax: float

    def given(self, held: F32) -> F32:
        """Charge (e-) that pockets holding ``held`` give to the pixel."""
        given: F32 = np.minimum(np.float32(self.cmax) * (held / np.float32(self.cmax)) ** np.float32(self.alpha), held)
        return given

    def room(self, held: F32) -> F32:
        """What a full pixel (nmax) would lose to pockets holding ``held``."""
        free = np.clip(1 - held / np.float32(self.cmax), 0, 1)
        room: F32 = np.float32(self.cmax) * free ** np.float32(self.alpha)
        return room

    def taken(self, held: F32, pixel: F32) -> F32:
        """Charge that pockets holding ``held`` take from pixels of ``pixel`` electrons."""
        there = np.maximum(pixel, 0)
        taken: F32 = np.minimum(self.room(held) * (there / np.float32(self.nmax)) ** np.float32(self.beta), there)
        return taken


@lru_cache(maxsize=1)
def _table() -> dict[tuple[int, int], Pocket]:
    text = resources.files("stream.core").joinpath("data/pocket.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        (int(r["ccdid"]), int(r["qid"])): Pocket(*(float(r[key]) for key in ("alpha", "cmax", "beta", "nmax")))
        for r in rows
    }


def pocket_of(ccdid: int, qid: int) -> Pocket:
    """Published parameters of an amplifier."""
    return _table()[ccdid, qid]


def distort(electrons: F32, pocket: Pocket) -> F32:
    """What is read of rows of true electrons (ny, nx), first pixel read at [:, 0]; pockets begin empty."""
    read = np.empty(electrons.T.shape, np.float32)
    held = np.zeros(len(electrons), np.float32)
    for x, pixel in enumerate(np.ascontiguousarray(electrons.T)):
        change = pocket.given(held) - pocket.taken(held, pixel)
        read[x] = pixel + change
        held = np.clip(held - change, 0, np.float32(pocket.cmax))
    return np.ascontiguousarray(read.T)


def restore(read: F32, pocket: Pocket) -> F32:
    """The true electrons of rows as they were read: ``distort`` undone, pixel by pixel.

    The pocket's content is known from the pixels before, so each pixel is one equation, ``n - taken(n) = read -
    given``, solved by repetition. Below some 3 e- above nothing the pocket takes all there is: such pixels come back as
    the least charge that explains them.
    """
    true = np.empty(read.T.shape, np.float32)
    held = np.zeros(len(read), np.float32)
    for x, pixel in enumerate(np.ascontiguousarray(read.T)):
        given = pocket.given(held)
        rest = pixel - given
        room = pocket.room(held) / np.float32(pocket.nmax**pocket.beta)
        guess = np.maximum(rest, 0)
        for _ in range(_STEPS):
            guess = np.maximum(rest, 0) + np.minimum(room * guess ** np.float32(pocket.beta), guess + 1)
        taken = np.where(rest > 0, guess - rest, 0).astype(np.float32)
        true[x] = rest + taken
        held = np.clip(held - given + taken, 0, np.float32(pocket.cmax))
    return np.ascontiguousarray(true.T)
