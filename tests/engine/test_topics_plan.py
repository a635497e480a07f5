"""topics.yaml: what is accepted, and the plan from a broker's state to it (no broker)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import UsageError
from stream.core.identity import alert_topic_of, jd_of
from stream.engine.topics import Topic, desired_topics, load_topics, plan

FILE = load_topics()
NAMES = {spec.name for spec in FILE.topics}


def test_the_shipped_file_holds_the_systems_topics():
    assert {
        "ztf.raw", "ztf.candidates", "ztf.scored", "ztf.enriched", "ztf.streaks", "ztf.quadrants", "ztf.tracklets",
        "ztf.deadletters", "ztf_{night}_programid1", "ztf_{night}_programid2", "ztf_{night}_programid3",
    } <= NAMES  # fmt: skip
    raw = FILE.spec_of("ztf.raw")
    assert raw.partitions == 64
    assert raw.key == "rcid"
    assert raw.max_message_bytes > 2 * 3080 * (3072 + 30) + 100_000, "a quadrant of a plain .fits has to fit"


def test_only_public_alerts_match_what_brokers_subscribe_to():
    for topic in desired_topics(FILE, "cluster", ["20181129"]):
        spec = FILE.spec_of(topic.name)
        matches = bool(re.match(r"^ztf_.*_programid1$", topic.name))
        assert matches == (spec.access == "public" and spec.nightly)


def test_names_of_alert_topics_agree_with_identity():
    import datetime as dt

    jd = jd_of(dt.datetime(2018, 11, 29, 6, tzinfo=dt.UTC))
    for programid in (0, 1, 2, 3):
        assert FILE.spec_of(alert_topic_of(jd, programid)).schema_name == "alert"


def test_a_laptop_is_bounded_in_bytes_a_cluster_in_time():
    for topic in desired_topics(FILE, "laptop", ["20181129"]):
        assert 0 < int(topic.config["retention.bytes"]) < 2**30
        assert topic.replication == 1
    for topic in desired_topics(FILE, "cluster", ["20181129"]):
        assert topic.config["retention.bytes"] == "-1"
        assert int(topic.config["retention.ms"]) > 0
        assert (topic.replication, topic.config["min.insync.replicas"]) == (3, "2")
    total = sum(
        t.partitions * (int(t.config["retention.bytes"]) + int(t.config["segment.bytes"]))
        for t in desired_topics(FILE, "laptop", ["20181129", "20181130"])
    )
    assert total < 40e9, "two nights have to fit on a laptop's disk"


def _broken(tmp_path, **changes):
    content = yaml.safe_load(load_path().read_text())
    content["topics"][0].update(changes)
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def load_path():
    from pathlib import Path

    import stream

    return Path(stream.__file__).parents[1] / "topics.yaml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "ztf_raw_programid1"}, "only they"),
        ({"name": "ztf.scored"}, "stated twice"),
        ({"partitons": 3}, "partitons"),
        ({"retention_bytes": -1}, "bounded"),
        ({"segment_bytes": 1024}, "largest message"),
        ({"partitions": {"laptop": 0, "cluster": 1}}, "at least one"),
        ({"access": "public", "schema": "alert", "name": "ztf_{night}_programid4"}, "only they"),
        ({"writers": []}, "writers"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        load_topics(_broken(tmp_path, **changes))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        load_topics(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("topics: [")
    with pytest.raises(UsageError, match="not YAML"):
        load_topics(tmp_path / "bad.yaml")


@pytest.mark.parametrize("night", ["2018112", "201811290", "2018-11-29", "", None])
def test_a_nightly_topic_needs_a_night(night):
    spec = FILE.spec_of("ztf_20181129_programid2")
    with pytest.raises(UsageError, match="YYYYMMDD"):
        spec.topic(night)


CONFIGS = st.fixed_dictionaries(
    {"retention.ms": st.sampled_from(["1", "2"]), "segment.bytes": st.sampled_from(["10", "20"])}
)
TOPICS = st.lists(
    st.builds(Topic, st.sampled_from("abcdef"), st.integers(1, 4), st.integers(1, 2), CONFIGS),
    unique_by=lambda topic: topic.name,
)


@given(TOPICS, TOPICS)
def test_carrying_out_a_plan_leaves_only_what_is_stuck(desired, actual):
    changes = plan(desired, actual)
    after = {topic.name: topic for topic in actual}
    for topic in changes.create:
        assert topic.name not in after
        after[topic.name] = topic
    for name, now, wanted in changes.grow:
        assert after[name].partitions == now < wanted
        after[name] = replace(after[name], partitions=wanted)
    for change in changes.configure:
        config = {**after[change.topic].config, change.setting: change.should_be}
        after[change.topic] = replace(after[change.topic], config=config)
    again = plan(desired, after.values())
    assert (again.create, again.grow, again.configure) == ((), (), ())
    assert again.stuck == changes.stuck
    assert set(changes.unknown) == {t.name for t in actual} - {t.name for t in desired}


def test_no_drift_when_equal_and_foreign_topics_do_not_count():
    desired = desired_topics(FILE, "laptop")
    foreign = Topic("somebody.elses", 1, 1, {})
    table = Topic("ztf-score-objects-changelog", 1, 1, {})
    changes = plan(desired, [*desired, foreign, table])
    assert not changes.drift
    assert changes.unknown == ("somebody.elses",)


def test_existing_nights_are_held_to_the_file_too():
    names = {t.name for t in desired_topics(FILE, "laptop", [], ["ztf_20180601_programid1", "ztf.other"])}
    assert "ztf_20180601_programid1" in names
    assert "ztf_20180601_programid2" not in names
