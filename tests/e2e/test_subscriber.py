"""A subscriber that knows the README and nothing else: its ten lines as a process, killed and started again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from nights import wait

from stream.alert import emit_packet
from stream.alert.synthetic import synthetic_batch
from stream.engine import access
from stream.engine.config import load_settings
from stream.engine.kafka import OutMessage, Sender, make_admin, make_producer
from stream.engine.processes import spawn, stop
from stream.engine.topics import apply_topics, load_topics

pytestmark = pytest.mark.services
README = Path(__file__).resolve().parents[2] / "README.md"
TOPIC = "ztf.alerts.programid1"
JD = 2458463.02384  # a night of its own: other tests publish on the same topic


@pytest.fixture
def script(tmp_path) -> Path:
    """The README's block, as it stands there."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 10
    assert max(map(len, lines)) <= 120
    path = tmp_path / "subscriber.py"
    path.write_text(block)
    return path


def alerts(first: int, last: int) -> dict[int, bytes]:
    batch = synthetic_batch(last, seed=77, jd=JD)
    return {item.candidate["candid"]: emit_packet(item, batch, {}) for item in batch.items[first:]}


def publish(settings, found: dict[int, bytes]) -> None:
    sender = Sender(make_producer(settings, "test"))
    for candid, packet in found.items():
        sender.send(OutMessage(TOPIC, str(candid).encode(), packet))
    sender.flush()


def test_the_ten_lines_of_the_readme_miss_no_alert_when_killed_and_restarted(broker, script, tmp_path, prefix):
    settings = broker.signed_in(load_settings(environ={})).as_admin()
    file = load_topics()
    apply_topics(make_admin(settings), file, "laptop")
    access.apply_access(settings, file)
    log = tmp_path / "printed"

    def started() -> subprocess.Popen[bytes]:
        return spawn([sys.executable, str(script), settings.bootstrap, f"reader-{prefix}"], log=log)

    def printed() -> Counter[int]:
        return Counter(int(line) for line in log.read_text().split() if line.isdigit()) if log.exists() else Counter()

    everything = alerts(0, 60)
    early, late = dict(list(everything.items())[:40]), dict(list(everything.items())[40:])
    publish(settings, early)
    process = started()
    try:
        wait(lambda: sum(printed().values()) >= 10, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = printed()
        publish(settings, late)  # while it is away
        process = started()
        wait(lambda: everything.keys() <= printed().keys(), 90)
    finally:
        stop(process, 3.0)
    after = printed()
    again = [candid for candid in everything if after[candid] > 1]
    assert len(again) <= 1, "only the one between print and commit may come again"
    assert set(again) <= before.keys()
