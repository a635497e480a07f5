"""A piece of a science image and of its reference, as records that the subtraction takes like whole quadrants.

Fakes are searched for on a piece of a quadrant, so that they cost a few per cent of its time. A piece carries
everything: its WCS, the PSF as it is there, the sources in its own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from stream.core.displacement import Displacement
from stream.core.psf import PsfModel, polynomial_terms
from stream.core.records import Reference, ReferenceNotes, ScienceImage, Table

# Reference pixels beyond the piece's footprint: the interpolation's kernel, offsets of the registration, and turns.
_REACH = 24
_NODES = 9  # of a piece's displacement field, each way: it has fewer nodes of its own there


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels x0 <= x < x1, y0 <= y < y1 of an image."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """What cuts it out of an image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def crop_psf(psf: PsfModel, box: Box) -> PsfModel:
    """The same PSF at the same places of the sky, asked for in the box's pixels (exact: a polynomial stays one)."""
    degree = psf.degree
    ny, nx = box.shape
    if degree == 0:
        return replace(psf, shape=box.shape)
    grid = np.linspace(0, 1, degree + 1)
    x, y = (v.ravel() for v in np.meshgrid(grid * (nx - 1), grid * (ny - 1)))
    here = polynomial_terms(x, y, box.shape, degree)
    there = polynomial_terms(x + box.x0, y + box.y0, psf.shape, degree)
    change = np.linalg.lstsq(here, there, rcond=None)[0]  # (terms here, terms there)
    basis = np.tensordot(change, psf.basis.astype(np.float64), axes=1).astype(np.float32)
    return replace(psf, basis=basis, shape=box.shape)


def _crop_displacement(field: Displacement | None, box: Box) -> Displacement | None:
    """The same displacements at the same places, on nodes of the box's own."""
    if field is None:
        return None
    y, x = np.linspace(box.y0, box.y1 - 1, _NODES), np.linspace(box.x0, box.x1 - 1, _NODES)
    xx, yy = np.meshgrid(x, y)
    dx, dy, sx, sy = (v.reshape(xx.shape).astype(np.float32) for v in field.at(xx.ravel(), yy.ravel()))
    return replace(field, dx=dx, dy=dy, sigma_x=sx, sigma_y=sy, shape=box.shape)


def _crop_wcs(wcs: WCS, box: Box) -> WCS:
    moved = wcs.deepcopy()
    moved.wcs.crpix = wcs.wcs.crpix - np.array([box.x0, box.y0])
    moved.wcs.set()
    return moved


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Which places (px) have their nearest pixel in a box."""
    return (x >= box.x0 - 0.5) & (x < box.x1 - 0.5) & (y >= box.y0 - 0.5) & (y < box.y1 - 0.5)


def _crop_sources(sources: Table, box: Box) -> Table:
    kept = sources[_inside(sources["x"], sources["y"], box)].copy()
    kept["x"] -= box.x0
    kept["y"] -= box.y0
    return kept


def _crop_notes(notes: ReferenceNotes | None, sources: Table, box: Box) -> ReferenceNotes | None:
    """The notes of a piece: its own stars and rows; ``sources`` are the whole reference's."""
    if notes is None:
        return None
    stars = notes.stars[_inside(notes.stars[:, 0], notes.stars[:, 1], box)] - np.array([box.x0, box.y0, 0.0])
    inside = _inside(sources["x"], sources["y"], box)
    clean = (np.cumsum(inside) - 1)[notes.clean[inside[notes.clean]]]
    return replace(notes, stars=stars, clean=clean)


def crop_science(science: ScienceImage, box: Box) -> ScienceImage:
    """The piece of a science image inside a box; ``data`` and ``mask`` are copies, the rest are views.

    Its zero point is that of the piece's middle.
    """
    cut, background, astrometry = box.slices, science.background, science.astrometry
    zeropoint, (ny, nx) = science.zeropoint, box.shape
    if zeropoint.map is not None:  # what it varies by inside a piece is less than anybody measures there
        local = float(zeropoint.at(box.x0 + (nx - 1) / 2, box.y0 + (ny - 1) / 2))
        zeropoint = replace(zeropoint, magzp=local, map=None)
    return replace(
        science,
        data=science.data[cut].copy(),
        mask=science.mask[cut].copy(),
        background=replace(background, level=background.level[cut], rms=background.rms[cut]),
        psf=crop_psf(science.psf, box),
        astrometry=replace(
            astrometry,
            wcs=_crop_wcs(astrometry.wcs, box),
            displacement=_crop_displacement(astrometry.displacement, box),
        ),
        zeropoint=zeropoint,
        sources=_crop_sources(science.sources, box),
        tracks=(),
    )


def crop_reference(reference: Reference, science: ScienceImage) -> Reference | None:
    """The piece of a reference that a (cropped) science image needs; None where they do not overlap."""
    ny, nx = science.data.shape
    edge_x, edge_y = np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5)
    x, y = (v.ravel() for v in np.meshgrid(edge_x, edge_y))
    ra, dec = science.astrometry.wcs.all_pix2world(x, y, 0)
    rx, ry = reference.wcs.all_world2pix(ra, dec, 0, quiet=True)
    if not (np.isfinite(rx).all() and np.isfinite(ry).all()):
        return None
    height, width = reference.data.shape
    box = Box(
        max(int(rx.min()) - _REACH, 0), max(int(ry.min()) - _REACH, 0),
        min(int(rx.max()) + _REACH + 1, width), min(int(ry.max()) + _REACH + 1, height),
    )  # fmt: skip
    if box.x1 - box.x0 < _REACH or box.y1 - box.y0 < _REACH:
        return None
    cut = box.slices
    return replace(
        reference,
        data=reference.data[cut],
        unc=reference.unc[cut],
        coverage=reference.coverage[cut],
        wcs=_crop_wcs(reference.wcs, box),
        psf=crop_psf(reference.psf, box),
        sources=_crop_sources(reference.sources, box),
        notes=_crop_notes(reference.notes, reference.sources, box),
    )
