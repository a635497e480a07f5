"""Real users on a real broker: what the public, a partner and a stranger can do, and everything else they try."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, OffsetSpec, ResourceType
from engine_helpers import send, wait
from typer.testing import CliRunner

from stream.cli.topics import app as topics_app
from stream.cli.users import app as users_app
from stream.core.errors import UsageError
from stream.engine import access
from stream.engine.config import load_settings
from stream.engine.kafka import make_admin, make_consumer
from stream.engine.topics import apply_topics, load_topics

pytestmark = pytest.mark.services
RUN = CliRunner()
FILE = load_topics()
NIGHT = "20170301"
PUBLIC, PARTNERS, OBSERVATORY = (f"ztf_{NIGHT}_programid{n}" for n in (1, 2, 3))
PRIVATE = [PARTNERS, OBSERVATORY, "ztf.alerts.programid2", "ztf.raw", "ztf.users", "ztf.tracklets"]
NOWHERE = f"ztf_{NIGHT}_programid9"
FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}  # fmt: skip


def login(settings, user: str, password: str):
    from pydantic import SecretStr

    return settings.model_copy(
        update={"sasl_username": user, "sasl_password": SecretStr(password), "admin_username": "", "group_prefix": user}
    )


@pytest.fixture(scope="module")
def served(broker):
    """The session's broker with all topics, a night, users and rights; one message on the topics that are read."""
    settings = broker.signed_in(load_settings(environ={}, group_prefix="guarded", session_timeout_ms=6000)).as_admin()
    apply_topics(make_admin(settings), FILE, "laptop", [NIGHT])
    access.apply_access(settings, FILE)
    for topic in (PUBLIC, PARTNERS, OBSERVATORY):
        send(settings, topic, [topic])
    return settings


@pytest.fixture
def public(served):
    return login(served, "public", "ztf-public")


def code_of(call: Callable[[], object]) -> int:
    """The Kafka error that a call ends with."""
    try:
        found = call()
    except KafkaException as error:
        return int(error.args[0].code())
    pytest.fail(f"was not refused: {found}")


