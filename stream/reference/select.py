"""Which exposures make a reference: rules first, depth second, and what to do when too few pass.

The limits are those of the independent ZTF reprocessing ZUDS (``ztf-facts.md`` §4: seeing 1.7-2.5, MAGLIM
19.2-22, INFOBITS 0, best 50 by depth, at least 14) and the survey's cloud rules (INFOBITS 25); the survey's own for
references are not public. All are configurable. Depth and throughput are judged as if every exposure had taken 30 s, so
that long ones obey the same rules; what they are worth (``expected_depth``) is what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from stream.core.errors import ReferenceBuildError
from stream.core.flags import Info
from stream.core.records import QuadrantReport, Row, ScienceImage

# Without these an image cannot be placed, scaled or deconvolved; no shortage of epochs makes it usable.
FATAL_BITS = int(
    Info.BACKGROUND
    | Info.NOISE
    | Info.SATURATION
    | Info.NO_ZEROPOINT
    | Info.NO_ASTROMETRY
    | Info.NO_PSF
    | Info.BAD_QUALITY
)


_USUAL = 30.0  # s


@dataclass(frozen=True, slots=True)
class EpochConfig:
    """Limits on the inputs of a reference."""

    seeing_min: float = 1.7  # arcsec; sharper ones are undersampled at 1 arcsec a pixel
    seeing_max: float = 2.5  # arcsec
    maglim_min: float = 19.2  # of 30 s
    maglim_max: float = 22.0
    zeropoint_range: float = 0.3  # mag below the median throughput: cloud
    jd_min: float = -np.inf  # start of an exposure
    jd_max: float = np.inf
    minimum: int = 14  # wished for; with fewer good ones the least bad others are added
    maximum: int = 50
    relax: bool = True  # False: only what passes every rule is chosen


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the decision knows of one exposure; ``seeing`` in arcsec, ``cloud`` the verdict of the cloud rules."""

    name: str
    infobits: int
    seeing: float
    maglim: float
    magzp: float
    exptime: float = 30.0
    jd: float = float("nan")
    cloud: str = ""

    @property
    def lengthening(self) -> float:
        """2.5 log10 of the exposure time over 30 s: by how much its zero point is higher, its depth by half of it."""
        return float(2.5 * np.log10(self.exptime / _USUAL)) if self.exptime > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that were chosen, best first, which of them break a rule, and why the others were left out.

    ``relaxed`` is a subset of ``chosen``; ``rejected`` maps names to sentences; ``sufficient``: the wished number
    passed every rule.
    """

    chosen: tuple[int, ...]
    relaxed: tuple[int, ...]
    rejected: dict[str, str]
    sufficient: bool


def epoch_of(image: ScienceImage) -> Epoch:
    """The figures of a science image that the selection looks at."""
    scale = float(np.mean(proj_plane_pixel_scales(image.astrometry.wcs))) * 3600.0
    e, zeropoint = image.quadrant.exposure, image.zeropoint.magzp
    seeing = image.seeing * scale
    return Epoch(
        image.quadrant.name, image.infobits, seeing, image.maglim, zeropoint, e.exptime, e.jd, image.cloud
    )  # fmt: skip


def epoch_of_report(report: QuadrantReport, pixel_scale: float) -> Epoch:
    """The same from a quality record, which is read in no time; ``pixel_scale`` arcsec per px."""

    def known(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    infobits = int(Info.BAD_QUALITY) if report.infobits is None else report.infobits
    figures = known(report.seeing) * pixel_scale, known(report.maglim), known(report.magzp)
    return Epoch(report.name, infobits, *figures, report.exptime, report.jd, report.cloud or "")


def expected_depth(epochs: Iterable[Epoch]) -> float:
    """5-sigma limit (mag) of the weighted mean of exposures; NaN where none has a limit."""
    weights = [10 ** (0.8 * epoch.maglim) for epoch in epochs if np.isfinite(epoch.maglim)]
    return float(1.25 * np.log10(sum(weights))) if weights else float("nan")


def select_epochs(images: Sequence[ScienceImage] | Sequence[Epoch], config: EpochConfig | None = None) -> Selection:
    """Choose the inputs of a reference.

    An exposure that passes every rule is *good*; one that breaks a soft rule (seeing, depth, throughput, minor
    INFOBITS) is *spare*; one without zero point, astrometry or PSF is *useless*. The deepest ``maximum`` good ones are
    chosen; if they are fewer than ``minimum``, the spare ones with the fewest broken rules and then the greatest depth
    fill up.

    Raises
    ------
    ReferenceBuildError
        Nothing usable.
    """
    config = config or EpochConfig()
    epochs = [image if isinstance(image, Epoch) else epoch_of(image) for image in images]
    zeropoints = [e.magzp - e.lengthening for e in epochs if np.isfinite(e.magzp)]
    typical = float(np.median(zeropoints)) if zeropoints else float("nan")
    broken = [_broken_rules(e, typical, config) for e in epochs]
    usable = [i for i, e in enumerate(epochs) if not _useless(e, config)]

    def depth_first(i: int) -> tuple[int, float, str]:
        return len(broken[i]), -epochs[i].maglim if np.isfinite(epochs[i].maglim) else np.inf, epochs[i].name

    ordered = sorted(usable, key=depth_first)
    good = [i for i in ordered if not broken[i]]
    spare = [i for i in ordered if broken[i]]
    chosen = good[: config.maximum]
    relaxed = spare[: max(0, min(config.minimum, config.maximum) - len(chosen))] if config.relax else []
    chosen += relaxed
    left = set(range(len(epochs))) - set(chosen)
    rejected = {epochs[i].name: _reason(epochs[i], broken[i], config) for i in sorted(left)}
    if not chosen:
        raise ReferenceBuildError(
            f"none of {len(epochs)} exposures can be used for a reference: "
            + ("; ".join(f"{name}: {why}" for name, why in list(rejected.items())[:5]) or "there is none"),
            n_inputs=len(epochs),
        )
    return Selection(tuple(chosen), tuple(relaxed), rejected, len(good) >= config.minimum)


def _useless(epoch: Epoch, config: EpochConfig) -> bool:
    if bool(epoch.infobits & FATAL_BITS) or not np.isfinite(epoch.magzp) or not np.isfinite(epoch.seeing):
        return True
    return bool(epoch.jd < config.jd_min or epoch.jd > config.jd_max)  # a person's or the quarantine's word


def _broken_rules(epoch: Epoch, typical: float, config: EpochConfig) -> list[str]:
    rules = []
    if epoch.infobits:
        rules.append(f"INFOBITS {epoch.infobits}" + _cloudy(epoch))
    if epoch.jd < config.jd_min:
        rules.append(f"JD {epoch.jd:.3f} is before {config.jd_min:.3f}")
    if epoch.jd > config.jd_max:
        rules.append(f"JD {epoch.jd:.3f} is after {config.jd_max:.3f}")
    if not config.seeing_min <= epoch.seeing <= config.seeing_max:
        rules.append(f'seeing {epoch.seeing:.2f}" outside {config.seeing_min}-{config.seeing_max}"')
    maglim, magzp = epoch.maglim - 0.5 * epoch.lengthening, epoch.magzp - epoch.lengthening
    if not config.maglim_min <= maglim <= config.maglim_max:
        rules.append(f"MAGLIM {maglim:.2f} outside {config.maglim_min}-{config.maglim_max}")
    if not magzp > typical - config.zeropoint_range:
        rules.append(f"MAGZP {magzp:.2f} more than {config.zeropoint_range} below {typical:.2f}")
    return rules


def _cloudy(epoch: Epoch) -> str:
    return f" (cloud: {epoch.cloud})" if epoch.infobits & Info.BAD_QUALITY and epoch.cloud else ""


def _reason(epoch: Epoch, broken: list[str], config: EpochConfig) -> str:
    if epoch.infobits & Info.BAD_QUALITY:
        return f"bad quality (INFOBITS {epoch.infobits})" + _cloudy(epoch)
    if _useless(epoch, config) and not any(rule.startswith("JD") for rule in broken):
        return f"no zero point, astrometry or PSF (INFOBITS {epoch.infobits})"
    return ", ".join(broken) or "more exposures than needed"


def epoch_table(epochs: Sequence[Epoch], selection: Selection) -> list[Row]:
    """Every exposure that was looked at, in time order, whether it was chosen and why not: the reference's own log."""
    chosen, relaxed = set(selection.chosen), set(selection.relaxed)
    rows = []
    for i, epoch in enumerate(epochs):
        verdict = "chosen" if i in chosen else selection.rejected.get(epoch.name, "")
        rows.append(
            {
                "name": epoch.name, "jd": epoch.jd, "exptime": epoch.exptime, "seeing": epoch.seeing,
                "maglim": epoch.maglim, "magzp": epoch.magzp, "infobits": epoch.infobits, "cloud": epoch.cloud,
                "chosen": i in chosen, "relaxed": i in relaxed, "verdict": verdict,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: str(row["name"]))


def epochs_of_table(rows: Iterable[Row]) -> list[Epoch]:
    """The chosen exposures of such a log."""

    def known(value: object) -> float:
        return float("nan") if value is None else float(str(value))

    return [
        Epoch(
            str(row["name"]), int(row["infobits"]), known(row["seeing"]), known(row["maglim"]), known(row["magzp"]),
            known(row["exptime"]), known(row["jd"]), str(row["cloud"]),
        )
        for row in rows
        if row["chosen"]
    ]  # fmt: skip
