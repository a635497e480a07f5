"""Whether a reference should be made anew: what the exposures of today would gain over the one in use.

A new reference means a new zero level for every light curve of its field, so it must be worth it: a depth that shows,
a seeing that shows, a bad input gone. The decision is a function of records; whoever has a store
(``stream.offline.update_references``) asks it and builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stream.core.errors import ReferenceBuildError
from stream.reference.select import FATAL_BITS, Epoch, EpochConfig, Selection, expected_depth, select_epochs


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """What is worth a new reference."""

    epochs: EpochConfig = field(default_factory=EpochConfig)
    gain: float = 0.1  # mag of depth; half as many exposures again
    sharper: float = 0.1  # share by which the median seeing falls
    new: int = 3  # exposures that the current one does not have: one good night is not news
    loss: float = 0.03  # mag of depth that sharper seeing or a clean input may cost


@dataclass(frozen=True, slots=True)
class Current:
    """The reference in use: its version, the exposures it is made of as its log has them, and who holds it there.

    ``inputs`` may know more names than ``epochs``: an older log had no figures. ``relaxed``: it was made of exposures
    that break rules, there being too few others. ``pinned``: a person's reason; None: nobody's.
    """

    version: str
    inputs: tuple[str, ...]
    epochs: tuple[Epoch, ...] = ()
    relaxed: bool = False
    pinned: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``rebuild`` or not, the sentence why, which epochs (None: none usable), the depth gained (mag; NaN: unknown)."""

    rebuild: bool
    reason: str
    selection: Selection | None = None
    gain: float = float("nan")


def decide_rebuild(current: Current | None, epochs: Sequence[Epoch], config: UpdateConfig | None = None) -> Verdict:
    """Decide about one field, filter and readout channel.

    Parameters
    ----------
    current : Current or None
        None: there is no reference yet; one is made as soon as enough exposures pass every rule.
    epochs : sequence of Epoch
        All exposures there are.
    config : UpdateConfig, optional
    """
    config = config or UpdateConfig()
    if current is not None and current.pinned is not None:
        return Verdict(False, f"pinned: {current.pinned}")
    try:
        selection = select_epochs(epochs, config.epochs)
    except ReferenceBuildError as error:
        return Verdict(False, str(error))
    chosen = [epochs[i] for i in selection.chosen]
    if current is None:
        if selection.sufficient:
            return Verdict(True, f"none yet, {len(chosen)} exposures pass every rule", selection)
        passed = len(chosen) - len(selection.relaxed)
        return Verdict(False, f"none yet; {passed} exposures pass every rule, {config.epochs.minimum} asked", selection)
    return _against(current, epochs, chosen, selection, config)


def _against(
    current: Current, epochs: Sequence[Epoch], chosen: list[Epoch], selection: Selection, config: UpdateConfig
) -> Verdict:
    names = {epoch.name for epoch in chosen}
    new = len(names - set(current.inputs))
    if names == set(current.inputs):
        return Verdict(False, "made of the same exposures", selection, 0.0)
    old, made = list(current.epochs), expected_depth(chosen)
    gain = made - expected_depth(old) if len(old) == len(current.inputs) else float("nan")

    def say(rebuild: bool, why: str) -> Verdict:
        return Verdict(rebuild, why, selection, gain)

    spoilt = sorted(e.name for e in epochs if e.name in current.inputs and e.infobits & FATAL_BITS)
    if spoilt and selection.sufficient:
        return say(True, f"made of {len(spoilt)} exposures that are bad by now: {', '.join(spoilt[:3])}")
    if new < config.new:
        return say(False, f"{new} new exposures, {config.new} asked")
    if not np.isfinite(gain):
        if selection.sufficient and len(chosen) > len(current.inputs):
            return say(True, f"its log has no depth; {len(chosen)} exposures instead of {len(current.inputs)}")
        return say(False, "its log has no depth, and there are no more exposures than it has")
    if gain >= config.gain:
        return say(True, f"{gain:.2f} mag deeper with {len(chosen)} exposures, {new} of them new")
    if gain < -config.loss:
        return say(False, f"would be {-gain:.2f} mag shallower")
    if current.relaxed and selection.sufficient:
        return say(True, "made of exposures that break rules; enough pass by now")
    before, after = (float(np.median([e.seeing for e in some])) for some in (old, chosen))
    if after <= (1 - config.sharper) * before:
        return say(True, f"median seeing {after:.2f} arcsec instead of {before:.2f}")
    return say(False, f"would gain {gain:.2f} mag, {config.gain:g} asked")
