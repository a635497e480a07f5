"""Which effects of air, optics, detector and electronics a simulated exposure has."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from stream.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Effects:
    """A switch for every effect; what is off contributes exactly nothing.

    Light: ``distortion`` (degree 4), ``psf_variation`` (over quadrant, focal plane and exposure), ``displacement``
    (of the air, tens of mas), ``refraction`` (differential, with colour), ``extinction`` (with airmass and colour),
    ``clouds``, ``moonlight``, ``vignetting``, ``halos`` and ``ghosts`` of bright stars, diffraction ``spikes``.

    Response: ``flat_small`` and ``flat_large`` (pixels and slopes), ``dust``, ``fringes``, ``lamp`` (the dome's lamp
    lights the camera otherwise than the sky), ``shutter`` (open longer in the middle), ``dark_current``, ``defects``,
    ``brighter_fatter``, ``pocket``.

    Charge and electronics: ``photon_noise``, ``cosmic_rays``, ``bleeding``, ``nonlinearity``, ``crosstalk``,
    ``bias_structure``, ``side_glow``, ``floating_bias``, ``trailed_charge``, ``spillage`` (until 2019-10-23),
    ``read_noise``.
    """

    distortion: bool = True
    psf_variation: bool = True
    displacement: bool = True
    refraction: bool = True
    extinction: bool = True
    clouds: bool = True
    moonlight: bool = True
    vignetting: bool = True
    halos: bool = True
    ghosts: bool = True
    spikes: bool = True
    side_glow: bool = True
    flat_small: bool = True
    flat_large: bool = True
    dust: bool = True
    fringes: bool = True
    lamp: bool = True
    shutter: bool = True
    dark_current: bool = True
    cosmic_rays: bool = True
    defects: bool = True
    bleeding: bool = True
    nonlinearity: bool = True
    crosstalk: bool = True
    bias_structure: bool = True
    floating_bias: bool = True
    trailed_charge: bool = True
    spillage: bool = True
    read_noise: bool = True
    photon_noise: bool = True
    brighter_fatter: bool = False
    pocket: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All effects."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def none(cls) -> Self:
        """A perfect instrument above a perfect atmosphere."""
        return cls(**dict.fromkeys(cls.names(), False))

    @classmethod
    def only(cls, *names: str) -> Self:
        """These effects and no others; ``UsageError`` for an unknown name."""
        return cls.none().including(*names)

    def including(self, *names: str) -> Self:
        """The same with these switched on; ``UsageError`` for an unknown name."""
        return self._switched(names, True)

    def without(self, *names: str) -> Self:
        """The same with these switched off; ``UsageError`` for an unknown name."""
        return self._switched(names, False)

    def on(self) -> tuple[str, ...]:
        """The effects that are switched on."""
        return tuple(name for name in self.names() if getattr(self, name))

    def _switched(self, names: tuple[str, ...], state: bool) -> Self:
        unknown = sorted(set(names) - set(self.names()))
        if unknown:
            raise UsageError(f"no effect {', '.join(unknown)}: known are {', '.join(self.names())}")
        return replace(self, **dict.fromkeys(names, state))
