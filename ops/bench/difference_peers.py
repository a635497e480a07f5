"""Other programs' differences of the planes that ours is made of, science DN; and the PSF of a source in each.

Both take the planes as ``stream.subtract`` prepares them (one grid, one throughput, saturated stars taken out,
unusable pixels filled), so that what differs is the subtraction alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import ndimage

from ops.bench.difference_figures import F32, F64, Scene

# They run in an interpreter of their own: it may be one with other versions of everything, and they can be stopped.
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
_PYZOGY = """
import sys, time
import numpy as np
from astropy.io import fits
from PyZOGY import subtract as s
from PyZOGY.image_class import ImageClass
folder = sys.argv[1]
of = lambda k: ImageClass(*(f"{folder}/{name}.fits" for name in (k, "p" + k, "mask")), saturation=np.inf)
science, reference = of("sci"), of("ref")
start = time.process_time()
d = s.calculate_difference_image(science, reference, gain_ratio=1.0)
zero_point = s.calculate_difference_image_zero_point(science, reference)
psf = np.real(s.calculate_difference_psf(science, reference, zero_point))
d = s.normalize_difference_image(d, zero_point, science, reference, "science")
seconds = time.process_time() - start
around = np.arange(-17, 18)
fits.writeto(f"{folder}/d.fits", np.asarray(d))
fits.writeto(f"{folder}/p.fits", np.asarray(psf)[around[:, None], around])
print("seconds", seconds)
"""


class NotThereError(Exception):
    """A peer that is not installed, or did not end in its time; the text says which."""


def pyzogy(there: Scene, python: str, limit: float) -> tuple[F32, F64, float]:
    """PyZOGY (Guevel & Hosseinzadeh 2017, doi 10.5281/zenodo.1043973): proper subtraction with one PSF an image; it
    measures noise and level itself and fills what is masked. Difference, PSF, and core-seconds without reading files.

    Parameters
    ----------
    python : str
        Interpreter that has it; it is not on PyPI: ``pip install git+https://github.com/dguevel/PyZOGY``.
    limit : float
        Seconds after which it is stopped.

    Raises
    ------
    NotThereError
    """
    planes: dict[str, NDArray[Any]] = {
        "sci": there.new, "ref": there.reference, "psci": there.psfs[0], "pref": there.psfs[1],
        "mask": there.unusable,
    }  # fmt: skip
    made, seconds = _elsewhere("PyZOGY", _PYZOGY, planes, (), python, limit)
    return np.asarray(made["d"], np.float32), np.asarray(made["p"], float), seconds


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
    bright = ndimage.binary_dilation(there.reference > 20 * there.noise[0], iterations=5) & ~there.unusable
    planes = {"sci": there.new, "ref": there.reference, "msci": there.new * bright, "mref": there.reference * bright}
    made, seconds = _elsewhere("sfft", _SFFT, planes, (str(half),), python, limit)
    return np.asarray(made["d"], np.float32), there.psfs[0], seconds


def _elsewhere(
    package: str, script: str, planes: Mapping[str, NDArray[Any]], arguments: Sequence[str], python: str, limit: float
) -> tuple[dict[str, NDArray[Any]], float]:
    """Run a script of another interpreter on ``planes`` in files: the images it wrote beside them, its core-seconds."""
    try:
        asked = [python, "-c", f"import {package}"]
        if subprocess.run(asked, capture_output=True, check=False, timeout=120).returncode:
            raise NotThereError("not installed")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for plane, values in planes.items():
                fits.writeto(folder / f"{plane}.fits", values.astype(np.float64))
            command = [python, "-c", script, name, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
            if done.returncode or not (folder / "d.fits").exists():
                print(done.stderr[-2000:], file=sys.stderr)
                raise NotThereError("failed, its words are above")
            written = {path.stem: fits.getdata(path) for path in folder.glob("*.fits") if path.stem not in planes}
            return written, float(done.stdout.rsplit("seconds", 1)[1])
    except OSError as error:
        raise NotThereError(f"{python} does not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise NotThereError(f"stopped after {error.timeout:.0f} s") from error
