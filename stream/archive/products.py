"""The products of quadrants in the store: written after the science, found and read for references."""

from __future__ import annotations

from collections.abc import Iterator

from stream.archive import catalogs, fitsio
from stream.archive.frames import as_unsigned
from stream.archive.images import decode_science, encode_result, zeropoint_of
from stream.archive.paths import parse_science_name, science_path
from stream.archive.store import ProductStore
from stream.core.errors import MessageError, UsageError
from stream.core.records import U16, QuadrantReport, QuadrantResult, ScienceImage, Table, ZeroPoint

_IMAGE = "_sciimg.fits.fz"
_SCIENCE_FILES = ("sciimg.fits.fz", "mskimg.fits.fz", "psfcat.fits", "sexcat.fits")


def write_products(store: ProductStore, result: QuadrantResult) -> list[str]:
    """Write everything a quadrant made; returns the paths. A repetition writes the same bytes under the same names.

    Raises
    ------
    StoreUnavailable
        The store cannot be written; nothing half-written stays.
    """
    paths = []
    for suffix, data in encode_result(result).items():
        path = science_path(result.quadrant.name, suffix)
        store.write(path, data)
        paths.append(path)
    return paths


def read_science_product(store: ProductStore, name: str) -> ScienceImage:
    """The science image of a quadrant's base name; ``UsageError`` where the store has none."""
    return decode_science({suffix: store.read(science_path(name, suffix)) for suffix in _SCIENCE_FILES})


def read_mask(store: ProductStore, name: str) -> U16:
    """The mask image of a quadrant's base name, (ny, nx) uint16 bits; ``UsageError`` where the store has none."""
    return as_unsigned(fitsio.read_hdus(store.read(science_path(name, "mskimg.fits.fz")))[1].image())


def read_calibration_sources(store: ProductStore, name: str) -> tuple[Table, ZeroPoint]:
    """Sources (without apertures) and zero point of a quadrant's base name, from its PSF catalogue alone.

    Raises
    ------
    UsageError, MessageError
        The store has none; it is none of ours.
    """
    hdus = catalogs.by_name(store.read(science_path(name, "psfcat.fits")))
    try:
        extension = hdus[catalogs.PSF_CATALOG]
        return catalogs.sources_of(extension.image()), zeropoint_of(extension.header)
    except KeyError as error:
        raise MessageError(f"{name}: not a PSF catalogue of ours: {error}") from error


def read_quality_record(store: ProductStore, name: str) -> QuadrantReport:
    """The quality record of a quadrant's base name; ``UsageError`` where the store has none."""
    return catalogs.read_quality(store.read(science_path(name, "qa.json")))


def science_files(
    store: ProductStore, ending: str, first: str = "", last: str = "99999999"
) -> Iterator[tuple[str, str]]:
    """Base name and path of every science product with this ending, of nights ``first`` to ``last``, in time order."""
    for year in store.names("sci"):
        if not first[:4] <= year <= last[:4]:
            continue
        for day in store.names(f"sci/{year}"):
            if not first <= year + day <= last:
                continue
            for fraction in store.names(f"sci/{year}/{day}"):
                folder = f"sci/{year}/{day}/{fraction}"
                for file in store.names(folder):
                    if file.endswith(ending):
                        yield file.removesuffix(ending), f"{folder}/{file}"


def find_science_products(store: ProductStore, field: int, fid: int) -> list[tuple[str, int]]:
    """Base name and readout channel of every science image of a field and filter, in time order."""
    found = []
    for name, _ in science_files(store, _IMAGE):
        try:
            parts = parse_science_name(name)
        except UsageError:  # somebody else's file in our tree
            continue
        if parts.field == field and parts.fid == fid:
            found.append((name, parts.rcid))
    return found
