"""Malformed packets by the hundred through the running system: each a dead letter with its reason, nobody crashes.

``python ops/bench/malformed.py --packets 500 [--folder DIR] [--out report.json]``

The packets are one small science packet spoilt in a dozen ways (see ``WAYS``), each at random places, under names of
its own; every fiftieth is only partly spoilt, so that its other quadrants have to come through. What has to become of
each is asked of the parser beforehand. The exit status is 1 if a packet has no letter, a letter no reason, or a process
died.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "ops"), *(str(ROOT / "tests" / room) for room in ("faults", "e2e"))]

from harness import world_on  # noqa: E402
from torture import prepared, sibling  # noqa: E402

from stream.core.camera import SMALL  # noqa: E402
from stream.core.errors import PacketError  # noqa: E402
from stream.engine import logs  # noqa: E402
from stream.engine.config import load_settings  # noqa: E402
from stream.engine.deadletters import DeadLetter, list_letters  # noqa: E402
from stream.engine.ingest_service import Ingestor  # noqa: E402
from stream.engine.lag import group_lag  # noqa: E402
from stream.engine.supervise import Supervisor  # noqa: E402
from stream.ingest import parse_packet, read_quadrant  # noqa: E402

BLOCK, CARD = 2880, 80
REQUIRED = ("FIELDID", "FILTERID", "OBSJD", "SHUTOPEN", "SHUTCLSD", "EXPTIME", "PROGRMID", "IMGTYPE", "TELRAD")
VALUES = ("'text'", "NaN", "-7", "1e400", "''", "T", "'2025-99-99T99:99:99'")
Way = Callable[[bytes, random.Random], bytes]


def _card(data: bytes, key: str, card: str) -> bytes:
    """The first card of that keyword replaced."""
    at = next(i for i in range(0, len(data), CARD) if data[i : i + 8] == key.ljust(8).encode())
    return data[:at] + card.ljust(CARD)[:CARD].encode() + data[at + CARD :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(0, len(data) // 2)]


def _keyword_gone(data: bytes, rng: random.Random) -> bytes:
    return _card(data, rng.choice(REQUIRED), "COMMENT gone")


def _keyword_wrong(data: bytes, rng: random.Random) -> bytes:
    key = rng.choice(REQUIRED)
    return _card(data, key, f"{key:<8}= {rng.choice(VALUES):>20}")


def _noise(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(0, BLOCK)
    return data[:at] + rng.randbytes(rng.randrange(BLOCK, 8 * BLOCK)) + data[at:]


def _zeros(data: bytes, rng: random.Random) -> bytes:
    n = rng.randrange(1, 4)
    return b"\0" * (n * BLOCK) + data[n * BLOCK :]


def _extensions_gone(data: bytes, rng: random.Random) -> bytes:
    """The last ones, the overscans of all quadrants among them."""
    starts = [i for i in range(0, len(data), BLOCK) if data[i : i + 8] == b"XTENSION"]
    return data[: starts[rng.randrange(1, 5)]]


def _huge(data: bytes, rng: random.Random) -> bytes:
    key = rng.choice(("NAXIS1", "NAXIS2", "PCOUNT", "ZNAXIS1", "ZNAXIS2"))
    card = f"{key:<8}= {10 ** rng.randrange(6, 18):>20}".ljust(CARD).encode()
    cards = [data[i : i + CARD] for i in range(0, len(data), CARD)]
    return b"".join(card if old.startswith(key.ljust(8).encode()) else old for old in cards)


def _text(data: bytes, rng: random.Random) -> bytes:
    return f"<html><body>404 not found {rng.random()}</body></html>".encode() * rng.randrange(1, 400)


def _empty(data: bytes, rng: random.Random) -> bytes:
    return b""


WAYS: tuple[Way, ...] = (
    _cut, _keyword_gone, _keyword_wrong, _noise, _zeros, _extensions_gone, _huge, _text, _keyword_wrong, _empty,
)  # fmt: skip


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    """A stretch of one quadrant's pixels, as a bad line leaves it: the rest is sound."""
    starts = [i for i in range(0, len(data), BLOCK) if data[i : i + 8] == b"XTENSION"]
    k = rng.randrange(4)
    at = rng.randrange((starts[k] + 2 * starts[k + 1]) // 3, starts[k + 1] - BLOCK)
    return data[:at] + b"\xff" * 400 + data[at + 400 :]


def hurt(data: bytes, name: str) -> int:
    """How many dead letters these bytes have to make: one for a packet refused, else one a quadrant."""
    try:
        packet = parse_packet(data, name, SMALL)
    except PacketError:
        return 1
    number = len(packet.failures)
    for item in packet.quadrants:
        try:
            read_quadrant(item.payload, SMALL)
        except PacketError:
            number += 1
    return number


def make(good: Path, folder: Path, number: int, seed: int) -> dict[str, int]:
    """Write so many packets that are malformed; name to letters expected."""
    folder.mkdir(parents=True)
    rng, data, expected = random.Random(seed), good.read_bytes(), {}
    head, _, rest = good.name.partition("_000")
    k = 0
    while len(expected) < number:
        way = _overwritten if k % 50 == 49 else WAYS[k % len(WAYS)]
        k += 1
        name = f"{head[:-6]}{k:06d}_000{rest}"
        spoilt = way(data, rng)
        letters = hurt(spoilt, name)
        if letters:
            (folder / name).write_bytes(spoilt)
            expected[name] = letters
    return expected


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("run/torture"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    night = prepared(folder)
    run = folder / f"malformed-{int(time.time())}"
    (good,) = sorted((night / "raw" / "sci").iterdir())
    expected = make(good, run / "packets", options.packets, options.seed)
    logs.configure(load_settings(environ={}, log_level="error"), "malformed")
    with world_on(run / "world", sibling(night, run / "store"), pixel_workers=2) as world:
        ingestor = Ingestor(world.settings, world.client)
        files = iter([*sorted((run / "packets").iterdir()), good])
        outcomes: Counter[str] = Counter()

        def watch() -> None:
            for path in files:
                outcomes[ingestor.file(path).outcome] += 1
                return
            time.sleep(1.0)
            if not group_lag(world.settings, world.settings.group("pixels"), "ztf.raw"):
                supervisor.stop()

        supervisor = Supervisor(world.children[:-1], watch=watch)  # all but the ingest of a folder
        restarts = supervisor.run()
        ingestor.close()
        letters = list_letters(world.settings)
    return report(expected, letters, outcomes, restarts, options.out)


def report(
    expected: dict[str, int], letters: list[DeadLetter], outcomes: Counter[str], restarts: int, out: Path | None
) -> int:
    """Say what came of it; the exit status."""
    about: Counter[str] = Counter()
    for letter in letters:
        subject = str(letter.context.get("file") or letter.context.get("name") or "")
        stem = Path(subject).name.split(".")[0].rsplit("_q", 1)[0]
        about[stem] += 1
    without = [name for name, n in expected.items() if about[name.split(".")[0]] < 1]
    told = {
        "packets": len(expected), "letters_expected": sum(expected.values()), "letters": len(letters),
        "outcomes": dict(outcomes), "packets_without_letter": without,
        "letters_without_reason": sum(not letter.reason for letter in letters),
        "distinct_reasons": len({(x.stage, x.reason.split(":", 1)[-1]) for x in letters}),
        "by_stage": dict(Counter(x.stage for x in letters)), "crashes": restarts,
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    if out:
        out.write_text(json.dumps(told, indent=1))
    ok = not without and not told["letters_without_reason"] and not restarts
    return 0 if ok and told["letters"] == told["letters_expected"] else 1


if __name__ == "__main__":
    sys.exit(main())
