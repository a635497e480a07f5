"""Logs: one event a line, JSON for machines or coloured for a terminal, with the quadrant it concerns bound to it.

Levels: ``error`` somebody must act, ``warning`` handled but worth counting (dead letter, retry), ``info`` one line a
quadrant or batch, ``debug`` everything else. An error is logged where it is handled, nowhere else.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import structlog

from stream.engine.config import Settings
from stream.engine.kafka import RawMessage

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Patient:
    """Today's stderr, whose failures (a full disk) are nobody's death: the line is lost, the work goes on."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            sys.stderr.flush()


def configure(settings: Settings, worker: str = "") -> None:
    """Set up logging of this process, to stderr; ``worker`` is bound to every line."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    level = _LEVELS[settings.log_level]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        last: list[Any] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Patient())),
        cache_logger_on_first_use=False,
    )
    # Libraries speak through the standard module; their chatter below warning helps nobody.
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, force=True)
    structlog.contextvars.clear_contextvars()
    if worker:
        structlog.contextvars.bind_contextvars(worker=worker)


def get_logger() -> Any:
    """The logger; call its ``info("event", key=value)``."""
    return structlog.get_logger()


@contextmanager
def about(message: RawMessage) -> Iterator[None]:
    """Bind where a message came from and which quadrant it is about to every line logged inside."""
    context: dict[str, Any] = {"at": f"{message.topic}[{message.partition}]@{message.offset}"}
    for name in ("name", "pid"):
        value = message.header(name)
        if value is not None:
            context["quadrant" if name == "name" else name] = value
    with structlog.contextvars.bound_contextvars(**context):
        yield
