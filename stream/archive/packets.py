"""The archive of sent packets: each alone as ``process`` writes them, or many to a file as the stream does.

Every packet of ours is the same header followed by one block, so a shard is that header once and the blocks one
after another: an Avro file that anything can read, a third smaller than the packets, and each packet can be had
back byte for byte. A shard is written once and never touched again, its index (``.parquet``: candid, objectId,
jd, ra, dec, ..., the packet's SHA-256, where and when it was published, its place in the shard) beside it; a shard
without an index, left by a crash between the two, is read through. A packet whose candid is there already is passed
over, so that delivering twice archives once.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from stream.alert.packet import block_spans, packet_header, read_head, read_packet, split_header
from stream.archive import catalogs
from stream.archive.paths import alert_folder, alert_path
from stream.archive.store import ProductStore
from stream.core.identity import NIGHT_ZERO_JD, night_of, pid_of_candid
from stream.core.records import Row

_SHARD, _INDEX = ".avro", ".parquet"
_PREFIX = "shard_"
_INDEX_SCHEMA = pa.schema(
    [
        ("candid", pa.int64()), ("objectId", pa.string()), ("jd", pa.float64()), ("fid", pa.int32()),
        ("field", pa.int32()), ("rcid", pa.int32()), ("programid", pa.int32()), ("ra", pa.float64()),
        ("dec", pa.float64()), ("magpsf", pa.float32()), ("sigmapsf", pa.float32()), ("isdiffpos", pa.string()),
        ("rb", pa.float32()), ("drb", pa.float32()), ("offset", pa.int64()), ("length", pa.int64()),
        ("sha256", pa.string()), ("topic", pa.string()), ("partition", pa.int32()), ("kafka_offset", pa.int64()),
        ("published", pa.float64()),
    ]
)  # fmt: skip
_FROM_CANDIDATE = ("candid", "jd", "fid", "field", "rcid", "programid", "ra", "dec", "magpsf", "sigmapsf", "isdiffpos",
                   "rb", "drb")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet as it was published: on which topic, where in it, and when (broker's time, unix seconds UTC)."""

    packet: bytes
    topic: str
    partition: int
    offset: int
    published: float


@dataclass(frozen=True, slots=True)
class _New:
    """A packet on its way into a shard."""

    head: Row
    packet: bytes
    start: int  # where its block begins
    sent: Sent | None


def write_alert(store: ProductStore, packet: bytes) -> str:
    """Write one packet as a file of its own; returns its path, ``alerts/YYYYMMDD/programidN/<candid>.avro``."""
    candidate = read_head(packet)["candidate"]
    path = alert_path(night_of(candidate["jd"]), candidate["programid"], candidate["candid"])
    store.write(path, packet)
    return path


def night_of_candid(candid: int) -> str:
    """UT date of the exposure that a candid belongs to."""
    nid = pid_of_candid(candid) // 10_000 // 100_000
    return night_of(NIGHT_ZERO_JD + nid)


@dataclass(frozen=True, slots=True)
class _Folder:
    """One night's and program's alerts."""

    store: ProductStore
    path: str

    def index(self, name: str) -> list[Row]:
        """Rows of a shard's index (``name`` without ending), made from the shard where it is missing."""
        data = self.store.find(f"{self.path}/{name}{_INDEX}")
        if data is not None:
            return catalogs.read_rows(data)
        shard = self.store.read(f"{self.path}/{name}{_SHARD}")
        return _index_rows(shard)

    def shards(self) -> list[str]:
        """Names of shards without their ending."""
        names = self.store.names(self.path)
        return [n.removesuffix(_SHARD) for n in names if n.startswith(_PREFIX) and n.endswith(_SHARD)]

    def singles(self) -> list[int]:
        """Candids of packets in files of their own."""
        stems = [n.removesuffix(_SHARD) for n in self.store.names(self.path) if n.endswith(_SHARD)]
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def packet(self, name: str, header: bytes, row: Row) -> bytes:
        """One packet of a shard."""
        start = row["offset"]
        return header + self.store.read_range(f"{self.path}/{name}{_SHARD}", start, start + row["length"])


