"""Smooth functions of the place: random fields over the focal plane, and coarse grids spread over a quadrant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BAND = 128  # rows handled at a time where a whole-image scratch array would only cost memory traffic
NODES = 33  # a side: what varies over arcminutes is linear between nodes 1.6' apart


@dataclass(frozen=True, slots=True, eq=False)
class RandomField:
    """A random function of the focal plane with mean 0 and r.m.s. 1: a sum of waves.

    ``waves`` are cycles per degree (n, 2), ``phases`` rad, ``amplitudes`` such that their squares sum to 2.
    """

    waves: F64
    phases: F64
    amplitudes: F64

    @classmethod
    def draw(
        cls, rng: np.random.Generator, shortest: float, longest: float, slope: float, n_waves: int = 32
    ) -> RandomField:
        """Waves evenly spread in the logarithm of their length (deg), amplitude growing as length^slope."""
        lengths = np.exp(np.linspace(np.log(shortest), np.log(longest), n_waves) + rng.uniform(-0.05, 0.05, n_waves))
        angles = rng.uniform(0, 2 * np.pi, n_waves)
        waves = np.stack([np.cos(angles), np.sin(angles)], axis=1) / lengths[:, None]
        amplitudes = lengths**slope
        return cls(waves, rng.uniform(0, 2 * np.pi, n_waves), amplitudes * np.sqrt(2 / np.sum(amplitudes**2)))

    def at(self, xi: ArrayLike, eta: ArrayLike) -> F64:
        """Values at places (deg), any shape."""
        xi, eta = np.asarray(xi, float), np.asarray(eta, float)
        out = np.zeros(np.broadcast(xi, eta).shape)
        for (kx, ky), phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            out += amplitude * np.sin(2 * np.pi * (kx * xi + ky * eta) + phase)
        return out


def nodes(shape: tuple[int, int], n: int = NODES) -> tuple[F64, F64]:
    """Places (px) x and y, each (n, n), of a coarse grid from the first to the last pixel of an image."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, n), np.linspace(0, ny - 1, n))
    return x, y


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """A coarse grid read bilinearly at every pixel of an image, a band of rows at a time.

    ``wide`` (n, nx) is the grid already spread along x, ``first`` and ``step`` the row of its first node and the
    rows between nodes.
    """

    wide: F32
    first: float
    step: float

    def rows(self, start: int, stop: int) -> F32:
        """Values on rows ``start`` to ``stop`` (exclusive), (rows, nx)."""
        place = (np.arange(start, stop) - self.first) / self.step
        base = np.clip(np.floor(place).astype(int), 0, len(self.wide) - 2)
        t = (place - base).astype(np.float32)[:, None]
        out: F32 = self.wide[base + 1]
        low = self.wide[base]
        out -= low
        out *= t
        out += low
        return out


def spread(grid: NDArray[np.floating], shape: tuple[int, int], first: float = 0.0, step: float = 0.0) -> Spread:
    """Read a grid (n, n) over an image; by default its nodes reach from the first to the last pixel of each axis.

    With a ``step`` (px) the first node lies at ``first`` px in both axes.
    """
    ny, nx = shape
    gy, gx = grid.shape
    place = (np.arange(nx) - first) / (step or (nx - 1) / (gx - 1))
    base = np.clip(np.floor(place).astype(int), 0, gx - 2)
    t = (place - base).astype(np.float32)
    values = grid.astype(np.float32)
    wide = values[:, base] * (1 - t) + values[:, base + 1] * t
    return Spread(wide, first, step or (ny - 1) / (gy - 1))


def bands(n_rows: int) -> list[slice]:
    """Rows in bands that fit the processor's cache."""
    return [slice(start, min(start + BAND, n_rows)) for start in range(0, n_rows, BAND)]


def add(image: F32, field: Spread) -> None:
    """Add a smooth field to an image in place."""
    for band in bands(len(image)):
        image[band] += field.rows(band.start, band.stop)


def multiply(image: F32, field: Spread) -> None:
    """Multiply an image by a smooth field in place."""
    for band in bands(len(image)):
        image[band] *= field.rows(band.start, band.stop)
