"""Topics on a real broker."""

from __future__ import annotations

import json
import time

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from typer.testing import CliRunner

from stream.cli.topics import app
from stream.engine.kafka import make_admin
from stream.engine.topics import apply_topics, diff, ensure_night, load_topics

pytestmark = pytest.mark.services
RUN = CliRunner()


def test_apply_makes_the_broker_as_stated_and_drift_is_seen(settings, monkeypatch):
    admin = make_admin(settings)
    file = load_topics()
    first = apply_topics(admin, file, "laptop", ["20170101"])
    assert first.drift
    assert not apply_topics(admin, file, "laptop", ["20170101"]).drift

    entry = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, "ztf.streaks", incremental_configs=[entry])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    deadline = time.monotonic() + 10.0  # the broker's view follows its controller's
    while not (changes := diff(admin, file, "laptop")).drift and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [(c.topic, c.setting, c.is_now) for c in changes.configure] == [("ztf.streaks", "retention.ms", "60000")]

    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    told = RUN.invoke(app, ["diff", "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["configure"][0]["topic"] == "ztf.streaks"
    assert "retention.ms" in RUN.invoke(app, ["diff"]).stdout
    assert RUN.invoke(app, ["apply"]).exit_code == 0
    assert RUN.invoke(app, ["diff"]).exit_code == 0


def test_a_night_is_made_once_and_known_as_ours(settings):
    admin, file = make_admin(settings), load_topics()
    names = ensure_night(admin, file, "laptop", "20170102")
    assert names == tuple(f"ztf_20170102_programid{n}" for n in (1, 2, 3, 0))
    assert ensure_night(admin, file, "laptop", "20170102") == names
    changes = diff(admin, file, "laptop")
    assert not {c.topic for c in changes.configure} & set(names)
    assert not set(changes.unknown) & set(names)


def test_too_few_partitions_grow_and_too_many_are_reported(settings, prefix, tmp_path, make_topic):
    small, large = f"{prefix}.small", f"{prefix}.large"
    make_topic(small, 1)
    make_topic(large, 3)
    stated = """
profiles: {laptop: {replication: 1, min_insync: 1}, cluster: {replication: 3, min_insync: 2}}
topics:
"""
    for name in (small, large):
        stated += f"""
  - {{name: {name}, description: x, schema: x, key: x, partitions: 2, max_message_bytes: 2048, retention_hours: 1,
      retention_bytes: 1048576, segment_bytes: 1048576, writers: [a], readers: [b], access: internal}}
"""
    (tmp_path / "t.yaml").write_text(stated)
    file = load_topics(tmp_path / "t.yaml")
    changes = apply_topics(make_admin(settings), file, "laptop")
    assert changes.grow == ((small, 1, 2),)
    assert len(changes.stuck) == 1
    assert large in changes.stuck[0]
    left = diff(make_admin(settings), file, "laptop")
    assert (left.create, left.grow, left.configure) == ((), (), ())
    assert left.stuck == changes.stuck


def test_list_asks_no_broker():
    told = RUN.invoke(app, ["list", "--json", "--profile", "cluster", "--night", "20200101"])
    assert told.exit_code == 0, told.output
    rows = {row["name"]: row for row in json.loads(told.stdout)}
    assert rows["ztf.raw"]["partitions"] == 64
    assert rows["ztf_20200101_programid1"]["access"] == "public"
    assert "ztf.deadletters" in RUN.invoke(app, ["list"]).stdout
