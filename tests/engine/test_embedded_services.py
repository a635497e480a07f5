"""The embedded broker and Redis: state over restarts and crashes, and finding them from another terminal."""

from __future__ import annotations

import json
import os

import pytest

from stream.core.errors import StateUnavailable, UsageError
from stream.engine import jars
from stream.engine.config import load_settings
from stream.engine.embedded import Running, find_running, located, services
from stream.engine.embedded_kafka import EmbeddedKafka, write_secret
from stream.engine.embedded_redis import EmbeddedRedis
from stream.engine.kafka import OutMessage, Sender, make_admin, make_producer, read_to_end
from stream.engine.state import Attempts, Marks, connect
from stream.engine.topics import Changes, Topic, apply_changes


@pytest.mark.services
def test_topics_messages_address_and_lock_survive_a_crash(kafka, tmp_path):  # kafka: the jars are there
    broker = EmbeddedKafka(tmp_path).start()
    try:
        settings = broker.signed_in(load_settings(environ={})).as_admin()
        apply_changes(make_admin(settings), Changes(create=(Topic("t", 2, 1, {}),)))
        sender = Sender(make_producer(settings, "test"))
        sender.send(OutMessage("t", b"k", bytes(9_000_000)))
        sender.flush()
        with pytest.raises(UsageError, match="already running"):
            EmbeddedKafka(tmp_path).start()
        address = broker.bootstrap
        broker.kill()
        broker.start()
        assert broker.bootstrap == address
        (message,) = read_to_end(settings, {"t": {}}, "test")
        assert len(message.value) == 9_000_000
    finally:
        broker.stop()


@pytest.mark.services
def test_a_broker_that_cannot_start_says_why(kafka, tmp_path):
    folder = tmp_path / "kafka" / "data"
    folder.mkdir(parents=True)
    (folder / "meta.properties").write_text("version=1\ncluster.id=broken\nnode.id=7\n")
    with pytest.raises(UsageError, match="set up without users"):
        EmbeddedKafka(tmp_path).start()
    write_secret(folder.parent / "credentials.json", json.dumps({"admin": "a", "service": "s"}))
    with pytest.raises(UsageError, match=r"(?s)embedded Kafka stopped.*kafka\.log.*node id 7"):
        EmbeddedKafka(tmp_path).start()


@pytest.mark.services
def test_services_are_found_from_another_terminal_and_gone_after(kafka, redis_url, tmp_path):
    settings = load_settings(environ={}, data_dir=tmp_path, bootstrap=kafka)
    with services(settings) as mine:
        assert mine.bootstrap == kafka
        running = find_running(tmp_path)
        assert running.owner_pid == os.getpid()
        other = load_settings(environ={}, data_dir=tmp_path)
        assert located(other).redis_url == mine.redis_url
        with services(other) as theirs:  # a second command uses what is there and does not stop it
            assert theirs.redis_url == mine.redis_url
        assert connect(mine).ping()
    assert find_running(tmp_path) is None
    assert not (tmp_path / "running.json").exists()
    with pytest.raises(UsageError, match="ztf-stream run"):
        located(load_settings(environ={}, data_dir=tmp_path))
    both = load_settings(environ={}, data_dir=tmp_path, bootstrap=kafka, redis_url=redis_url)
    with services(both) as given:
        assert given is both
    assert not (tmp_path / "running.json").exists()


def test_a_stale_note_is_not_believed(tmp_path):
    note = tmp_path / "running.json"
    stale = Running("127.0.0.1:1", "redis://127.0.0.1:2/0", os.getpid(), os.getpid(), 0)
    note.write_text(json.dumps({name: getattr(stale, name) for name in Running.__slots__}))
    assert find_running(tmp_path) is None  # that process is no broker
    assert not note.exists()
    note.write_text("{")
    assert find_running(tmp_path) is None


@pytest.mark.services
def test_redis_keeps_what_it_confirmed_when_killed(tmp_path):
    server = EmbeddedRedis(tmp_path).start()
    try:
        url = server.url
        client = connect(load_settings(environ={}, redis_url=url))
        Marks(client, "p", 100).mark(["a", "b"], "done")
        with pytest.raises(UsageError, match="already running"):
            EmbeddedRedis(tmp_path).start()
        server.kill()
        with pytest.raises(StateUnavailable):
            Marks(client, "p", 100).known(["a"])
        server.start()
        assert server.url == url
        marks = Marks(client, "p", 100)
        assert marks.known(["a", "b", "c"]) == {"a", "b"}
        assert (marks.get("a"), marks.get("c")) == ("done", None)
        assert 0 < client.ttl("p:a") <= 100
        marks.mark([])
        assert marks.known([]) == set()
        attempts = Attempts(client)
        assert [attempts.begin("m"), attempts.begin("m")] == [1, 2]
        attempts.done("m")
        assert attempts.begin("m") == 1
    finally:
        server.stop()


def test_an_address_that_is_none_is_told():
    with pytest.raises(UsageError, match="ZTF_REDIS_URL"):
        connect(load_settings(environ={}))
    with pytest.raises(UsageError, match="ZTF_REDIS_URL"):
        connect(load_settings(environ={}, redis_url="host:6379"))


def test_jars_are_fetched_once_and_a_broken_cache_is_fetched_again(tmp_path, monkeypatch):
    fetched = []

    def fetch(folder):
        fetched.append(folder)
        (folder / "a.jar").write_bytes(b"jar")
        (folder / "classpath.json").write_text(json.dumps([{"path": "a.jar", "size": 3}]))

    monkeypatch.setattr(jars, "_fetch", fetch)
    (jar,) = jars.kafka_classpath(tmp_path)
    assert jars.kafka_classpath(tmp_path) == [jar]
    assert len(fetched) == 1
    jar.write_bytes(b"ja")  # cut short
    jars.kafka_classpath(tmp_path)
    assert len(fetched) == 2


def test_without_the_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    def fetch(folder):
        (folder / "half.jar").write_bytes(b"h")
        raise OSError("no route to host")

    monkeypatch.setattr(jars, "_fetch", fetch)
    with pytest.raises(UsageError, match=r"(?s)no route to host.*ZTF_BOOTSTRAP"):
        jars.kafka_classpath(tmp_path)
    assert not list(tmp_path.rglob("*.jar"))
