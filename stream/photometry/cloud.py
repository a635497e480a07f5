"""Whether an image was taken through cloud: the survey's rules on its zero point (Explanatory Supplement §13.4)."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from stream.core.records import ZeroPoint

CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class CloudRule:
    """Limits of one filter; zero points are of 30 s and fall by ``extinction`` mag per airmass."""

    highest: float  # mag at airmass 0: no zero point can be better, the fit went wrong
    extinction: float
    rms: float  # largest MAGZPRMS, mag
    matches: int  # fewest NMATCHES of a whole quadrant


# By fid. The 26.7, 26.65 and 26.0 are those of the survey's text; a later copy of the rules has 0.1 mag more.
RULES = {
    1: CloudRule(26.7, 0.20, 0.06, 80),
    2: CloudRule(26.65, 0.15, 0.05, 120),
    3: CloudRule(26.0, 0.07, 0.06, 100),
}


@lru_cache(maxsize=1)
def lowest_zeropoints() -> tuple[tuple[float, float, float], ...]:
    """Lowest zero points (mag, 30 s, airmass 0) in g, r and i by rcid."""
    text = resources.files("stream.core").joinpath("data/zp_limits.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    limits = {int(row["rcid"]): (float(row["g"]), float(row["r"]), float(row["i"])) for row in rows}
    return tuple(limits[rcid] for rcid in range(64))


def cloud_verdict(
    zeropoint: ZeroPoint, fid: int, rcid: int, airmass: float, exptime: float, *, share: float = 1.0
) -> str:
    """``clear``, or why the image counts as cloudy.

    Parameters
    ----------
    zeropoint : ZeroPoint
    fid, rcid : int
        Filter 1..3, readout channel.
    airmass : float
        NaN (not in the header) counts as 1.
    exptime : float
        Seconds; zero points are scaled to 30 s.
    share : float
        Part of a whole quadrant that the calibrators were counted on: the limit is for all of it.

    Returns
    -------
    str
        A sentence per rule that is broken, joined by ``; ``.
    """
    rule = RULES[fid]
    x = airmass if math.isfinite(airmass) and airmass >= 1 else 1.0
    magzp = zeropoint.magzp - 2.5 * math.log10(exptime / 30.0) if exptime > 0 else zeropoint.magzp
    highest = rule.highest - rule.extinction * x
    lowest = lowest_zeropoints()[rcid][fid - 1] - rule.extinction * x
    reasons = []
    if magzp > highest:
        reasons.append(f"MAGZP {magzp:.3f} > {highest:.3f}")
    # NaN breaks the rules too: an image without a zero point is not clear.
    if not magzp >= lowest:
        reasons.append(f"MAGZP {magzp:.3f} < {lowest:.3f}")
    if not zeropoint.magzprms <= rule.rms:
        reasons.append(f"MAGZPRMS {zeropoint.magzprms:.3f} > {rule.rms:g}")
    if zeropoint.n_matches < math.floor(rule.matches * min(share, 1.0)):
        reasons.append(f"NMATCHES {zeropoint.n_matches} < {math.floor(rule.matches * min(share, 1.0))}")
    return "; ".join(reasons) or CLEAR
