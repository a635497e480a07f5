"""The services a command needs, wherever they are: one's own by address, a running embedded pair, or a new one.

``running.json`` in the data folder tells other terminals (``alerts tail``, ``status``) where the embedded broker and
Redis answer, who runs them, and in which file (readable by its owner alone) the broker's passwords are; a file left by
a crash is recognised and not believed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from stream.core.errors import UsageError
from stream.engine import processes
from stream.engine.config import Settings
from stream.engine.embedded_kafka import EmbeddedKafka, Logins
from stream.engine.embedded_redis import EmbeddedRedis

__all__ = ["EmbeddedKafka", "EmbeddedRedis", "Running", "broker_of", "find_running", "located", "services"]


@dataclass(frozen=True, slots=True)
class Running:
    """Content of ``running.json``: where the embedded services answer and which processes they are."""

    bootstrap: str
    redis_url: str
    owner_pid: int
    kafka_pid: int
    redis_pid: int
    credentials: str = ""  # file with the passwords of the embedded broker


def _file(data_dir: Path) -> Path:
    return data_dir.expanduser() / "running.json"


def find_running(data_dir: Path) -> Running | None:
    """The embedded services that run on this folder now, or ``None``; a stale file is removed."""
    path = _file(data_dir)
    try:
        running = Running(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    folder = str(data_dir.expanduser().resolve() / "kafka")
    kafka = not running.kafka_pid or processes.alive(running.kafka_pid, folder)
    redis = not running.redis_pid or processes.alive(running.redis_pid, "redis-server")
    if kafka and redis:
        return running
    path.unlink(missing_ok=True)
    return None


def located(settings: Settings) -> Settings:
    """The settings with ``bootstrap`` and ``redis_url`` filled from ``running.json`` where they are empty.

    Raises
    ------
    UsageError
        One is empty and no embedded system runs in ``data_dir``.
    """
    running = find_running(settings.data_dir)
    if settings.bootstrap and settings.redis_url:
        return _signed_in(settings, running)
    if running is None or not (settings.bootstrap or running.bootstrap):
        missing = "ZTF_REDIS_URL" if settings.bootstrap else "ZTF_BOOTSTRAP"
        raise UsageError(
            f"nothing is running in {settings.data_dir}: start it with 'ztf-stream run' (same ZTF_DATA_DIR), or set "
            f"{missing} to a server of your own"
        )
    found = settings.model_copy(
        update={
            "bootstrap": settings.bootstrap or running.bootstrap,
            "redis_url": settings.redis_url or running.redis_url,
        }
    )
    return _signed_in(found, running)


def _signed_in(settings: Settings, running: Running | None) -> Settings:
    """The settings with the embedded broker's users, if it is that broker that they name."""
    if running is None or not running.credentials or settings.bootstrap != running.bootstrap:
        return settings
    logins = Logins.read(Path(running.credentials))
    return settings if logins is None else logins.into(settings)


def broker_of(settings: Settings) -> Settings:
    """The settings with the broker filled in, without asking for a Redis: for commands that speak to Kafka alone."""
    running = find_running(settings.data_dir)
    if not settings.bootstrap:
        if running is None or not running.bootstrap:
            raise UsageError(
                f"nothing is running in {settings.data_dir}: start it with 'ztf-stream run', or set ZTF_BOOTSTRAP"
            )
        settings = settings.model_copy(update={"bootstrap": running.bootstrap})
    return _signed_in(settings, running)


@contextmanager
def services(settings: Settings) -> Iterator[Settings]:
    """Broker and Redis for the length of the block, as settings with both addresses filled in.

    An address that is given is used as it is. Where one is empty, a system that already runs in ``data_dir`` is
    used and left running; otherwise the embedded servers are started, announced in ``running.json``, and stopped
    at the end.
    """
    if settings.bootstrap and settings.redis_url:
        yield settings
        return
    if find_running(settings.data_dir) is not None:
        yield located(settings)
        return
    with ExitStack() as stack:
        redis = None if settings.redis_url else stack.enter_context(EmbeddedRedis(settings.data_dir))
        kafka = None
        if not settings.bootstrap:
            kafka = stack.enter_context(EmbeddedKafka(settings.data_dir, cache_dir=settings.cache_dir))
        running = Running(
            bootstrap=kafka.bootstrap if kafka else settings.bootstrap,
            redis_url=redis.url if redis else settings.redis_url,
            owner_pid=os.getpid(),
            kafka_pid=kafka.pid or 0 if kafka else 0,
            redis_pid=redis.pid or 0 if redis else 0,
            credentials=str(kafka.credentials) if kafka else "",
        )
        path = _file(settings.data_dir)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(running), indent=1))
        scratch.replace(path)
        stack.callback(path.unlink, missing_ok=True)
        found = settings.model_copy(update={"bootstrap": running.bootstrap, "redis_url": running.redis_url})
        yield kafka.signed_in(found) if kafka else found
