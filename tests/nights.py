"""One simulated night, its store and a running system, shared by the end-to-end and command-line tests.

Everything is made through the commands that a person would use; what they said is kept, for the tests to judge.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stream.cli.main import run as run_command
from stream.core.camera import SMALL
from stream.core.errors import UsageError
from stream.engine.config import Settings, load_settings
from stream.engine.embedded import find_running, located
from stream.engine.gather import Gathered, NightReader
from stream.engine.processes import spawn, stop, tail
from stream.engine.state import connect
from stream.simulate import NightPlan, simulate_night

PLAN = NightPlan(seed=5, noise_seed=5, camera=SMALL, n_reference=6, n_science=2, satellite=False)
PATIENCE = 150.0  # seconds for what takes ten on a quiet machine


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    def rows(self) -> list[dict[str, Any]]:
        """Its standard output as JSON lines; every line has to be one."""
        return [json.loads(line, parse_constant=_strict) for line in self.out.splitlines()]

    def ok(self) -> Said:
        """Itself, if it ended well."""
        assert self.status == 0, self.err or self.out
        return self


def wait(until: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until it holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def _strict(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def ztf_stream(*args: object, **environment: str) -> Said:
    """``ztf-stream ARGS`` within this process, through its own entry point."""
    out, err = io.StringIO(), io.StringIO()
    argv, handlers = sys.argv, {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    before = dict(os.environ)
    sys.argv = ["ztf-stream", *map(str, args)]
    os.environ.update({"ZTF_CAMERA": "small", "COLUMNS": "200", **environment})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_command()
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Said(status, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Night:
    """A simulated night on disk, and the store in which its calibration, catalogues and references are."""

    folder: Path
    store: Path
    said: dict[str, Said] = field(default_factory=dict)

    @property
    def science(self) -> list[Path]:
        """Its science packets in time order."""
        return sorted((self.folder / "raw" / "sci").iterdir())

    def sibling(self, folder: Path, *shared: str) -> Path:
        """A new store that shares some folders (``catalogs``, ``cal``, ``ref``) with the night's."""
        folder.mkdir(parents=True)
        for name in shared:
            (folder / name).symlink_to(self.store / name, target_is_directory=True)
        return folder


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The night, its catalogues imported, calibration and references built: all by commands."""
    folder = tmp_path_factory.mktemp("night")
    night = Night(folder, folder / "store")
    simulate_night(folder, PLAN, workers=2)
    tables = {"gaia": "gaia.parquet", "ps1": "ps1.parquet", "bright": "bright.parquet", "orbits": "MPCORB.DAT"}
    where = "--store", night.store
    for kind, name in tables.items():
        night.said[kind] = ztf_stream("catalog", "import", kind, folder / name, *where, "--json").ok()
    raw = folder / "raw"
    night.said["calibration"] = ztf_stream("calibration", "build", raw / "cal", *where, "--json", "--workers", 1).ok()
    # One process: in a fresh checkout two would compile the same loops at the same time, longer than all else takes.
    night.said["reference"] = ztf_stream("reference", "build", raw / "ref", *where, "--json", "--workers", 1).ok()
    return night


@dataclass(frozen=True)
class Processed:
    """What ``process`` made of the night's science packets, without a broker."""

    store: Path
    lines: list[dict[str, Any]]


@pytest.fixture(scope="session")
def processed(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Processed:
    """The night's science packets through ``process``, into a store of its own."""
    store = night.sibling(tmp_path_factory.mktemp("offline") / "store", "catalogs", "cal", "ref")
    said = ztf_stream("process", *night.science, "--store", store, "--json", "--workers", 1).ok()
    return Processed(store, said.rows())


@dataclass
class System:
    """``ztf-stream run`` as a process of its own, and a subscriber that reads what it publishes."""

    settings: Settings
    night: Night
    process: subprocess.Popen[bytes]
    log: Path
    reader: NightReader

    @property
    def environment(self) -> dict[str, str]:
        """What makes commands talk to this system."""
        return self.settings.environment()

    def call(self, *args: object) -> Said:
        """A command on this system."""
        return ztf_stream(*args, **self.environment)

    @property
    def gathered(self) -> Gathered:
        """What the subscriber has read."""
        return self.reader.gathered

    def until(self, what: str, enough: Callable[[Gathered], bool], seconds: float = PATIENCE) -> None:
        """Read until it holds; fails with the workers' last words otherwise."""
        if not self.reader.until(enough, seconds):
            logs = sorted((self.settings.data_dir / "logs").glob("*.log"))
            words = "\n".join(f"-- {log.name}: {tail(log, 3)}" for log in [self.log, *logs])
            raise AssertionError(f"{what}: not within {seconds:.0f} s; the workers said\n{words}")

    def settled(self) -> None:
        """Read until every announced alert is there, and then whatever else comes in a second."""
        self.until("all announced alerts", lambda g: g.n_alerts >= g.n_expected)
        while self.reader.poll(1.0):
            pass


@pytest.fixture(scope="session")
def system(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A whole running system on a broker, a Redis and a store of its own."""
    folder = tmp_path_factory.mktemp("system")
    store = night.sibling(folder / "store", "cal")
    for name in ("catalogs", "ref"):  # copies: tests add to them
        subprocess.run(["cp", "-r", str(night.store / name), str(store / name)], check=True)
    settings = load_settings(
        environ={}, data_dir=folder, store=str(store), camera="small", pixel_workers=2, log_format="json"
    )
    log = folder / "run.log"
    process = spawn([sys.executable, "-m", "stream.cli", "run"], log=log, env=settings.environment())
    try:
        here = _wait_for(settings, process, log)
        with NightReader(here, read_committed=False) as reader:
            yield System(here, night, process, log, reader)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, tail(log)
        assert find_running(folder) is None
    finally:
        stop(process, 5.0)


def _wait_for(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> Settings:
    """The settings with the addresses of the system, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        words = tail(log, 50)
        if process.poll() is not None:
            if "could not be fetched" in words:
                pytest.skip(words)
            break
        if "store" in words:  # said when topics are applied and the workers about to start
            with contextlib.suppress(UsageError):
                here = located(settings)
                connect(here).ping()
                return here
        time.sleep(0.2)
    raise AssertionError(f"the system did not start: {tail(log)}")
