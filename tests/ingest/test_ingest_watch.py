"""Which files are taken, when, and how often."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import UsageError
from stream.ingest.watch import (
    FileState,
    Pending,
    expand_inputs,
    file_sha256,
    is_packet_name,
    list_packets,
    settle_step,
    watch_folder,
)

A = "ztf_20250216192384_000402_zr_c11_o.fits.fz"
B = "ztf_20250216192384_000402_zr_c12_o.fits"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (A, True), (B, True), ("." + A, False), (A + ".part", False), (A + ".tmp", False), (A + "~", False),
        (f".{A}.Xy12Zw", False), (A.replace("_c11", "_c17"), False), ("gaia.parquet", False), (A + ".gz", False),
        (A.replace("_o.fits", "_o_q1_sciimg.fits"), False), (A[:-8], False),
    ],
)  # fmt: skip
def test_names(name: str, taken: bool) -> None:
    assert is_packet_name(name) is taken


def state(name: str = "a", inode: int = 1, size: int = 10, mtime: int = 5) -> FileState:
    return FileState(Path(name), inode, size, mtime)


@pytest.mark.parametrize(
    ("polls", "settle", "whole_at"),
    [
        # polls: (time, state or None where the file is not there); when it is first handed on
        ([(0, state()), (1, state())], 0, 1),  # two equal looks
        ([(0, state())], 0, None),  # one look is none
        ([(0, state()), (1, state(size=20)), (2, state(size=20))], 0, 2),  # still growing
        ([(0, state()), (1, state(mtime=6)), (2, state(mtime=7))], 0, None),  # rewritten all the time
        ([(0, state()), (1, state(inode=2)), (2, state(inode=2))], 0, 2),  # replaced by another file
        ([(0, state(size=0)), (1, state(size=0)), (9, state(size=0))], 0, None),  # made, not written
        ([(0, state()), (1, state()), (2, state()), (3, state())], 2.5, 3),  # long enough unchanged
        ([(0, state()), (1, None), (2, state()), (3, state())], 0, 3),  # gone between
    ],
)
def test_when_a_file_is_whole(
    polls: list[tuple[float, FileState | None]], settle: float, whole_at: float | None
) -> None:
    pending: dict[Path, Pending] = {}
    handed_on = []
    for now, seen in polls:
        whole, pending = settle_step(pending, [seen] if seen else [], now, settle)
        handed_on += [now] * len(whole)
    assert (handed_on[0] if handed_on else None) == whole_at


@given(st.lists(st.lists(st.builds(state, st.sampled_from("abc"), st.integers(1, 2), st.integers(0, 2))), max_size=6))
def test_nothing_is_whole_that_was_not_the_same_before(listings: list[list[FileState]]) -> None:
    pending: dict[Path, Pending] = {}
    before: set[FileState] = set()
    for now, listing in enumerate(listings):
        unique = list({seen.path: seen for seen in listing}.values())
        whole, pending = settle_step(pending, unique, now, 0)
        assert set(whole) <= before
        assert [seen.path for seen in whole] == sorted(seen.path for seen in whole)
        before = set(unique)


def test_expand(tmp_path: Path) -> None:
    night = tmp_path / "night"
    (night / "deep").mkdir(parents=True)
    for name in (night / B, night / A, night / "deep" / A, night / "notes.txt", night / (A + ".part")):
        name.write_bytes(b"x")
    odd = tmp_path / "odd.fits"
    odd.write_bytes(b"x")
    assert expand_inputs([night]) == [night / "deep" / A, night / A, night / B]
    assert expand_inputs([str(night / "*.fits.fz")]) == [night / A]
    assert expand_inputs([odd, night / B, night]) == [odd, night / B, night / "deep" / A, night / A]
    assert expand_inputs([str(tmp_path / "nig*")]) == [night / "deep" / A, night / A, night / B]
    for nothing in ([], [tmp_path / "absent.fits"], [str(tmp_path / "*.fz")]):
        with pytest.raises(UsageError):
            expand_inputs(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        expand_inputs([odd, tmp_path / "empty"])


class Script(threading.Event):
    """A stop event that, instead of waiting, lets the next thing happen to the folder."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        super().__init__()
        self.acts = list(acts)

    def wait(self, timeout: float | None = None) -> bool:
        if self.acts:
            self.acts.pop(0)()
        else:
            self.set()
        return self.is_set()


def test_a_watched_folder_gives_each_packet_once(tmp_path: Path) -> None:
    def rewrite() -> None:
        (tmp_path / A).write_bytes(b"whole, and other")
        os.utime(tmp_path / A, ns=(1, 1))

    nothing = lambda: None  # noqa: E731
    stop = Script(
        lambda: (tmp_path / A).write_bytes(b"half"),
        lambda: (tmp_path / A).write_bytes(b"half and more"),
        lambda: (tmp_path / (B + ".part")).write_bytes(b"other"),
        nothing,
        lambda: os.rename(tmp_path / (B + ".part"), tmp_path / B),
        nothing,
        lambda: (tmp_path / "again").mkdir(),
        lambda: (tmp_path / "again" / A).write_bytes(b"half and more"),  # a copy
        nothing,
        lambda: os.utime(tmp_path / A, ns=(7, 7)),  # touched
        nothing,
        rewrite,
        nothing,
        nothing,
    )
    seen = [(path.relative_to(tmp_path).as_posix(), path.read_bytes()) for path in watch_folder(tmp_path, 1, 0, stop)]
    assert seen == [(A, b"half and more"), (B, b"other"), (A, b"whole, and other")]


def test_an_exposure_that_is_never_completed_holds_no_other_up(tmp_path: Path) -> None:
    """A file that grows as long as anybody looks, a file that stays empty, and one that is cut off for good."""
    grows, empty, whole = (A.replace("_c11_", f"_c{ccd:02d}_") for ccd in (2, 3, 4))
    assert len({A, grows, empty, whole}) == 4

    def act(k: int) -> None:
        with (tmp_path / grows).open("ab") as file:
            file.write(b"more")
        if k == 0:
            (tmp_path / empty).touch()
            (tmp_path / A).write_bytes(b"cut off")
        if k == 3:
            (tmp_path / whole).write_bytes(b"whole")

    stop = Script(*(lambda k=k: act(k) for k in range(9)))
    # The one that was cut off is given when it has been quiet: reading it says what it lacks, and nobody waits for it.
    assert [path.name for path in watch_folder(tmp_path, 1, 0, stop)] == [A, whole]


def test_a_stopped_watch_ends_and_a_missing_folder_is_said(tmp_path: Path) -> None:
    for name in (A, B):
        (tmp_path / name).write_bytes(b"x")
    stop = threading.Event()
    watch = watch_folder(tmp_path, 0.001, 0, stop)
    assert next(watch).name == A
    stop.set()
    assert list(watch) == []
    with pytest.raises(UsageError, match="no such folder"):
        next(watch_folder(tmp_path / "absent", 1, 0, stop))


def test_listing_survives_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / A).symlink_to(tmp_path / "gone")
    (tmp_path / B).write_bytes(b"abc")
    (listed,) = list_packets(tmp_path)
    assert (listed.path.name, listed.size) == (B, 3)
    assert file_sha256(tmp_path / B) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