def read_one(settings, topic: str, group: str, seconds: float = 10.0) -> bytes | int:
    """First message of a topic as a member of a group, or the error's code."""
    conf = {**settings.kafka(), "group.id": group, "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer({**conf, "session.timeout.ms": 6000, "enable.auto.commit": False})
    consumer.subscribe([topic])
    try:
        message = consumer.poll(seconds)
        assert message is not None, "neither a message nor an error"
        return message.error().code() if message.error() else message.value()
    finally:
        consumer.close()


def groups_seen(settings) -> set[str]:
    """Names of the consumer groups that a user is shown."""
    admin = make_admin(settings)
    found = admin.list_consumer_groups(request_timeout=10).result(15)
    assert not found.errors, found.errors
    return {group.group_id for group in found.valid}


def look(settings, topic: str, how: str) -> object:
    """Ask for a topic's offsets, contents or configuration without any group."""
    consumer = Consumer({**settings.kafka(), "group.id": "looker", "log_level": 0})
    admin = make_admin(settings)
    place = TopicPartition(topic, 0, 0)
    try:
        if how == "watermarks":
            return consumer.get_watermark_offsets(place, timeout=10)
        if how == "times":
            (found,) = consumer.offsets_for_times([TopicPartition(topic, 0, 1)], timeout=10)
            if found.error:
                raise KafkaException(found.error)
            return found
        if how == "list offsets":
            return admin.list_offsets({place: OffsetSpec.earliest()})[place].result(10)
        if how == "configuration":
            resource = ConfigResource(ResourceType.TOPIC, topic)
            return admin.describe_configs([resource])[resource].result(10)
        raise AssertionError(how)
    finally:
        consumer.close()


@pytest.mark.parametrize("how", ["watermarks", "times", "list offsets", "configuration"])
def test_private_topics_are_refused_like_topics_that_do_not_exist(public, how):
    told = {topic: code_of(lambda topic=topic: look(public, topic, how)) for topic in (*PRIVATE, NOWHERE)}
    assert set(told.values()) == {told[NOWHERE]}, "a difference would tell which names exist"


@pytest.mark.parametrize("kind", ["offsets", "fetch"])
def test_a_client_that_asks_past_the_metadata_is_refused_too(public, kind):
    """The usual clients ask for a topic's leader first and give up there; the broker must refuse the request itself."""
    answers = asyncio.run(ask_directly(public, kind, [PUBLIC, *PRIVATE, NOWHERE]))
    assert answers.pop(PUBLIC) == 0
    assert set(answers.values()) == {KafkaError.TOPIC_AUTHORIZATION_FAILED}


async def ask_directly(settings, kind: str, topics: list[str]) -> dict[str, int]:
    """Error code by topic of a request for partition 0, without a look at the metadata before."""
    conf = settings.kafka()
    client = AIOKafkaClient(
        bootstrap_servers=conf["bootstrap.servers"], security_protocol=conf["security.protocol"],
        sasl_mechanism=conf["sasl.mechanism"], sasl_plain_username=conf["sasl.username"],
        sasl_plain_password=conf["sasl.password"],
    )  # fmt: skip
    await client.bootstrap()
    try:
        (node, *_) = [broker.nodeId for broker in client.cluster.brokers()]
        found = {}
        for topic in topics:
            if kind == "offsets":
                response = await client.send(node, OffsetRequest(-1, 0, [(topic, [(0, -2)])]))
            else:
                request = FetchRequest(100, 1, 1_000_000, 0, [(topic, [(0, 0, 1_000_000)])])
                response = await client.send(node, request)
            ((name, ((_, code, *_),)),) = response.topics
            found[name] = code
        return found
    finally:
        await client.close()


def test_the_public_sees_and_reads_the_public_topics_and_no_others(public, prefix):
    seen = set(make_admin(public).list_topics(timeout=10).topics)
    stated = {spec.name for spec in FILE.topics if spec.access == "public" and not spec.nightly}
    assert stated < seen
    assert PUBLIC in seen
    assert {FILE.spec_of(topic).access for topic in seen if FILE.spec_of(topic)} == {"public"}
    assert not seen & {*PRIVATE, "__consumer_offsets", "__transaction_state"}
    assert read_one(public, PUBLIC, f"reader-{prefix}") == PUBLIC.encode()
    assert read_one(public, f"^ztf_{NIGHT}.*", f"pattern-{prefix}") == PUBLIC.encode(), "a pattern shows no more"
    for topic in PRIVATE:
        assert read_one(public, topic, f"private-{prefix}") == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_our_groups_and_transactions_cannot_be_taken_over(served, public):
    internal = served.group("emit")
    ours = make_consumer(served, internal, "emit")
    try:
        ours.commit(offsets=[TopicPartition(PUBLIC, 0, 1)], asynchronous=False)
        assert read_one(public, PUBLIC, internal) == KafkaError.GROUP_AUTHORIZATION_FAILED
        admin, place = make_admin(public), TopicPartition(PUBLIC, 0, 0)
        asked, changed = ConsumerGroupTopicPartitions(internal), ConsumerGroupTopicPartitions(internal, [place])
        assert code_of(lambda: admin.list_consumer_group_offsets([asked])[internal].result(10)) in FORBIDDEN
        assert code_of(lambda: admin.alter_consumer_group_offsets([changed])[internal].result(10)) in FORBIDDEN
        assert ours.committed([place], timeout=10)[0].offset == 1
    finally:
        ours.close()
    assert code_of(lambda: admin.delete_consumer_groups([internal])[internal].result(10)) in FORBIDDEN
    seen = served.group("score")
    assert read_one(served, PUBLIC, seen) == PUBLIC.encode()
    assert seen in groups_seen(served)
    assert seen not in groups_seen(public)
    producer = Producer({**public.kafka(), "transactional.id": "guarded-pixels-test-0", "log_level": 0})
    assert code_of(lambda: producer.init_transactions(10)) in FORBIDDEN


def test_the_public_writes_and_changes_nothing(public):
    errors = []
    producer = Producer({**public.kafka(), "log_level": 0, "message.timeout.ms": 5000})
    for topic in (PUBLIC, "ztf.alerts.programid1", PARTNERS):
        producer.produce(topic, b"forged", on_delivery=lambda error, _: errors.append(error.code()))
    producer.flush(10)
    assert set(errors) == {KafkaError.TOPIC_AUTHORIZATION_FAILED}
    assert len(errors) == 3
    admin = make_admin(public)
    entry = ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, PUBLIC, incremental_configs=[entry])
    binding = access.AclBinding(
        access.ResourceType.TOPIC, "ztf", access.ResourcePatternType.PREFIXED, "User:public", "*",
        access.AclOperation.READ, access.AclPermissionType.ALLOW,
    )  # fmt: skip
    tries: list[Callable[[], object]] = [
        lambda: admin.create_topics([NewTopic("ztf_x_programid1", 1, 1)])["ztf_x_programid1"].result(10),
        lambda: admin.delete_topics([PUBLIC])[PUBLIC].result(10),
        lambda: next(iter(admin.delete_records([TopicPartition(PUBLIC, 0, 1)]).values())).result(10),
        lambda: admin.incremental_alter_configs([resource])[resource].result(10),
        lambda: raw_password(admin),
        lambda: next(iter(admin.create_acls([binding]).values())).result(10),
    ]
    for attempt in tries:
        assert code_of(attempt) in FORBIDDEN


