"""Other programs' differences of the planes that ours is made of, science DN; and the PSF of a source in each.

Both take the planes as ``stream.subtract`` prepares them (one grid, one throughput, saturated stars taken out,
unusable pixels filled), so that what differs is the subtraction alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy import fft, ndimage

from ops.bench.difference_figures import F32, F64, Scene, spectrum

# Runs in an interpreter of its own: it may be one with other versions of everything, and it can be stopped.
_SFFT = """
import sys, time
from sfft.CustomizedPacket import Customized_Packet
folder, half = sys.argv[1], int(sys.argv[2])
start = time.process_time()
Customized_Packet.CP(*(f"{folder}/{k}.fits" for k in ("ref", "sci", "mref", "msci")), "REF", half,
                     FITS_DIFF=f"{folder}/d.fits", BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1,
                     VERBOSE_LEVEL=0)
print("seconds", time.process_time() - start)
"""


class NotThereError(Exception):
    """A peer that is not installed, or did not end in its time; the text says which."""


def plain_zogy(there: Scene) -> tuple[F32, F64]:
    """Proper subtraction with one PSF an image, as PyZOGY does: equations 13 and 14 of Zackay, Ofek & Gal-Yam (2016,
    ApJ 830, 27) in one transform of the whole plane. Written for this bench; PyZOGY's gain fit is left out, the planes
    have one throughput already."""
    shape = tuple(fft.next_fast_len(n + 64, real=True) for n in there.new.shape)
    pn, pr = (spectrum(p, (shape[0], shape[1])) for p in there.psfs)
    sn2, sr2 = there.noise[0] ** 2, there.noise[1] ** 2
    scale = np.sqrt((sn2 + sr2) / (sn2 * np.abs(pr) ** 2 + sr2 * np.abs(pn) ** 2 + 1e-14))
    new, reference = (fft.rfft2(p.astype(float), s=shape) for p in (there.new, there.reference))
    d = fft.irfft2((pr * new - pn * reference) * scale, s=shape)
    seen = fft.irfft2(pn * pr * scale, s=shape)
    around = np.arange(-17, 18)
    ny, nx = there.new.shape
    return d[:ny, :nx].astype(np.float32), np.asarray(seen[around[:, None], around], float)


def sfft(there: Scene, half: int, python: str, limit: float) -> tuple[F32, F64, float]:
    """sfft (Hu et al. 2022, ApJ 936, 157): a spatially varying kernel of half width ``half`` px, fitted to all that is
    brighter than 20 sigma; difference, PSF, and core-seconds with its compiling.

    Parameters
    ----------
    python : str
        Interpreter that has it.
    limit : float
        Seconds after which it is stopped.

    Raises
    ------
    NotThereError
    """
    try:
        if subprocess.run([python, "-c", "import sfft"], capture_output=True, check=False, timeout=120).returncode:
            raise NotThereError("not installed")
        with tempfile.TemporaryDirectory() as folder:
            return _sfft(there, half, python, limit, Path(folder))
    except OSError as error:
        raise NotThereError(f"{python} does not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise NotThereError(f"stopped after {error.timeout:.0f} s") from error


def _sfft(there: Scene, half: int, python: str, limit: float, folder: Path) -> tuple[F32, F64, float]:
    bright = ndimage.binary_dilation(there.reference > 20 * there.noise[0], iterations=5) & ~there.unusable
    planes = {"sci": there.new, "ref": there.reference, "msci": there.new * bright, "mref": there.reference * bright}
    for name, plane in planes.items():
        fits.writeto(folder / f"{name}.fits", plane.astype(np.float64))
    command = [python, "-c", _SFFT, str(folder), str(half)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    if done.returncode or not (folder / "d.fits").exists():
        print(done.stderr[-2000:], file=sys.stderr)
        raise NotThereError("failed, its words are above")
    seconds = float(done.stdout.rsplit("seconds", 1)[1])
    return np.asarray(fits.getdata(folder / "d.fits"), np.float32), there.psfs[0], seconds
