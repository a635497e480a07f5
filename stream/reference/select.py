"""Which exposures make a reference: rules first, depth second, and what to do when too few pass.

The limits are those of the independent ZTF reprocessing ZUDS (``ztf-facts.md`` §4: seeing 1.7-2.5, MAGLIM
19.2-22, INFOBITS 0, best 50 by depth, at least 14); the survey's own are not public. All are configurable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.wcs.utils import proj_plane_pixel_scales

from stream.core.errors import ReferenceBuildError
from stream.core.flags import Info
from stream.core.records import ScienceImage

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


@dataclass(frozen=True, slots=True)
class EpochConfig:
    """Limits on the inputs of a reference."""

    seeing_min: float = 1.7  # arcsec; sharper ones are undersampled at 1 arcsec a pixel
    seeing_max: float = 2.5  # arcsec
    maglim_min: float = 19.2
    maglim_max: float = 22.0
    zeropoint_range: float = 0.3  # mag below the median throughput: cloud
    minimum: int = 14  # wished for; with fewer good ones the least bad others are added
    maximum: int = 50
    relax: bool = True  # False: only what passes every rule is chosen


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the decision knows of one exposure; ``seeing`` in arcsec."""

    name: str
    infobits: int
    seeing: float
    maglim: float
    magzp: float


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
    name, zeropoint = image.quadrant.name, image.zeropoint.magzp
    return Epoch(name, image.infobits, image.seeing * scale, image.maglim, zeropoint)


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
    zeropoints = [e.magzp for e in epochs if np.isfinite(e.magzp)]
    typical = float(np.median(zeropoints)) if zeropoints else float("nan")
    broken = [_broken_rules(e, typical, config) for e in epochs]
    usable = [i for i, e in enumerate(epochs) if not _useless(e)]

    def depth_first(i: int) -> tuple[int, float, str]:
        return len(broken[i]), -epochs[i].maglim if np.isfinite(epochs[i].maglim) else np.inf, epochs[i].name

    ordered = sorted(usable, key=depth_first)
    good = [i for i in ordered if not broken[i]]
    spare = [i for i in ordered if broken[i]]
    chosen = good[: config.maximum]
    relaxed = spare[: max(0, min(config.minimum, config.maximum) - len(chosen))] if config.relax else []
    chosen += relaxed
    left = set(range(len(epochs))) - set(chosen)
    rejected = {epochs[i].name: _reason(epochs[i], broken[i]) for i in sorted(left)}
    if not chosen:
        raise ReferenceBuildError(
            f"none of {len(epochs)} exposures can be used for a reference: "
            + ("; ".join(f"{name}: {why}" for name, why in list(rejected.items())[:5]) or "there is none"),
            n_inputs=len(epochs),
        )
    return Selection(tuple(chosen), tuple(relaxed), rejected, len(good) >= config.minimum)


def _useless(epoch: Epoch) -> bool:
    return bool(epoch.infobits & FATAL_BITS) or not np.isfinite(epoch.magzp) or not np.isfinite(epoch.seeing)


def _broken_rules(epoch: Epoch, typical: float, config: EpochConfig) -> list[str]:
    rules = []
    if epoch.infobits:
        rules.append(f"INFOBITS {epoch.infobits}")
    if not config.seeing_min <= epoch.seeing <= config.seeing_max:
        rules.append(f'seeing {epoch.seeing:.2f}" outside {config.seeing_min}-{config.seeing_max}"')
    if not config.maglim_min <= epoch.maglim <= config.maglim_max:
        rules.append(f"MAGLIM {epoch.maglim:.2f} outside {config.maglim_min}-{config.maglim_max}")
    if not epoch.magzp > typical - config.zeropoint_range:
        rules.append(f"MAGZP {epoch.magzp:.2f} more than {config.zeropoint_range} below {typical:.2f}")
    return rules


def _reason(epoch: Epoch, broken: list[str]) -> str:
    if _useless(epoch):
        return f"no zero point, astrometry or PSF (INFOBITS {epoch.infobits})"
    return ", ".join(broken) or "more exposures than needed"
