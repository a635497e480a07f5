"""A reference image from science images of one field, filter and readout channel.

The steps: a common grid; each input without its sky, scaled to the common zero point and interpolated once, its
stars apart from the rest (``layers``); outliers out and a weighted mean; then what a reference needs to be subtracted
with: its own PSF, catalogue and saturation limit, measured on the result like on any image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream import __version__
from stream.core.errors import ReferenceBuildError
from stream.core.records import F32, Reference, ScienceImage
from stream.reference.combine import CombineConfig, Combined, InputNoise, combine, seeing_changes
from stream.reference.grid import PAD, reference_grid
from stream.reference.layers import Input, evened, make_layers, stars_of
from stream.reference.measure import Coadd, measure_reference, quality

# Common zero points by filter (ztf-facts §4, unconfirmed as the survey's; any would do, the record says which).
ZERO_POINTS = {1: 26.325, 2: 26.275, 3: 25.660}

# An input that saturates at less than this share of the inputs' median limit (a much longer exposure among short ones)
# has nothing to say there, rather than making the pixel saturated in the mean.
EARLY = 0.6


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """How references are made."""

    pad: int = PAD
    zero_points: dict[int, float] = field(default_factory=lambda: dict(ZERO_POINTS))
    combine: CombineConfig = field(default_factory=CombineConfig)
    software: str = f"ztf-stream {__version__}"


Grid = tuple[WCS, tuple[int, int]]
Empty = Callable[[tuple[int, ...]], F32]


def in_memory(shape: tuple[int, ...]) -> F32:
    """An array of float32 whose values do not matter."""
    return np.empty(shape, np.float32)


def build_reference(
    images: Sequence[ScienceImage],
    config: ReferenceConfig | None = None,
    grid: Grid | None = None,
    empty: Empty = in_memory,
) -> Reference:
    """Combine science images into a reference.

    Parameters
    ----------
    images : sequence of ScienceImage
        One field, filter and readout channel; one image is enough. Used as given: choosing is ``select_epochs``'s. The
        sequence may load lazily: each image is asked for twice, one at a time, and only its interpolated pixels
        (4 bytes each) are kept. The order does not matter.
    config : ReferenceConfig, optional
    grid : (WCS, shape), optional
        Where its pixels are to lie: those of the reference that it replaces. By default a grid made for the inputs.
    empty : callable, optional
        Makes the one array that grows with the number of images, (n, ny, nx) float32: 41 MB each at the real camera's
        size. A file mapped to memory keeps a deep reference from taking all of it.

    Returns
    -------
    Reference
        On a TAN grid 64 px larger a side than the input, turned like it. ``unc`` is the white-equivalent noise per
        pixel (see ``combine``). Pixels that any input saturated hold ``saturate``; those that only much longer
        exposures saturated are made of the others.

    Raises
    ------
    ReferenceBuildError
        No image, mixed fields, filters or channels, no zero point, or no star to measure a PSF from.
    """
    config = config or ReferenceConfig()
    if len(images) == 0:
        raise ReferenceBuildError("a reference needs at least one image")
    first = images[0].quadrant
    zeropoint = config.zero_points.get(first.exposure.fid, 26.0)
    surveyed = _survey(images, first.rfid, zeropoint)
    order = sorted(range(len(surveyed)), key=lambda i: surveyed[i].name)
    inputs = [surveyed[i] for i in order]
    wcs, shape = grid or reference_grid([one.astrometry.wcs for one in inputs], inputs[0].psf.shape, config.pad)
    layers = make_layers(images, order, inputs, wcs, empty((len(inputs), *shape)))
    noise = InputNoise(
        sky=np.array([one.scale * one.sigma for one in inputs]),
        photon=np.array([one.scale / one.gain for one in inputs]),
        seeing=seeing_changes([one.psf for one in inputs]),
    )
    mean = combine(layers.rest, noise, config.combine, layers.stars)
    if not (mean.coverage > 0).any():
        raise ReferenceBuildError("no pixel of the inputs lies on the reference's grid", n_inputs=len(inputs))
    coadd = _coadd(mean, layers.saturated, inputs, (noise, layers.left), wcs)
    measured = measure_reference(coadd, [one.psf for one in inputs])
    unc = mean.unc
    qa = quality(coadd, measured, unc, mean.coverage, [one.fwhm for one in inputs], zeropoint)
    qa |= {"rejected": mean.rejected, "software": config.software, "exptime": sum(one.exptime for one in inputs)}
    return Reference(
        rfid=first.rfid,
        field=first.exposure.field,
        fid=first.exposure.fid,
        rcid=first.rcid,
        data=measured.data,
        unc=unc,
        coverage=mean.coverage,
        wcs=wcs,
        psf=measured.psf,
        magzp=zeropoint,
        sources=measured.sources,
        jd_start=min(one.jd for one in inputs),
        jd_end=max(one.jd for one in inputs),
        n_frames=len(inputs),
        saturate=coadd.saturate,
        version=_version([one.name for one in inputs], config.software, measured.data),
        inputs=tuple(one.name for one in inputs),
        qa=qa,
    )


def _survey(images: Sequence[ScienceImage], rfid: int, zeropoint: float) -> list[Input]:
    """What is known of every input before its pixels are interpolated, checked."""
    inputs = []
    for image in map(evened, images):
        quadrant = image.quadrant
        if quadrant.rfid != rfid:
            raise ReferenceBuildError(
                f"{quadrant.name} is of another field, filter or readout channel than the first image",
                rfid=rfid,
                other=quadrant.rfid,
            )
        if not np.isfinite(image.zeropoint.magzp):
            raise ReferenceBuildError(f"{quadrant.name} has no zero point", rfid=rfid)
        if not image.background.sigma > 0:
            raise ReferenceBuildError(f"{quadrant.name} has no noise figure", rfid=rfid)
        inputs.append(
            Input(
                quadrant.name,
                float(10 ** (0.4 * (zeropoint - image.zeropoint.magzp))),
                image.background.median,
                image.background.sigma,
                image.gain,
                image.readnoise,
                image.saturate,
                image.psf.fwhm,
                quadrant.exposure.jd,
                quadrant.exposure.exptime,
                image.psf,
                image.astrometry,
                stars_of(image),
            )
        )
    limits = [one.limit for one in inputs if np.isfinite(one.limit)]
    typical = float(np.median(limits)) if limits else 0.0
    return [replace(one, early=one.limit < EARLY * typical) for one in inputs]


def _coadd(
    mean: Combined,
    saturated: NDArray[np.bool_],
    inputs: list[Input],
    noises: tuple[InputNoise, NDArray[np.float64]],
    wcs: WCS,
) -> Coadd:
    """The mean as an image that photometry understands: with gain, read noise, a sky and a saturation limit."""
    noise, left = noises
    w = noise.weights / noise.weights.sum()
    photon = float(np.sum(w**2 * noise.photon))  # variance per DN of signal: 1 / gain
    read = np.array([one.scale * one.readnoise / one.gain for one in inputs])
    read_variance = float(np.sum(w**2 * read**2))
    sky_variance = float(np.sum(w**2 * noise.sky**2))
    limits = [one.limit for one in inputs if np.isfinite(one.limit) and not one.early]
    saturate = min(limits) if limits else float("nan")
    data = mean.data
    if np.isfinite(saturate):
        full = saturated & np.isfinite(data)
        data = data.copy()
        data[full] = np.float32(saturate)
    return Coadd(
        data=data,
        saturated=saturated,
        gain=1.0 / photon,
        readnoise=float(np.sqrt(read_variance)) / photon,
        # A sky whose photons and the read noise together give the mean's noise.
        pedestal=max(sky_variance - read_variance, 0.0) / photon,
        saturate=saturate,
        noise_left=float(np.sum(w**2 * noise.sky**2 * left) / sky_variance),
        wcs=wcs,
    )


def _version(names: list[str], software: str, data: F32) -> str:
    """Short hash of what went in and came out: sorted input names, the software, the pixels."""
    digest = hashlib.sha256("\n".join([*sorted(names), software]).encode())
    digest.update(np.ascontiguousarray(data).data)
    return digest.hexdigest()[:12]
