"""Heartbeats, metrics and logs."""

from __future__ import annotations

import contextlib
import io
import json
import urllib.request

import pytest
import redis
import structlog

from stream.core.errors import StateUnavailable, UsageError
from stream.engine import logs, metrics
from stream.engine.config import load_settings
from stream.engine.heartbeat import TTL, Heartbeat, living
from stream.engine.kafka import RawMessage
from stream.engine.state import connect


@pytest.mark.services
def test_the_living_are_seen_with_what_they_do_and_the_gone_are_not(redis_url, prefix):
    client = connect(load_settings(environ={}, redis_url=redis_url))
    now = iter(range(100, 200))
    with Heartbeat(client, prefix, "pixels", clock=lambda: float(next(now)), metrics_port=9) as heartbeat:
        heartbeat.note("ztf_q1", done=2)
        heartbeat.note("waiting", done=1)
        assert heartbeat.beat()
        (sign,) = [s for s in living(client) if s["name"] == prefix]
        assert (sign["role"], sign["doing"], sign["done"], sign["metrics_port"]) == ("pixels", "waiting", 3, 9)
        assert sign["started"] < sign["since"] < sign["seen"]
        assert 0 < client.ttl(f"alive:{prefix}") <= TTL
    assert prefix not in [s["name"] for s in living(client)]


def test_redis_away_is_no_reason_to_stop():
    client = redis.Redis.from_url("redis://127.0.0.1:1/0")
    with Heartbeat(client, "x", "pixels") as heartbeat:
        assert not heartbeat.beat()
    with pytest.raises(StateUnavailable):
        living(client)


def test_metrics_are_served_and_a_taken_port_is_told():
    off = load_settings(environ={}, metrics_port=-1)
    assert metrics.serve(off) is None
    port = metrics.serve(load_settings(environ={}, metrics_port=0))
    metrics.observe("published", {"shutter_closed": 100.0, "published": 115.0})
    metrics.observe("published", {"published": 115.0})  # nothing to measure from
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert 'ztf_latency_seconds_bucket{le="15.0",stage="published"} 1.0' in text
    assert 'ztf_latency_seconds_count{stage="published"} 1.0' in text
    with pytest.raises(UsageError, match=str(port)):
        metrics.serve(load_settings(environ={}, metrics_port=port))


@pytest.fixture
def restored():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.usefixtures("restored")
def test_a_line_of_log_says_which_quadrant(capsys):
    logs.configure(load_settings(environ={}, log_format="json"), "worker-3")
    log = logs.get_logger()
    message = RawMessage("ztf.raw", 5, 77, None, b"", (("name", b"ztf_q1"), ("pid", b"12")))
    with logs.about(message):
        log.info("done", seconds=1.5)
    log.debug("not shown")
    log.warning("after")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["quadrant"] == "ztf_q1"
    assert (first["pid"], first["at"], first["worker"], first["seconds"]) == ("12", "ztf.raw[5]@77", "worker-3", 1.5)
    assert (second["level"], second["event"]) == ("warning", "after")
    assert "quadrant" not in second


@pytest.mark.usefixtures("restored")
def test_on_a_console_logs_are_for_people(capsys):
    logs.configure(load_settings(environ={}, log_format="console", log_level="debug"))
    logs.get_logger().debug("hello", file="a.fits")
    line = capsys.readouterr().err
    assert "hello" in line
    assert "a.fits" in line
    assert not line.startswith("{")


def test_logs_follow_stderr_where_it_goes():
    """A command called within another program finds another stderr each time, and the last one may be closed."""
    first, second = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(first):
        logs.configure(load_settings(environ={}, log_format="json"))
    first.close()
    with contextlib.redirect_stderr(second):
        structlog.get_logger().warning("told")
    assert json.loads(second.getvalue())["event"] == "told"
