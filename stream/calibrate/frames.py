"""Calibration frames of a night: bias, dark and dome flats of one channel, with uncertainty, bad pixels and figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.calibrate.badpixels import Scatter, flat_defects, hot_pixels, noisy_pixels
from stream.calibrate.combine import RawFrame, bias_outliers, combine, dark_outliers, flat_outliers, select
from stream.core.cells import cell_medians
from stream.core.errors import CalibrationError
from stream.core.flags import Mask
from stream.core.instrument import calid_of
from stream.core.records import F32, U16, CalibrationFrame, PixelMask, RawQuadrant, Row

VALUELESS_RESPONSE = 0.05  # NaN: dividing by it would only make numbers up


def build_bias(raws: Sequence[RawQuadrant], previous: CalibrationFrame | None = None) -> CalibrationFrame:
    """The bias structure of one channel from raw biases of a night.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        At least three biases of the same channel and shape.
    previous : CalibrationFrame, optional
        The last night's, for the change in ``qa``.

    Returns
    -------
    CalibrationFrame
        ``data`` DN over the overscan level, linearised as the images are; ``unc`` its 1-sigma uncertainty;
        ``badpix`` has ``NOISY`` where a pixel scatters more than noise can, or charge leaks into it (``badpixels``).
        ``qa``: ``level``, ``noise`` (DN a frame), ``gradient`` (DN, largest difference between cells), ``n_frames``,
        ``n_rejected``, ``rejected`` (name to reason), ``n_badpix``, ``jd_start``, ``jd_end``, and against ``previous``
        ``change`` (r.m.s. over cells of 64 px, DN) and ``change_max``.

    Raises
    ------
    CalibrationError
        Mixed channels, shapes or types, or fewer than three good frames.
    """
    return _bias(raws, previous)[0]


def _bias(raws: Sequence[RawQuadrant], previous: CalibrationFrame | None) -> tuple[CalibrationFrame, Scatter]:
    frames, rejected = select(raws, "bias", None, bias_outliers)
    typical = float(np.median([frame.noise for frame in frames]))
    made = combine(frames, np.ones(len(frames)), np.full(len(frames), typical), photons=False)
    scatter = Scatter(made.scatter, made.n)
    badpix = hot_pixels(made.data, made.unc) | noisy_pixels([scatter])
    return _frame("bias", frames, rejected, (made.data, made.unc, badpix), previous), scatter


def _dark(raws: Sequence[RawQuadrant], bias: CalibrationFrame | None) -> tuple[CalibrationFrame, Scatter]:
    """The dark current (DN of the frames' exposure time) of one channel."""
    frames, rejected = select(raws, "dark", bias, dark_outliers)
    typical = float(np.median([frame.noise for frame in frames]))
    made = combine(frames, np.ones(len(frames)), np.full(len(frames), typical), photons=False)
    scatter = Scatter(made.scatter, made.n)
    badpix = hot_pixels(made.data, made.unc) | noisy_pixels([scatter])
    return _frame("dark", frames, rejected, (made.data, made.unc, badpix), None), scatter


def build_flat(
    raws: Sequence[RawQuadrant], bias: CalibrationFrame | None, previous: CalibrationFrame | None = None
) -> CalibrationFrame:
    """The flat field of one channel and filter from raw dome flats of a night.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        At least three flats of the same channel, filter and shape; levels may differ.
    bias : CalibrationFrame or None
        Bias of the channel; ``None`` leaves its structure in (``qa['notes']`` says so).
    previous : CalibrationFrame, optional
        The last night's, for the change in ``qa``.

    Returns
    -------
    CalibrationFrame
        ``data`` has median 1 and is NaN below 5 % of response; ``badpix`` has ``DEAD``, ``LOW_RESPONSE`` and
        ``HIGH_RESPONSE`` relative to the surroundings. ``qa`` as for a bias, ``gradient`` and ``change`` relative.

    Raises
    ------
    CalibrationError
        Mixed channels, filters, shapes or types, or fewer than three good frames.
    """
    frames, rejected = select(raws, "flat", bias, flat_outliers)
    levels = np.array([frame.level for frame in frames])
    gain, readnoise = frames[0].raw.gain, frames[0].raw.readnoise
    sigma = np.sqrt(levels / gain + (readnoise / gain) ** 2) / levels
    made = combine(frames, levels, sigma, photons=True)
    data, unc = made.data, made.unc
    median = float(np.nanmedian(data))
    data /= np.float32(median)
    unc /= np.float32(median)
    badpix = flat_defects(data)
    data[~(data >= VALUELESS_RESPONSE)] = np.nan
    notes = () if bias is not None else ("no_bias",)
    return _frame("hifreqflat", frames, rejected, (data, unc, badpix), previous, notes)


def build_night(
    raws: Sequence[RawQuadrant], previous: Sequence[CalibrationFrame] = ()
) -> tuple[list[CalibrationFrame], list[PixelMask], dict[str, str]]:
    """All calibration frames of one channel and night.

    Parameters
    ----------
    raws : sequence of RawQuadrant
        Biases, darks and flats of one channel, in any order.
    previous : sequence of CalibrationFrame
        The last nights' bias and flats where there are some; a bias of them stands in where tonight has none.

    Returns
    -------
    frames : list of CalibrationFrame
        Bias, then flats by filter.
    masks : list of PixelMask
        Bad pixels from all of them and the darks, one a filter; one with ``fid`` 0 where there are no flats.
    failures : dict
        Kind (``bias``, ``dark``, ``flat g`` ...) to why it could not be built.
    """
    by_kind: dict[tuple[str, int], list[RawQuadrant]] = {}
    for raw in raws:
        e = raw.quadrant.exposure
        by_kind.setdefault((e.imgtype, e.fid if e.imgtype == "flat" else 0), []).append(raw)
    old = {(frame.kind, frame.fid): frame for frame in previous}
    frames: list[CalibrationFrame] = []
    parts: list[CalibrationFrame] = []
    scatters: list[Scatter] = []
    failures: dict[str, str] = {}
    bias = old.get(("bias", 0))
    for imgtype, fid in sorted(by_kind, key=lambda kind: (("bias", "dark", "flat").index(kind[0]), kind[1])):
        try:
            if imgtype == "flat":
                frames.append(build_flat(by_kind[imgtype, fid], bias, old.get(("hifreqflat", fid))))
                continue
            frame, scatter = (
                _bias(by_kind[imgtype, fid], bias) if imgtype == "bias" else _dark(by_kind[imgtype, fid], bias)
            )
        except CalibrationError as error:
            failures[f"{imgtype} {' gri'[fid]}".strip()] = str(error)
            continue
        parts.append(frame)
        scatters.append(scatter)
        if imgtype == "bias":
            bias = frame
            frames.append(frame)
    flats = [frame for frame in frames if frame.kind == "hifreqflat"]
    masks = [pixel_mask([*parts, flat], scatters) for flat in flats]
    return frames, masks or ([pixel_mask(parts, scatters)] if parts else []), failures


def pixel_mask(parts: Sequence[CalibrationFrame], scatters: Sequence[Scatter] = ()) -> PixelMask:
    """The bad pixels of some frames of one channel (bias, dark, one flat) and of their scatter taken together."""
    mask: U16 = np.bitwise_or.reduce([part.badpix for part in parts])
    if scatters:
        mask |= noisy_pixels(scatters)
    newest = max(parts, key=lambda part: part.nid)
    fid = max(part.fid for part in parts)
    counts = {bit.name or "": int(np.count_nonzero(mask & bit)) for bit in Mask if np.any(mask & bit)}
    qa: Row = {
        "n_badpix": int(np.count_nonzero(mask)),
        "bits": counts,
        "inputs": [part.calid for part in parts],
        "jd_end": max(float(part.qa["jd_end"]) for part in parts),
    }
    calid = calid_of("pmask", newest.nid, newest.rcid, fid)
    n = sum(part.n_frames for part in parts)
    return PixelMask(newest.rcid, fid, newest.nid, newest.night, mask, n, calid, qa)


def change_against(data: F32, previous: F32, *, relative: bool) -> tuple[float, float]:
    """R.m.s. and largest difference of two frames over cells of 64 px, each frame's median taken out."""
    now, then = cell_medians(data, 64), cell_medians(previous, 64)
    difference = now / then - 1 if relative else now - then
    difference = difference - np.nanmedian(difference)
    return float(np.sqrt(np.nanmean(difference**2))), float(np.nanmax(np.abs(difference)))


def _frame(
    kind: str,
    frames: list[RawFrame],
    rejected: dict[str, str],
    pixels: tuple[F32, F32, U16],
    previous: CalibrationFrame | None,
    notes: tuple[str, ...] = (),
) -> CalibrationFrame:
    """The record, named after its newest raw frame's night."""
    data, unc, badpix = pixels
    newest = frames[-1].raw.quadrant
    fid = newest.exposure.fid if kind == "hifreqflat" else 0
    grid = np.mean([frame.grid / (frame.level if kind == "hifreqflat" else 1) for frame in frames], axis=0)
    qa: Row = {
        "level": float(np.mean([frame.level for frame in frames])),
        "noise": float(np.median([frame.noise for frame in frames])),
        "gradient": float(grid.max() - grid.min()),
        "n_frames": len(frames),
        "n_rejected": len(rejected),
        "rejected": dict(sorted(rejected.items())),
        "n_badpix": int(np.count_nonzero(badpix)),
        "notes": list(notes),
        "jd_start": frames[0].raw.quadrant.exposure.jd,
        "jd_end": newest.exposure.jd,
    }
    if previous is not None and previous.data.shape == data.shape:
        change, largest = change_against(data, previous.data, relative=kind == "hifreqflat")
        qa |= {"change": change, "change_max": largest, "previous": previous.calid}
    return CalibrationFrame(
        kind=kind,
        rcid=newest.rcid,
        fid=fid,
        nid=newest.exposure.nid,
        night=newest.exposure.night,
        data=data,
        unc=unc,
        badpix=badpix,
        n_frames=len(frames),
        calid=calid_of(kind, newest.exposure.nid, newest.rcid, fid),
        qa=qa,
    )