def _index_row(new: _New, offset: int) -> Row:
    row = {name: new.head["candidate"].get(name) for name in _FROM_CANDIDATE}
    row |= {"objectId": new.head["objectId"], "offset": offset, "length": len(new.packet) - new.start}
    row |= {"sha256": hashlib.sha256(new.packet).hexdigest()}
    if new.sent is not None:
        sent = new.sent
        row |= {"topic": sent.topic, "partition": sent.partition, "kafka_offset": sent.offset}
        row |= {"published": sent.published}
    return row


def _index_rows(shard: bytes) -> list[Row]:
    """Index rows from the shard alone: where its packets were published is not known."""
    header = shard[: split_header(shard)[1]]
    rows = []
    for start, end in block_spans(shard):
        packet = header + shard[start:end]
        rows.append(_index_row(_New(read_head(packet), packet, len(header), None), start))
    return rows


class PacketArchive:
    """Writes packets many to a file."""

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._known: dict[str, set[int]] = defaultdict(set)  # folder -> candids that are there
        self._seen: dict[str, set[str]] = defaultdict(set)  # folder -> shards whose index was read

    def add(self, packets: Iterable[bytes | Sent]) -> int:
        """Archive packets, with where they were published if that is known; returns how many were new.

        Packets of several nights and programs may come together; each group becomes one shard. Its name follows
        from its candids: the same packets make the same file.

        Raises
        ------
        MessageError
            Something that is no packet. Nothing was written.
        StoreUnavailable
            The store failed: come again with the same packets.
        """
        groups: dict[tuple[str, bytes], dict[int, _New]] = defaultdict(dict)
        for each in packets:
            sent = each if isinstance(each, Sent) else None
            packet = each.packet if isinstance(each, Sent) else each
            head = read_head(packet)
            candidate = head["candidate"]
            folder = alert_folder(night_of(candidate["jd"]), candidate["programid"])
            start = _header_size(packet)
            groups[folder, packet[:start]].setdefault(candidate["candid"], _New(head, packet, start, sent))
        new = 0
        for (folder, header), found in sorted(groups.items()):
            self._refresh(folder)
            fresh = sorted(found.keys() - self._known[folder])
            if fresh:
                self._write(folder, header, [found[candid] for candid in fresh], fresh)
                new += len(fresh)
        return new

    def _refresh(self, folder: str) -> None:
        """Learn what is in the folder; another worker may have written there since."""
        place = _Folder(self._store, folder)
        for name in place.shards():
            if name not in self._seen[folder]:
                self._known[folder].update(row["candid"] for row in place.index(name))
                self._seen[folder].add(name)

    def _write(self, folder: str, header: bytes, found: Sequence[_New], candids: Sequence[int]) -> None:
        shard = io.BytesIO()
        shard.write(header)
        rows = []
        for new in found:
            rows.append(_index_row(new, shard.tell()))
            shard.write(new.packet[new.start :])
        digest = hashlib.sha256(",".join(map(str, candids)).encode()).hexdigest()[:8]
        name = f"{_PREFIX}{candids[0]}_{len(candids)}_{digest}"
        self._store.write(f"{folder}/{name}{_SHARD}", shard.getvalue())
        self._store.write(f"{folder}/{name}{_INDEX}", catalogs.parquet(rows, _INDEX_SCHEMA))
        self._known[folder].update(candids)
        self._seen[folder].add(name)


def _header_size(packet: bytes) -> int:
    header = packet_header()
    return len(header) if packet.startswith(header) else split_header(packet)[1]


def read_alert(store: ProductStore, candid: int) -> bytes | None:
    """The packet of a candid, byte for byte as it was sent; None where the archive has none."""
    night = night_of_candid(candid)
    for program in _programs(store, night):
        folder = _Folder(store, f"alerts/{night}/{program}")
        single = store.find(f"{folder.path}/{candid}{_SHARD}")
        if single is not None:
            return single
        for name in folder.shards():
            for row in folder.index(name):
                if row["candid"] == candid:
                    return folder.packet(name, _shard_header(folder, name, row), row)
    return None


