"""Topics: ``topics.yaml`` read and checked, compared with a broker, and applied to it.

Deciding and acting are apart: :func:`plan` is a pure function from what should be and what is to a list of changes;
:func:`apply_topics` carries changes out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import stream
from stream.core.errors import UsageError
from stream.engine.kafka import translated

Profile = Literal["laptop", "cluster"]
PROFILES: tuple[Profile, ...] = ("laptop", "cluster")
PUBLIC_ALERTS = re.compile(r"^ztf_.*_programid1$")  # what community brokers subscribe to, consumers.md 23
NIGHT = re.compile(r"[0-9]{8}")
SERVICES = "services"  # the group of our own processes
_ADMIN_TIMEOUT = 30.0

PerProfile = int | dict[Profile, int]


class ProfileSpec(BaseModel):
    """What holds for every topic of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replication: int = Field(ge=1)
    min_insync: int = Field(ge=1)


class GroupSpec(BaseModel):
    """One group of users."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str


class UserSpec(BaseModel):
    """A user that comes with the system; with a password only where everybody may know it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    password: str = ""


class TopicSpec(BaseModel):
    """One topic, or one nightly family of topics, as ``topics.yaml`` states it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]*(\{night\})?[A-Za-z0-9._-]*$")
    description: str
    schema_name: str = Field(alias="schema")
    key: str
    partitions: PerProfile
    max_message_bytes: int = Field(ge=1024)
    retention_hours: PerProfile
    retention_bytes: PerProfile
    segment_bytes: PerProfile
    cleanup: Literal["delete", "compact", "compact,delete"] = "delete"
    writers: tuple[str, ...] = Field(min_length=1)
    readers: tuple[str, ...] = Field(min_length=1)
    access: Literal["public", "private", "internal"]
    groups: tuple[str, ...] = ()

    @property
    def nightly(self) -> bool:
        """Whether the name stands for one topic a night."""
        return "{night}" in self.name

    @property
    def carries_alerts(self) -> bool:
        """Whether the emitter writes alerts here, each once."""
        return "emit" in self.writers and self.key in ("candid", "objectId")

    def topic(self, night: str | None = None) -> str:
        """The topic's name; a nightly one needs its ``YYYYMMDD``."""
        if not self.nightly:
            return self.name
        if night is None or not NIGHT.fullmatch(night):
            raise UsageError(f"{self.name} needs a night as YYYYMMDD, not {night!r}")
        return self.name.replace("{night}", night)

    def matches(self, topic: str) -> bool:
        """Whether ``topic`` is this topic or one of this family."""
        pattern = re.escape(self.name).replace(re.escape("{night}"), NIGHT.pattern)
        return re.fullmatch(pattern, topic) is not None

    @model_validator(mode="after")
    def _sound(self) -> TopicSpec:
        public_name = PUBLIC_ALERTS.match(self.name.replace("{night}", "20180101")) is not None
        if public_name != (self.access == "public" and self.schema_name == "alert" and self.nightly):
            raise ValueError(
                f"{self.name}: nightly topics of public alerts, and only they, are named ztf_..._programid1 "
                "(brokers subscribe to that pattern: another topic there would give them every alert twice)"
            )
        if bool(self.groups) != (self.access == "private"):
            raise ValueError(f"{self.name}: a private topic, and no other, names the groups that may read it")
        for profile in PROFILES:
            if _value(self.partitions, profile) < 1:
                raise ValueError(f"{self.name}: needs at least one partition")
            if profile == "laptop" and _value(self.retention_bytes, profile) <= 0:
                raise ValueError(f"{self.name}: a laptop's topic must be bounded by retention_bytes")
            if _value(self.segment_bytes, profile) < self.max_message_bytes:
                raise ValueError(f"{self.name}: a segment must hold the largest message")
        return self


def literal_prefix(name: str) -> str:
    """What the names of a nightly family begin with."""
    return name.partition("{night}")[0]


def _value(number: PerProfile, profile: Profile) -> int:
    return number if isinstance(number, int) else number[profile]


