"""The detector, in electrons: defects, dark current, photon noise, full well, bleeding, charge spilt or pushed aside.

Each effect is one function on a float32 image in stored order, in place. What belongs to the silicon is fixed by the
sky's seed, what changes with an exposure is drawn from the generator given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream.core.camera import Camera, read_order
from stream.simulate.fields import bands
from stream.simulate.plan import seeded

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

POISSON_BELOW = 30.0  # e-: below this a normal draw shows in the distribution's skewness
READOUT_SECONDS = 8.0  # half of which a pixel waits in the mean, collecting cosmic rays in a bias frame too
DARK_CURRENT = (0.03, 0.12)  # e-/s at the detectors' 173 K; at the corner that the amplifier warms
WARM_CORNER = 0.15  # of the side, how far that goes
BLEED_BACKWARDS = 0.7  # share of the excess charge that goes away from the amplifier, to rows read later
SPILLAGE_UNTIL = 58779.0  # MJD: the readout's waveforms were changed on 2019-10-23
SPILLAGE = 1.5e-3  # share of a full well that is spilt and read some pixels later in the same row
SPILLAGE_DELAY = (60, 140)  # px, each channel its own
# Shift of a pixel's boundary per electron of difference between neighbours, in pixels: 4 percent less variance in a
# flat of 1e5 e-, and stars a third of a percent wider at full well. Thin silicon and 15 um pixels show a tenth of
# what deep-depleted 10 um ones do.
BRIGHTER_FATTER = 5e-8


@dataclass(frozen=True, slots=True, eq=False)
class Defects:
    """Pixels that misbehave for good: flat indices into the stored image.

    ``hot`` leak ``leak`` e-/s; ``dead`` have the sensitivity ``response``, ``low`` are blind in part
    (``low_response``); ``noisy`` jump by twice ``noise`` e- between two states. ``columns`` are dead, low or hot from a
    row on; their pixels are in ``dead``, ``low`` or ``hot`` too, after the single ones.
    """

    hot: I64
    leak: F32
    dead: I64
    response: F32
    low: I64
    low_response: F32
    noisy: I64
    noise: F32
    columns: tuple[tuple[int, int, int, str], ...]  # x, first y, last y, kind

    def of_kind(self, kind: str) -> tuple[I64, F32]:
        """Pixels of a kind (hot, dead, low, noisy) and their strength."""
        return {
            "hot": (self.hot, self.leak), "dead": (self.dead, self.response), "low": (self.low, self.low_response),
            "noisy": (self.noisy, self.noise),
        }[kind]  # fmt: skip


@lru_cache(maxsize=8)
def defects(seed: int, camera: Camera, rcid: int) -> Defects:
    """Defects of a quadrant: hundreds of single pixels of each kind on a full one, and a few columns."""
    rng = seeded(seed, "defects", rcid)
    nx, ny = camera.nx, camera.ny
    share = nx * ny / (3072 * 3080)
    counts = {kind: 8 + int(rng.poisson(n * share)) for kind, n in (("hot", 250), ("dead", 150))}
    counts |= {kind: 6 + int(rng.poisson(n * share)) for kind, n in (("low", 200), ("noisy", 120))}
    chosen = rng.permutation(rng.choice(nx * ny, sum(counts.values()), replace=False))
    places = dict(zip(counts, np.split(chosen, np.cumsum(list(counts.values()))[:-1]), strict=True))
    strength = {
        "hot": np.exp(rng.uniform(np.log(15.0), np.log(3000.0), counts["hot"])),
        "dead": rng.uniform(0.0, 0.05, counts["dead"]),
        "low": rng.uniform(0.3, 0.85, counts["low"]),
        "noisy": np.exp(rng.uniform(np.log(40.0), np.log(300.0), counts["noisy"])),
    }
    in_column = {"hot": 40.0, "dead": 0.02, "low": 0.7}
    columns = []
    others = ("low", "hot") if share > 0.5 else ((), ("low",), ("hot",))[int(rng.integers(3))]
    for kind in ("dead", *others):
        x, first = int(rng.integers(20, nx - 20)), int(rng.integers(0, ny // 2))
        columns.append((x, first, ny - 1, kind))
        pixels = np.arange(first, ny) * nx + x
        places[kind] = np.append(places[kind], pixels)
        strength[kind] = np.append(strength[kind], np.full(len(pixels), in_column[kind]))
    light = {kind: values.astype(np.float32) for kind, values in strength.items()}
    return Defects(
        places["hot"], light["hot"], places["dead"], light["dead"], places["low"], light["low"], places["noisy"],
        light["noisy"], tuple(columns),
    )  # fmt: skip


def dark_current(electrons: F32, seconds: float, qid: int) -> None:
    """Add the dark current's mean: even, and more in the corner of the amplifier."""
    ny, nx = electrons.shape
    flip_x, flip_y = read_order(qid)
    along = np.exp(-np.arange(nx, dtype=np.float32) / (WARM_CORNER * nx))
    across = np.exp(-np.arange(ny, dtype=np.float32) / (WARM_CORNER * ny))
    along, across = along[::-1] if flip_x else along, across[::-1] if flip_y else across
    for rows in bands(ny):
        glow = across[rows, None] * along[None, :]
        glow *= np.float32((DARK_CURRENT[1] - DARK_CURRENT[0]) * seconds)
        glow += np.float32(DARK_CURRENT[0] * seconds)
        electrons[rows] += glow


