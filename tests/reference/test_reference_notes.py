"""What a subtraction found out about a reference is kept beside it, and trusted as far as it can be checked."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pairs import reference_of, sky_wcs, varying_psf
from synthetic import star_field

from stream.archive import ProductStore
from stream.archive.frames import decode_notes, encode_notes
from stream.archive.paths import notes_path
from stream.core.records import Reference, ReferenceNotes
from stream.offline_reference import take_notes
from stream.subtract import ReferenceCache, make_cache, note_reference

numbers = st.floats(allow_nan=False, allow_infinity=False)
some_notes = st.builds(
    ReferenceNotes,
    st.text(max_size=12),
    st.text(max_size=12),
    hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(3)), elements=numbers),
    hnp.arrays(np.int64, st.integers(0, 9)),
    numbers,
)


def same(a: object, b: object) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]  # type: ignore[arg-type]
    return all(np.array_equal(x, y) and np.asarray(x).dtype == np.asarray(y).dtype for x, y in pairs)


@given(some_notes)
def test_notes_come_back_exactly(notes: ReferenceNotes) -> None:
    back = decode_notes(encode_notes(notes))
    assert back is not None
    assert same(notes, back)
    assert encode_notes(back) == encode_notes(notes)


@given(some_notes, st.data())
def test_damage_is_seen(notes: ReferenceNotes, data: st.DataObject) -> None:
    whole = encode_notes(notes)
    k, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    hurt = decode_notes(whole[:k] + bytes([byte]) + whole[k + 1 :])
    assert hurt is None or same(hurt, notes)  # a blank for a blank changes nothing
    assert decode_notes(whole[:k]) is None or k >= len(whole.rstrip())


@pytest.fixture(scope="module")
def bright() -> Reference:
    """A reference whose ten brightest stars are cut off."""
    shape = (300, 320)
    x, y, flux = star_field(shape, 120, 4, (500, 200_000), edge=-5)
    ra, dec = sky_wcs(shape).all_pix2world(x, y, 0)
    reference = reference_of(shape, ra, dec, flux, sky_wcs(shape), varying_psf(2.0, shape), frames=15, seed=6)
    peaks = np.sort(reference.sources["flux"])
    limit = float(np.float32(0.12 * peaks[-10]))
    return replace(reference, data=np.minimum(reference.data, np.float32(limit)), saturate=limit)


@pytest.fixture
def store(bright: Reference, tmp_path: Path) -> ProductStore:
    made = ProductStore(str(tmp_path))
    made.write_reference(bright)
    return made


def test_notes_beside_a_reference_change_nothing_but_time(store: ProductStore, bright: Reference) -> None:
    where = bright.field, bright.fid, bright.rcid
    bare = store.read_reference(*where)
    assert bare is not None
    assert bare.notes is None
    assert take_notes(store, where)
    assert not take_notes(store, where)
    noted = store.read_reference(*where)
    assert noted is not None
    assert noted.notes is not None
    assert same(noted.notes, note_reference(bare))
    assert len(noted.notes.stars) >= 3
    assert same(make_cache(noted), make_cache(bare))


def test_notes_of_other_code_or_another_version_count_for_nothing(store: ProductStore, bright: Reference) -> None:
    where = bright.field, bright.fid, bright.rcid
    bare = store.read_reference(*where)
    assert bare is not None
    right = note_reference(bare)
    wrong = replace(right, stars=right.stars * 2)
    assert not same(make_cache(replace(bare, notes=wrong)), make_cache(bare))  # they would matter
    for stale in (replace(wrong, code="of old"), replace(wrong, version="another")):
        made: ReferenceCache = make_cache(replace(bare, notes=stale))
        assert same(made, make_cache(bare))
    store.write_notes(*where, replace(wrong, code="of old"))
    assert take_notes(store, where)
    assert store.read(notes_path(*where, bright.version)) == encode_notes(right)


def test_a_damaged_file_is_made_again(store: ProductStore, bright: Reference) -> None:
    where = bright.field, bright.fid, bright.rcid
    take_notes(store, where)
    path = notes_path(*where, bright.version)
    whole = store.read(path)
    store.write(path, whole[: len(whole) // 2])
    hurt = store.read_reference(*where)
    assert hurt is not None
    assert hurt.notes is None
    assert take_notes(store, where)
    assert store.read(path) == whole