class TopicsFile(BaseModel):
    """All of ``topics.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profiles: dict[Profile, ProfileSpec]
    groups: dict[str, GroupSpec] = Field(default_factory=dict)
    users: dict[str, UserSpec] = Field(default_factory=dict)
    topics: tuple[TopicSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> TopicsFile:
        names = [spec.name for spec in self.topics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"topics stated twice: {', '.join(twice)}")
        if set(self.profiles) != set(PROFILES):
            raise ValueError(f"profiles must be exactly {', '.join(PROFILES)}")
        named = {group for spec in self.topics for group in spec.groups} | {user.group for user in self.users.values()}
        unknown = sorted(named - set(self.groups))
        if unknown:
            raise ValueError(f"groups that are not stated: {', '.join(unknown)}")
        for name, user in self.users.items():
            if user.password and user.group != "public":
                raise ValueError(f"{name}: only a public user's password may stand in this file")
        return self

    def spec_of(self, topic: str) -> TopicSpec | None:
        """The entry that ``topic`` (a real name) belongs to."""
        return next((spec for spec in self.topics if spec.matches(topic)), None)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be, or is, on a broker. ``config`` holds the settings that we manage, as text."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One setting of one topic that differs."""

    topic: str
    setting: str
    is_now: str
    should_be: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What lies between a broker and ``topics.yaml``.

    ``create``, ``grow`` (topic, partitions now, partitions wanted) and ``configure`` can be applied; ``stuck`` says in
    words what only a person can change (fewer partitions, another replication), ``unknown`` names topics that no
    entry covers (Faust's own tables and Kafka's internal topics left out).
    """

    create: tuple[Topic, ...] = ()
    grow: tuple[tuple[str, int, int], ...] = ()
    configure: tuple[ConfigChange, ...] = ()
    stuck: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def drift(self) -> bool:
        """Whether the broker differs from the file (unknown topics of other people do not count)."""
        return bool(self.create or self.grow or self.configure or self.stuck)


def load_topics(path: str | Path = "") -> TopicsFile:
    """Read and check a topics file; without a path the one that ships with the package."""
    file = Path(path) if path else Path(stream.__file__).parents[1] / "topics.yaml"
    try:
        return TopicsFile.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise UsageError(f"the topics file {file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {error}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(str(p) for p in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise UsageError(f"{file}: " + "; ".join(lines)) from None


def desired_topic(file: TopicsFile, spec: TopicSpec, profile: Profile, night: str | None = None) -> Topic:
    """The topic that ``spec`` asks for on a broker of that profile."""
    return Topic(
        name=spec.topic(night),
        partitions=_value(spec.partitions, profile),
        replication=file.profiles[profile].replication,
        config={
            "cleanup.policy": spec.cleanup,
            "max.message.bytes": str(spec.max_message_bytes),
            "min.insync.replicas": str(file.profiles[profile].min_insync),
            "retention.bytes": str(_value(spec.retention_bytes, profile)),
            "retention.ms": str(_value(spec.retention_hours, profile) * 3_600_000),
            "segment.bytes": str(_value(spec.segment_bytes, profile)),
        },
    )


def desired_topics(
    file: TopicsFile, profile: Profile, nights: Iterable[str] = (), existing: Iterable[str] = ()
) -> list[Topic]:
    """Every topic that should be there: the permanent ones, those of ``nights``, and nightly ones that ``exist``."""
    topics = [desired_topic(file, spec, profile) for spec in file.topics if not spec.nightly]
    wanted = {(spec.name, night) for spec in file.topics if spec.nightly for night in nights}
    for name in existing:
        spec = file.spec_of(name)
        night = NIGHT.search(name)
        if spec is not None and spec.nightly and night:
            wanted.add((spec.name, night.group()))
    by_name = {spec.name: spec for spec in file.topics}
    topics += [desired_topic(file, by_name[name], profile, night) for name, night in sorted(wanted)]
    return topics


def plan(desired: Iterable[Topic], actual: Iterable[Topic]) -> Changes:
    """What has to change for ``actual`` to become ``desired``. Pure; both in any order, the answer sorted."""
    have = {topic.name: topic for topic in actual}
    want = {topic.name: topic for topic in desired}
    create, grow, configure, stuck = [], [], [], []
    for name in sorted(want):
        target = want[name]
        now = have.get(name)
        if now is None:
            create.append(target)
            continue
        if now.partitions < target.partitions:
            grow.append((name, now.partitions, target.partitions))
        elif now.partitions > target.partitions:
            stuck.append(f"{name} has {now.partitions} partitions, {target.partitions} wanted: Kafka cannot shrink it")
        if now.replication != target.replication:
            stuck.append(f"{name} has replication {now.replication}, {target.replication} wanted: reassign it")
        for setting in sorted(target.config):
            is_now, should_be = now.config.get(setting, ""), target.config[setting]
            if is_now != should_be:
                configure.append(ConfigChange(name, setting, is_now, should_be))
    unknown = [name for name in sorted(have) if name not in want and not _internal(name)]
    return Changes(tuple(create), tuple(grow), tuple(configure), tuple(stuck), tuple(unknown))


def _internal(name: str) -> bool:
    """Kafka's own topics and those that Faust makes for its tables, leader and assignor."""
    return name.startswith("__") or name.endswith(("-changelog", "__assignor-__leader", "-repartition"))


