"""Fixtures of the engine's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_helpers import SCRIPT

from stream.engine.config import Settings
from stream.engine.processes import spawn, stop


@pytest.fixture
def launch(settings: Settings, tmp_path: Path):
    """Starts worker processes of the script; all are gone at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        kind: str, source: str, target: str, step: str = "", number: int = 1, *, mine: Settings | None = None
    ) -> subprocess.Popen[bytes]:
        process = spawn(
            [sys.executable, SCRIPT, kind, source, target, step, str(number)],
            env=(mine or settings).environment(),
            log=tmp_path / "worker.log",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        stop(process, 5.0)