def raw_password(admin):
    info = access.ScramCredentialInfo(access.ScramMechanism.SCRAM_SHA_512, 4096)
    change = access.UserScramCredentialUpsertion("public", info, b"mine now")
    return admin.alter_user_scram_credentials([change])["public"].result(10)


def test_a_partner_reads_its_program_under_its_own_groups_until_it_is_removed(served, public, prefix):
    user = "p" + prefix[-6:]
    access.add_user(served, FILE, user, "partnership", "a-password")
    partner = login(served, user, "a-password")
    assert read_one(partner, PARTNERS, f"{user}-1") == PARTNERS.encode()
    assert read_one(partner, PUBLIC, f"{user}-1") == PUBLIC.encode()
    assert read_one(partner, OBSERVATORY, f"{user}-1") == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert read_one(partner, PUBLIC, "anybody") == KafkaError.GROUP_AUTHORIZATION_FAILED
    assert read_one(public, PUBLIC, f"{user}-1") == KafkaError.GROUP_AUTHORIZATION_FAILED, "the public hijacks no group"
    admin = make_admin(public)
    assert code_of(lambda: admin.delete_consumer_groups([f"{user}-1"])[f"{user}-1"].result(10)) in FORBIDDEN
    rows = {row["user"]: row for row in access.describe(served, FILE)}
    assert (rows[user]["group"], rows[user]["stated"]) == ("partnership", "ztf.users")
    assert not access.diff_access(served, FILE).drift
    access.remove_user(served, FILE, user)
    assert user not in access.registered(served)
    wait(lambda: code_of(lambda: look(partner, PUBLIC, "watermarks")) not in FORBIDDEN)  # its password is no more


def test_nobody_gets_in_without_a_user(served):
    conf = {"bootstrap.servers": served.bootstrap, "log_level": 0, "group.id": "x"}
    for kind in ({}, {**served.kafka(), "sasl.password": "wrong"}):
        consumer = Consumer({**kind, **conf})
        assert code_of(lambda consumer=consumer: consumer.list_topics(timeout=3)) not in FORBIDDEN
        consumer.close()


def test_drift_of_rights_is_reported_and_mended_by_commands(served, monkeypatch):
    for name, value in served.environment().items():
        monkeypatch.setenv(name, value)
    leak = access.Grant("User:mallory", "topic", "ztf.alerts.programid2", "literal", "read")
    access.grant_and_revoke(make_admin(served), access.AccessChanges(grant=(leak,)))
    wait(lambda: leak in access.read_grants(make_admin(served)))
    told = RUN.invoke(topics_app, ["diff", "--json"])
    assert told.exit_code == 1
    assert [grant["principal"] for grant in json.loads(told.stdout)["access"]["revoke"]] == ["User:mallory"]
    assert "mallory" in RUN.invoke(topics_app, ["diff"]).stdout
    assert RUN.invoke(topics_app, ["apply"]).exit_code == 0
    assert RUN.invoke(topics_app, ["diff"]).exit_code == 0
    made = RUN.invoke(users_app, ["add", "fritz", "--group", "caltech", "--json"])
    assert made.exit_code == 0, made.output
    password = json.loads(made.stdout)["password"]
    assert read_one(login(served, "fritz", password), OBSERVATORY, "fritz") == OBSERVATORY.encode()
    assert "fritz" in RUN.invoke(users_app, ["list"]).stdout
    assert RUN.invoke(users_app, ["remove", "fritz"]).exit_code == 0
    assert "fritz" not in {row["user"] for row in json.loads(RUN.invoke(users_app, ["list", "--json"]).stdout)}


@pytest.mark.parametrize(
    ("name", "group", "said"),
    [
        ("Mallory", "public", "no user name"),
        ("mallory", "friends", "known are public"),
        ("public", "caltech", "topics.yaml"),
        ("public", "public", "of our own"),
    ],
)
def test_users_that_cannot_be(served, name, group, said):
    with pytest.raises(UsageError, match=said):
        access.add_user(served, FILE, name, group, "x")
    with pytest.raises(UsageError, match=r"no user|stated in topics\.yaml"):
        access.remove_user(served, FILE, name)