def read_topics(admin: AdminClient, names: Iterable[str] | None = None) -> list[Topic]:
    """The topics on a broker with the settings that we manage; all of them, or those of ``names`` that exist."""
    with translated("reading the topics"):
        metadata = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        chosen = sorted(metadata if names is None else set(names) & set(metadata))
        chosen = [name for name in chosen if not name.startswith("__")]
        if not chosen:
            return []
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in chosen]
        answers = admin.describe_configs(resources, request_timeout=_ADMIN_TIMEOUT)
        configs = {resource.name: future.result(_ADMIN_TIMEOUT) for resource, future in answers.items()}
    topics = []
    for name in chosen:
        partitions = metadata[name].partitions
        config = {key: str(entry.value) for key, entry in configs[name].items() if key in _MANAGED}
        replication = min((len(p.replicas) for p in partitions.values()), default=0)
        topics.append(Topic(name, len(partitions), replication, config))
    return topics


_MANAGED = frozenset(
    ("cleanup.policy", "max.message.bytes", "min.insync.replicas", "retention.bytes", "retention.ms", "segment.bytes")
)


def diff(admin: AdminClient, file: TopicsFile, profile: Profile, nights: Iterable[str] = ()) -> Changes:
    """What lies between this broker and the file."""
    actual = read_topics(admin)
    return plan(desired_topics(file, profile, nights, [topic.name for topic in actual]), actual)


def _settle(futures: Mapping[Any, Any], what: str) -> None:
    """Wait for an admin request's futures; a topic that somebody else made meanwhile is no error."""
    with translated(what):
        for future in futures.values():
            try:
                future.result(_ADMIN_TIMEOUT)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise


def apply_changes(admin: AdminClient, changes: Changes) -> None:
    """Carry out what can be carried out; does not touch what is ``stuck`` or ``unknown``."""
    if changes.create:
        new = [
            NewTopic(t.name, num_partitions=t.partitions, replication_factor=t.replication, config=dict(t.config))
            for t in changes.create
        ]
        _settle(admin.create_topics(new, operation_timeout=_ADMIN_TIMEOUT), "creating topics")
    if changes.grow:
        _settle(
            admin.create_partitions([NewPartitions(name, total) for name, _, total in changes.grow]),
            "adding partitions",
        )
    resources: dict[str, list[ConfigEntry]] = {}
    for change in changes.configure:
        entry = ConfigEntry(change.setting, change.should_be, incremental_operation=AlterConfigOpType.SET)
        resources.setdefault(change.topic, []).append(entry)
    if resources:
        altered = [
            ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name, entries in resources.items()
        ]
        _settle(admin.incremental_alter_configs(altered), "changing topic settings")
    _await_visible(admin, changes)


def _await_visible(admin: AdminClient, changes: Changes, patience: float = 10.0) -> None:
    """Wait until the broker's own view has caught up with what its controller confirmed, milliseconds as a rule."""
    partitions = {topic.name: topic.partitions for topic in changes.create}
    partitions.update({name: wanted for name, _, wanted in changes.grow})
    names = partitions.keys() | {change.topic for change in changes.configure}
    deadline = time.monotonic() + patience
    while names and time.monotonic() < deadline:
        seen = {topic.name: topic for topic in read_topics(admin, names)}
        grown = all(name in seen and seen[name].partitions == count for name, count in partitions.items())
        if grown and all(seen[c.topic].config.get(c.setting) == c.should_be for c in changes.configure):
            return
        time.sleep(0.02)


def apply_topics(admin: AdminClient, file: TopicsFile, profile: Profile, nights: Iterable[str] = ()) -> Changes:
    """Make the broker look like the file; returns what was found and changed. Applying twice changes nothing."""
    changes = diff(admin, file, profile, nights)
    apply_changes(admin, changes)
    return changes


def ensure_night(admin: AdminClient, file: TopicsFile, profile: Profile, night: str) -> tuple[str, ...]:
    """Create the alert topics of a night where they are absent; returns the names of all of them."""
    return ensure_topics(admin, file, profile, [spec.topic(night) for spec in file.topics if spec.nightly])


def ensure_topics(admin: AdminClient, file: TopicsFile, profile: Profile, names: Iterable[str]) -> tuple[str, ...]:
    """Create those of ``names`` that the file knows and the broker lacks; returns the names of all that are known."""
    wanted = []
    for name in names:
        spec, night = file.spec_of(name), NIGHT.search(name)
        if spec is not None:
            wanted.append(desired_topic(file, spec, profile, night.group() if night and spec.nightly else None))
    with translated("looking for topics"):
        present = set(admin.list_topics(timeout=_ADMIN_TIMEOUT).topics)
    missing = tuple(topic for topic in wanted if topic.name not in present)
    if missing:
        apply_changes(admin, Changes(create=missing))
    return tuple(topic.name for topic in wanted)
