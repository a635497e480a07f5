"""The watchdog: what hangs makes the process leave, what ends in time does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from stream.engine import watchdog
from stream.engine.watchdog import HUNG, Watchdog


def test_only_what_is_over_its_limit_makes_the_process_leave(monkeypatch):
    monkeypatch.setattr(watchdog, "MARGIN", 0.0)
    told: list[str] = []
    left = threading.Event()

    def leave(doing: str) -> None:
        told.append(doing)
        left.set()

    dog = Watchdog(leave)
    with dog.limit("quick", 30.0):
        pass
    assert not left.wait(1.2)
    with dog.limit("hanging", 0.1):
        assert left.wait(10.0)
    assert told == ["hanging"]


def test_a_process_that_hangs_ends_with_a_status_that_says_so():
    code = (
        "import time; from stream.engine import watchdog; watchdog.MARGIN = 0.0\n"
        "with watchdog.Watchdog(watchdog.leave).limit('waiting', 0.1): time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == HUNG
    assert b"waiting" in done.stdout + done.stderr
