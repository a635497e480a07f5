"""References replace each other in use, and none of them is lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import archive_samples as samples
import numpy as np
import pytest

from stream.archive import ProductStore, StoreInputs, reference_path
from stream.archive.reference_shelf import ReferencePin, ReferenceShelf
from stream.core.errors import UsageError
from stream.core.records import Reference

WHERE = 651, 2, 8


@pytest.fixture
def store(tmp_path: Path) -> ProductStore:
    store = ProductStore(str(tmp_path))
    for version in ("v1", "v2", "v3"):
        store.write_reference(samples.reference(version))
    return store


def files(store: ProductStore, version: str | None) -> dict[str, bytes]:
    found = store.reference_files(*WHERE, version)
    assert found is not None
    return found


def test_what_was_in_use_is_kept_whole(store: ProductStore, tmp_path: Path) -> None:
    alone = ProductStore(str(tmp_path / "other"))
    alone.write_reference(samples.reference("v1"))
    assert files(store, "v1") == files(alone, None)
    for version in ("v1", "v2", "v3", None):
        reference = store.read_reference(*WHERE, version)
        assert reference is not None
        assert reference.version == (version or "v3")
    assert store.read_reference(*WHERE, "v9") is None


def test_writing_the_same_again_keeps_nothing_twice(store: ProductStore) -> None:
    store.write_reference(samples.reference("v3"))
    assert [v.version for v in ReferenceShelf(store).versions(WHERE)] == ["v3", "v2", "v1"]
    assert store.reference_files(*WHERE, "v3") is None  # in use, not beside it


def test_versions_are_listed_and_an_old_one_comes_back(store: ProductStore) -> None:
    shelf = ReferenceShelf(store)
    assert list(shelf.places()) == [WHERE]
    assert list(shelf.places(fid=1)) == list(shelf.places(field=650)) == list(shelf.places(rcid=7)) == []
    before = files(store, "v1")
    shelf.pin(WHERE, ReferencePin("v1", "ada", "a supernova is in v3"))
    assert files(store, None) == before
    found = shelf.versions(WHERE)
    assert next((v.version, v.in_use, v.pinned) for v in found) == ("v1", True, True)
    assert sorted(v.version for v in found) == ["v1", "v2", "v3"]
    shelf.unpin(WHERE)
    assert shelf.pinned(WHERE) is None
    shelf.use(WHERE, "v3")
    again = store.read_reference(*WHERE)
    assert again is not None
    assert again.version == "v3"
    with pytest.raises(UsageError, match=r"v1, v2|v2, v1"):
        shelf.use(WHERE, "v9")


def test_who_died_replacing_it_left_the_old_one_in_use(store: ProductStore, tmp_path: Path) -> None:
    """Some files of the new, the log (written last) of the old: the log counts."""
    new = ProductStore(str(tmp_path / "new"))
    new.write_reference(samples.reference("v4"))
    kept = files(store, None)
    for suffix, data in kept.items():
        store.write(reference_path(*WHERE, suffix, "v3"), data)
    for suffix in ("refimg.fits.fz", "refcov.fits.fz"):
        store.write(reference_path(*WHERE, suffix), files(new, None)[suffix])
    reference = store.read_reference(*WHERE)
    assert reference is not None
    assert reference.version == "v3"
    store.write_reference(samples.reference("v4"))
    assert files(store, "v3") == kept


def test_the_grid_is_read_from_the_header(store: ProductStore) -> None:
    grid = store.reference_grid(*WHERE)
    assert grid is not None
    wcs, shape = grid
    reference = store.read_reference(*WHERE)
    assert reference is not None
    assert shape == reference.data.shape
    assert np.allclose(wcs.all_pix2world(7.0, 9.0, 0), reference.wcs.all_pix2world(7.0, 9.0, 0), rtol=0, atol=1e-10)
    assert store.reference_grid(650, 2, 8) is None


def test_what_is_made_of_a_reference_is_made_once_a_version(store: ProductStore) -> None:
    inputs, made = StoreInputs(store), []

    def count(reference: Reference) -> int:
        made.append(reference.version)
        return int(np.isfinite(reference.data).sum())

    old, new = (store.read_reference(*WHERE, version) for version in ("v1", None))
    assert old is not None
    assert new is not None
    values = [inputs.prepared(reference, count) for reference in (new, new, old, new)]
    assert made == ["v3", "v1"]
    assert values == [np.isfinite(r.data).sum() for r in (new, new, old, new)]


def test_prepared_references_take_bounded_memory(store: ProductStore) -> None:
    inputs, made = StoreInputs(store), []

    @dataclasses.dataclass
    class Large:
        pixels: np.ndarray

    def large(reference: Reference) -> Large:
        made.append(reference.version)
        return Large(np.zeros(70 << 18, np.float32))

    old, new = (store.read_reference(*WHERE, version) for version in ("v1", None))
    for reference in (new, old, new):
        assert reference is not None
        inputs.prepared(reference, large)
    assert made == ["v3", "v1", "v3"]