def _shard_header(folder: _Folder, name: str, row: Row) -> bytes:
    """Header of a shard: ours as a rule, else read from its beginning."""
    ours = packet_header()
    start = folder.store.read_range(f"{folder.path}/{name}{_SHARD}", 0, len(ours))
    if start == ours:
        return ours
    first = min(r["offset"] for r in folder.index(name))
    return folder.store.read_range(f"{folder.path}/{name}{_SHARD}", 0, first)


def _programs(store: ProductStore, night: str) -> list[str]:
    """Names of a night's folders of alerts; its manifest lies beside them."""
    return [name for name in store.names(f"alerts/{night}") if name.startswith("programid")]


def archived_nights(store: ProductStore) -> list[str]:
    """Nights (YYYYMMDD) that have alerts."""
    return [name for name in store.names("alerts") if name.isdigit()]


def iterate_packets(
    store: ProductStore, night: str | None = None, programid: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Candid and bytes of every packet, each candid once: by night, program, then in the order of the files."""
    for each in archived_nights(store) if night is None else [night]:
        for program in _programs(store, each):
            if programid is None or program == f"programid{programid}":
                yield from _iterate_folder(_Folder(store, f"alerts/{each}/{program}"))


def _iterate_folder(folder: _Folder) -> Iterator[tuple[int, bytes]]:
    seen = set()
    for candid in folder.singles():
        seen.add(candid)
        yield candid, folder.store.read(f"{folder.path}/{candid}{_SHARD}")
    for name in folder.shards():
        shard = folder.store.read(f"{folder.path}/{name}{_SHARD}")
        header = shard[: split_header(shard)[1]]
        for start, end in block_spans(shard):
            packet = header + shard[start:end]
            candid = read_head(packet)["candid"]
            if candid not in seen:
                seen.add(candid)
                yield candid, packet


class NightShelf:
    """The archived packets of one night and program by candid, read one at a time."""

    def __init__(self, store: ProductStore, night: str, programid: int) -> None:
        self._folder = folder = _Folder(store, alert_folder(night, programid))
        self._headers: dict[str, bytes] = {}
        self._shard: dict[int, str] = {}
        self._rows: dict[int, Row] = {}
        for name in folder.shards():
            for row in folder.index(name):
                self._shard[row["candid"]], self._rows[row["candid"]] = name, row
        for candid in folder.singles():
            self._shard.pop(candid, None)
            packet = self._single(candid)
            new = _New(read_head(packet), packet, _header_size(packet), None)
            self._rows[candid] = _index_row(new, 0) | {"offset": None}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> list[Row]:
        """Index rows in candid order; those of packets in files of their own lack where they were published."""
        return [self._rows[candid] for candid in sorted(self._rows)]

    def packet(self, candid: int) -> bytes:
        """A packet, byte for byte as it was sent."""
        name = self._shard.get(candid)
        if name is None:
            return self._single(candid)
        if name not in self._headers:
            self._headers[name] = _shard_header(self._folder, name, self._rows[candid])
        return self._folder.packet(name, self._headers[name], self._rows[candid])

    def _single(self, candid: int) -> bytes:
        return self._folder.store.read(f"{self._folder.path}/{candid}{_SHARD}")


def iterate_alerts(store: ProductStore, night: str | None = None, programid: int | None = None) -> Iterator[Row]:
    """Records of archived packets; all nights and programs where none is named."""
    for _, packet in iterate_packets(store, night, programid):
        yield read_packet(packet)


def alert_index(store: ProductStore, night: str, programid: int) -> list[Row]:
    """Index rows of a night's shards, in candid order; packets in files of their own have none.

    Those of shards of older versions lack what was added to the index since.
    """
    folder = _Folder(store, alert_folder(night, programid))
    rows = {row["candid"]: row for name in folder.shards() for row in folder.index(name)}
    return [rows[candid] for candid in sorted(rows)]
