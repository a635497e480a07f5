"""What was learned about a channel: written, read back by the worker's inputs, replaced while they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nights import ztf_stream

from stream.archive import ProductStore, StoreInputs, fitsio
from stream.archive.learned import Learned, LearnedShelf, learned_path, write_ghosts, write_persistent
from stream.astrometry import tpv_wcs, wcs_cards
from stream.astrometry.tpv import terms
from stream.core.errors import MessageError
from stream.core.flags import Mask
from stream.core.ghosts import GhostGeometry
from stream.core.records import Astrometry, Exposure, Quadrant

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


def test_the_command_learns_the_distortion_and_the_next_quadrant_has_it(store: ProductStore, tmp_path: Path) -> None:
    rng, bend, scatter = np.random.default_rng(2), np.zeros((15, 2)), 0.02
    bend[3:] = rng.normal(0, 0.3, (12, 2))
    nx, ny, cd = 512, 400, np.array([[-2.8e-4, 1e-6], [2e-6, -2.8e-4]])
    for k in range(8):
        off = bend + np.where(np.arange(15)[:, None] > 2, rng.normal(0, scatter, (15, 2)), 0.0)
        # px of the plane to intermediate coordinates: every term of degree n holds 1 / (half size)^n.
        x, y = rng.uniform(-1, 1, (2, 200))
        angle = np.radians(rng.uniform(-0.2, 0.2))  # the camera turns, and its distortion with it
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ cd
        plane = (np.stack([x * nx / 2, y * ny / 2], 1) + terms(x, y, 4) @ off) @ turned.T
        q = np.stack([x * nx / 2, y * ny / 2], 1) @ turned.T
        pv1, pv2 = (
            np.linalg.lstsq(terms(*axes, 4), plane[:, i], rcond=None)[0] for i, axes in enumerate((q.T, q.T[::-1]))
        )
        wcs = tpv_wcs((10.0 + k, 20.0), turned, pv1, pv2, (nx / 2 + 0.5, ny / 2 + 0.5), (ny, nx))
        cards = {**wcs_cards(Astrometry(wcs, 0.05, 0.05, 900, 1000, -99.0)), "FILTERID": 2}
        night, fraction = f"202010{5 + k:02d}", f"{200000 + k:06d}"
        base = f"sci/2020/{night[4:]}/{fraction}/ztf_{night}{fraction}_000448_zr_c03_o_q3"
        image = fitsio.float_hdu(np.zeros((ny, nx), np.float32), 1.0, cards, "SCIIMG")
        store.write(f"{base}_sciimg.fits.fz", fitsio.primary() + image)
    said = ztf_stream("calibration", "distortion", "--rcid", RCID, "--store", tmp_path, "--json").ok().rows()[0]
    assert said["figures"]["zr_exposures"] == 8
    found = StoreInputs(store).calibration(quadrant()).distortion
    assert found is not None
    assert found.nights == ("20201005", "20201012")
    # Means of eight, and 24 scatters of eight each.
    assert np.abs(found.mean - bend).max() < 4 * scatter * np.sqrt(np.pi / 2 / 8)
    assert 0.6 * scatter < np.median(found.sigma[3:]) < 1.8 * scatter
    assert np.isinf(found.sigma[:3]).all()
    lessons = ztf_stream("calibration", "learn", "--night", "20201012", "--store", tmp_path, "--json").ok().rows()
    assert [(one["kind"], one["rcid"], one["error"] is None) for one in lessons] == [
        ("distortion", RCID, True), ("persistent", RCID, False)
    ], "there are no candidates"  # fmt: skip
    assert lessons[0]["figures"] == said["figures"]
    assert "nothing to learn" in ztf_stream("calibration", "learn", "--night", "20201013", "--store", tmp_path).ok().out
    assert ztf_stream("calibration", "learn", "--night", "2020-10-12", "--store", tmp_path).status != 0
    assert ztf_stream("calibration", "distortion", "--last", "20201007", "--store", tmp_path).status != 0
    store.write(learned_path(RCID, "distortion.json"), b'{"zr": {"mean": 1}}')
    with pytest.raises(MessageError, match="distortion"):
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
    from stream.archive.learned import channel_products

    (first, *_) = channel_products(store, RCID, "_candidates.parquet", "0", "9")
    shape = fitsio.int_hdu(np.zeros((512, 512), np.int16), {}, "MSKIMG")
    store.write(first[2].replace("candidates.parquet", "mskimg.fits.fz"), fitsio.primary() + shape)
    ztf_stream("calibration", "persistent", "--rcid", RCID, "--store", tmp_path, "--json").ok()
    learned = StoreInputs(store).calibration(quadrant()).persistent
    assert learned is not None
    assert {tuple(place) for place in np.argwhere(learned)} == {(56, 100)}
    assert ztf_stream("calibration", "ghosts", "--rcid", "5", "--store", tmp_path).status != 0
