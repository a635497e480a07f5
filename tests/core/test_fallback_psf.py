"""The PSF that stands in for a measured one."""

from __future__ import annotations

import pytest

from stream.core.psf import moffat_psf


@pytest.mark.parametrize("fwhm", [1.8, 2.5, 3.2])
def test_moffat_has_the_width_and_light_it_was_asked_for(fwhm: float) -> None:
    model = moffat_psf(fwhm, (100, 120))
    stamp = model.stamp(50.0, 60.0)
    assert stamp.sum() == pytest.approx(1.0, abs=1e-5)
    # At half the FWHM from the centre the profile is at half its peak: read it there through the sub-pixel phase.
    peak = model.stamps([50.0], [60.0])[0][12, 12]
    beside = model.stamps([50.0 + fwhm / 2 - round(fwhm / 2)], [60.0])[0][12, 12 - round(fwhm / 2)]
    assert beside / peak == pytest.approx(0.5, abs=0.01)