def leak_charge(electrons: F32, bad: Defects, seconds: float) -> None:
    """Add what hot pixels leak in so many seconds (exposure and half of the readout)."""
    electrons.reshape(-1)[bad.hot] += bad.leak * np.float32(seconds)


def telegraph(rng: np.random.Generator, electrons: F32, bad: Defects) -> None:
    """Noisy pixels jump between two states, and a little about each."""
    state = rng.integers(0, 2, len(bad.noisy)) * 2.0 - 1.0
    jump = bad.noise * (state + 0.2 * rng.normal(0, 1, len(bad.noisy)))
    electrons.reshape(-1)[bad.noisy] += jump.astype(np.float32)


def photon_noise(rng: np.random.Generator, electrons: F32) -> None:
    """Replace expected electrons by a draw: normal where they are many, Poisson where they are few."""
    for rows in bands(len(electrons)):
        band = electrons[rows]
        low = np.flatnonzero(band < POISSON_BELOW)
        expected = np.maximum(band.reshape(-1)[low], 0) if low.size else None
        noise = rng.standard_normal(band.shape, dtype=np.float32)
        noise *= np.sqrt(np.maximum(band, 0))
        band += noise
        if expected is not None:
            band.reshape(-1)[low] = rng.poisson(expected)


def brighter_fatter(electrons: F32) -> None:
    """Push charge from full pixels to emptier neighbours: the field of collected charge moves the pixels' boundaries.

    Across a boundary goes half of ``BRIGHTER_FATTER`` times the difference of the squares; all charge is kept.
    """
    square = electrons * electrons
    square *= np.float32(0.5 * BRIGHTER_FATTER)
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        moved = square[one] - square[other]
        electrons[one] -= moved
        electrons[other] += moved


def bleed(electrons: F32, full_well: float, qid: int) -> I64:
    """Cut at full well; the excess fills neighbours in the column, most of it away from the amplifier.

    Returns the flat indices of the pixels at full well.
    """
    nx = electrons.shape[1]
    columns = np.flatnonzero(electrons.max(axis=0) > full_well)
    flip_y = read_order(qid)[1]
    full: list[I64] = []
    for x in columns:
        _bleed_column(electrons[::-1, x] if flip_y else electrons[:, x], full_well)
        full.append(np.flatnonzero(electrons[:, x] >= full_well) * nx + x)
    return np.sort(np.concatenate(full)) if full else np.zeros(0, np.int64)


def _bleed_column(column: F32, full_well: float) -> None:
    """Spread the excess of one column (in read order), run by run."""
    over = np.flatnonzero(column > full_well)
    runs = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
    excesses = [float((column[run].astype(np.float64) - full_well).sum()) for run in runs]
    column[over] = np.float32(full_well)
    for run, excess in zip(runs, excesses, strict=True):
        _fill(column[run[-1] + 1 :], BLEED_BACKWARDS * excess, full_well)
        _fill(column[: run[0]][::-1], (1 - BLEED_BACKWARDS) * excess, full_well)


def _fill(line: F32, charge: float, full_well: float) -> None:
    """Fill pixels one after the other up to full well until the charge is used up or the column ends."""
    start, step = 0, 256
    while charge > 0 and start < len(line):
        room = np.maximum(full_well - line[start : start + step].astype(np.float64), 0)
        before = np.concatenate([[0.0], np.cumsum(room)[:-1]])
        line[start : start + step] += np.clip(charge - before, 0, room).astype(np.float32)
        charge -= float(room.sum())
        start += step


def spill(electrons: F32, full: I64, full_well: float, delay: int, qid: int) -> tuple[I64, F32]:
    """Add the charge that full pixels spill, ``delay`` px later in the same row.

    Returns the flat indices of the pixels that got some, and how much (e-).
    """
    nx = electrons.shape[1]
    x = full % nx + (-delay if read_order(qid)[0] else delay)
    there = (x >= 0) & (x < nx)
    pixels = (full - full % nx + x)[there]
    values = np.full(len(pixels), SPILLAGE * full_well, np.float32)
    electrons.reshape(-1)[pixels] += values
    return pixels, values


def spillage_delay(seed: int, rcid: int) -> int:
    """Pixels between a full pixel and what it spills."""
    return int(seeded(seed, "spillage", rcid).integers(*SPILLAGE_DELAY))
