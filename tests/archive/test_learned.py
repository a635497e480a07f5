"""What was learned about a channel: written, read back by the worker's inputs, replaced while they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nights import ztf_stream

from stream.archive import ProductStore, StoreInputs
from stream.archive.learned import Learned, LearnedShelf, learned_path, write_ghosts, write_persistent
from stream.core.errors import MessageError
from stream.core.flags import Mask
from stream.core.ghosts import GhostGeometry
from stream.core.records import Exposure, Quadrant

RCID = 10  # CCD 3, quadrant 3
NAN = float("nan")


@pytest.fixture
def store(tmp_path: Path) -> ProductStore:
    return ProductStore(str(tmp_path))


def quadrant() -> Quadrant:
    return Quadrant(
        Exposure("ztf_20201005210417_000448_zr_c03_o", "object", 448, 2, 3, 1, 2459127.7, 2459127.7, 30, 10, 20), 3
    )


def test_learned_facts_reach_the_calibration_of_the_next_quadrant(store: ProductStore) -> None:
    inputs = StoreInputs(store)
    assert inputs.calibration(quadrant()).ghosts is None
    assert inputs.calibration(quadrant()).persistent is None
    geometry = GhostGeometry(scale=-0.97, xi0=0.01, fraction=3e-8)
    mask = np.zeros((40, 30), np.uint16)
    mask[3, 4] = Mask.PERSISTENT
    write_ghosts(store, RCID, geometry, 12)
    write_persistent(store, RCID, mask, ["20201001", "20201003"], 20)
    found = inputs.calibration(quadrant())
    assert found.ghosts == geometry
    assert found.persistent is not None
    assert (found.persistent == mask).all()
    assert LearnedShelf(store).of(RCID + 1) == Learned()
    write_ghosts(store, RCID, GhostGeometry(), 30)
    assert inputs.calibration(quadrant()).ghosts == GhostGeometry()


def test_a_damaged_file_is_named(store: ProductStore) -> None:
    store.write(learned_path(RCID, "ghosts.json"), b'{"scale": "x"}')
    with pytest.raises(MessageError, match="ghost geometry"):
        LearnedShelf(store).of(RCID)


def test_the_command_learns_persistent_artefacts_from_candidates(store: ProductStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for k in range(12):
        x, y = rng.uniform(1, 512, (2, 30))
        x[0], y[0] = 101.0 + rng.normal(0, 0.1), 57.0 + rng.normal(0, 0.1)  # FITS pixels
        columns = {"xpos": x, "ypos": y, "ra": 10 - (x + k * 7) * 2.8e-4, "dec": 20 - y * 2.8e-4}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        night, fraction = f"202010{5 + k // 3:02d}", f"{200000 + k:06d}"
        base = f"sci/2020/{night[4:]}/{fraction}/ztf_{night}{fraction}_000448_zr_c03_o_q3"
        store.write(f"{base}_candidates.parquet", sink.getvalue().to_pybytes())
    from stream.archive import fitsio
    from stream.archive.learned import channel_products

    (first, *_) = channel_products(store, RCID, "_candidates.parquet", "0", "9")
    shape = fitsio.int_hdu(np.zeros((512, 512), np.int16), {}, "MSKIMG")
    store.write(first[2].replace("candidates.parquet", "mskimg.fits.fz"), fitsio.primary() + shape)
    ztf_stream("calibration", "persistent", "--rcid", RCID, "--store", tmp_path, "--json").ok()
    learned = StoreInputs(store).calibration(quadrant()).persistent
    assert learned is not None
    assert {tuple(place) for place in np.argwhere(learned)} == {(56, 100)}
    assert ztf_stream("calibration", "ghosts", "--rcid", "5", "--store", tmp_path).status != 0
