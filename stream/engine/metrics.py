"""Prometheus metrics of every process, by one set of names, and the HTTP endpoint that shows them."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from stream.core.errors import UsageError
from stream.engine import ledger
from stream.engine.config import Settings

# From a quick step to a night's delay: the target is a median of 15 s and 95 % within 60 s.
_LATENCY_BUCKETS = (1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 600, 1800, 3600, 14400)
_WORK_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 8, 15, 30, 60)

MESSAGES = Counter("ztf_messages", "Messages dealt with, by how it ended.", ["worker", "outcome"])
WORK = Histogram("ztf_work_seconds", "Seconds spent on one message.", ["worker"], buckets=_WORK_BUCKETS)
LATENCY = Histogram(
    "ztf_latency_seconds", "Seconds from shutter close to a stage.", ["stage"], buckets=_LATENCY_BUCKETS
)
RETRIES = Counter("ztf_retries", "Work put back because a service failed.", ["worker", "error"])
DEADLETTERS = Counter("ztf_deadletters", "Messages and files given up, by stage and error.", ["stage", "error"])
ALERTS = Counter("ztf_alerts", "Alerts published.", ["topic"])
ALERTS_SKIPPED = Counter("ztf_alerts_skipped", "Alerts not published again, by how that was known.", ["why"])
ALERTS_HELD = Counter("ztf_alerts_held", "Candidates whose quadrant's alerts left under other version digits.")
FILES = Counter("ztf_files", "Packet files met by ingest, by how it ended.", ["outcome"])
BACKLOG = Gauge("ztf_raw_backlog", "Most unprocessed quadrants in one partition of ztf.raw, as ingest saw it.")


def observe(stage: str, times: Mapping[str, float]) -> None:
    """Put a ledger's latency of one stage into the histogram (nothing where the ledger lacks it)."""
    seconds = ledger.seconds_between(times, "shutter_closed", stage)
    if seconds is not None:
        LATENCY.labels(stage).observe(max(seconds, 0.0))


def serve(settings: Settings) -> int | None:
    """Answer Prometheus on the configured port; returns the port (a free one for 0), ``None`` when switched off."""
    port = settings.metrics_port
    if port < 0:
        return None
    if port == 0:
        with socket.socket() as probe:
            probe.bind((settings.metrics_host, 0))
            port = probe.getsockname()[1]
    try:
        start_http_server(port, settings.metrics_host)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {settings.metrics_host}:{port}: {error}. ZTF_METRICS_PORT=0 takes a free one"
        ) from None
    return port
