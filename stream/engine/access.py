"""Who may do what on the broker: users and rights, made from ``topics.yaml``, compared with a broker, applied.

A user belongs to a group (``public``, ``partnership``, ``caltech``, ``services``). Groups and the users that come with
the system stand in ``topics.yaml``; users that were added are on the compacted topic ``ztf.users``, so that every
machine knows them. Passwords are nowhere but in the broker, as SCRAM keys.

What a member may do (everything else the broker denies, and it does not say whether a forbidden name exists):

- ``services``: read, write and make the topics of ``topics.yaml``; groups and transactions under our prefix;
- everyone else: read the public topics and those private ones that name their group; a user of one's own has the
  consumer groups ``NAME`` and ``NAME-...`` to itself; ``public``, which many share, any name but ours and theirs.

Kafka's patterns know prefixes only, which cannot tell ``ztf_20181129_programid1`` from ``..._programid2``: rights on
nightly topics are given by name when a night is made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from stream.core.errors import UsageError
from stream.engine.config import Settings
from stream.engine.kafka import OutMessage, Sender, make_admin, make_producer, read_to_end, translated
from stream.engine.topics import SERVICES, TopicsFile, apply_topics, ensure_topics, literal_prefix, load_topics

USERS = "ztf.users"
ITERATIONS = 4096  # of SCRAM; the least that Kafka takes, and what its tools use
NAME = re.compile(r"[a-z][a-z0-9-]{2,40}")
_TIMEOUT = 30.0


class NoAuthorizer(UsageError):
    """The broker keeps no rights."""


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One rule of the broker, in lower case: who may (or, with ``deny``, may not) do what with which names."""

    principal: str  # User:name
    resource: str  # topic, group, transactional_id
    name: str
    pattern: str  # literal, prefixed; the literal name * means all
    operation: str
    permission: str = "allow"


@dataclass(frozen=True, slots=True)
class AccessChanges:
    """What lies between a broker's users and rights and what they should be.

    ``make`` are users with a known password that are absent, ``missing`` those that only a person can make
    (``users add``); ``foreign`` rules touch nothing of ours and are left alone. A broker without an authorizer keeps no
    rights: ``disabled``, and nothing else is said.
    """

    grant: tuple[Grant, ...] = ()
    revoke: tuple[Grant, ...] = ()
    make: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    foreign: tuple[Grant, ...] = field(default=())
    disabled: bool = False  # the broker has no authorizer: everybody may do everything

    @property
    def drift(self) -> bool:
        """Whether the broker differs."""
        return bool(self.grant or self.revoke or self.make or self.missing)


def desired_grants(
    file: TopicsFile, users: Mapping[str, str], existing: Iterable[str], group_prefix: str
) -> frozenset[Grant]:
    """Every rule that should be there.

    Parameters
    ----------
    users : mapping
        Name to group.
    existing : iterable of str
        Topics on the broker: nightly ones among them get their rights by name.
    group_prefix : str
        Start of our consumer groups and transactional ids.
    """
    names = sorted(existing)
    grants: set[Grant] = set()
    owned = sorted(user for user, group in users.items() if group not in ("public", SERVICES))
    for user, group in users.items():
        who = f"User:{user}"
        if group == SERVICES:
            grants |= _service_grants(file, who, group_prefix)
            continue
        for spec in file.topics:
            if spec.access == "public" or group in spec.groups:
                for topic in [name for name in names if spec.matches(name)] if spec.nightly else [spec.name]:
                    grants.add(Grant(who, "topic", topic, "literal", "read"))
        if group == "public":
            grants.add(Grant(who, "group", "*", "literal", "read"))
            grants.add(Grant(who, "group", f"{group_prefix}-", "prefixed", "all", "deny"))
            for owner in owned:
                grants.add(Grant(who, "group", owner, "literal", "all", "deny"))
                grants.add(Grant(who, "group", f"{owner}-", "prefixed", "all", "deny"))
        else:
            for operation in ("read", "delete"):
                grants.add(Grant(who, "group", user, "literal", operation))
                grants.add(Grant(who, "group", f"{user}-", "prefixed", operation))
    return frozenset(grants)


def _service_grants(file: TopicsFile, who: str, group_prefix: str) -> set[Grant]:
    grants = set()
    for spec in file.topics:
        if spec.name == USERS:  # who belongs to which group is the administrator's to say
            continue
        name, pattern = (literal_prefix(spec.name), "prefixed") if spec.nightly else (spec.name, "literal")
        for operation in ("read", "write", "create", "describe_configs"):
            grants.add(Grant(who, "topic", name, pattern, operation))
    for operation in ("read", "delete"):
        grants.add(Grant(who, "group", f"{group_prefix}-", "prefixed", operation))
    for operation in ("write", "describe"):
        grants.add(Grant(who, "transactional_id", f"{group_prefix}-", "prefixed", operation))
    return grants


def plan_access(
    desired: Iterable[Grant], actual: Iterable[Grant], users: Iterable[str], file: TopicsFile, group_prefix: str
) -> AccessChanges:
    """Rules to grant and to revoke. Pure; denials come first, so that no moment is more open than the end.

    A rule is ours, and revoked if it should not be, when it is about one of our users or touches one of our topics,
    groups or transactions: whoever may read a private topic by a rule that nobody stated is a leak.
    """
    want, have = set(desired), set(actual)
    ours = {f"User:{user}" for user in users}
    extra = {
        grant: grant.principal in ours or touches(grant, file, group_prefix) for grant in have - want
    }  # fmt: skip
    order = sorted(want - have, key=lambda grant: (grant.permission != "deny", grant))
    return AccessChanges(
        grant=tuple(order),
        revoke=tuple(sorted(grant for grant, mine in extra.items() if mine)),
        foreign=tuple(sorted(grant for grant, mine in extra.items() if not mine)),
    )


def touches(grant: Grant, file: TopicsFile, group_prefix: str) -> bool:
    """Whether a rule's names overlap with names of ours."""
    if grant.resource == "topic":
        mine = {literal_prefix(spec.name) if spec.nightly else spec.name for spec in file.topics}
        nightly = any(spec.nightly and grant.name.startswith(literal_prefix(spec.name)) for spec in file.topics)
    else:
        mine, nightly = {f"{group_prefix}-"}, grant.name.startswith(f"{group_prefix}-")
    if grant.name == "*" and grant.pattern == "literal":
        return True
    if grant.pattern == "prefixed":
        return nightly or any(name.startswith(grant.name) for name in mine)
    return nightly or grant.name in mine


# -- the broker ----------------------------------------------------------------------------------------------------

_RESOURCES = {
    "topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "transactional_id": ResourceType.TRANSACTIONAL_ID,
    "broker": ResourceType.BROKER,
}  # fmt: skip


def read_grants(admin: AdminClient) -> list[Grant]:
    """Every rule on the broker."""
    everything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    with translated("reading the rights"):
        try:
            bindings = admin.describe_acls(everything, request_timeout=_TIMEOUT).result(_TIMEOUT)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.SECURITY_DISABLED:
                raise NoAuthorizer("this broker has no authorizer: it keeps no rights") from error
            raise
    return [
        Grant(
            b.principal, b.restype.name.lower(), b.name, b.resource_pattern_type.name.lower(),
            b.operation.name.lower(), b.permission_type.name.lower(),
        )
        for b in bindings
    ]  # fmt: skip


def _terms(grant: Grant) -> tuple[ResourceType, str, ResourcePatternType, str, str, AclOperation, AclPermissionType]:
    return (
        _RESOURCES[grant.resource], grant.name, ResourcePatternType[grant.pattern.upper()], grant.principal, "*",
        AclOperation[grant.operation.upper()], AclPermissionType[grant.permission.upper()],
    )  # fmt: skip


def scram_users(admin: AdminClient) -> set[str]:
    """Users that have a password on the broker."""
    with translated("reading the users"):
        return set(admin.describe_user_scram_credentials(None, request_timeout=_TIMEOUT).result(_TIMEOUT))


def set_password(admin: AdminClient, user: str, password: str) -> None:
    """Make a user, or give it another password."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
    change = UserScramCredentialUpsertion(user, info, password.encode())
    with translated(f"making the user {user}"):
        for future in admin.alter_user_scram_credentials([change], request_timeout=_TIMEOUT).values():
            future.result(_TIMEOUT)


def registered(settings: Settings) -> dict[str, str]:
    """Users that were added, name to group."""
    users: dict[str, str] = {}
    try:
        for message in read_to_end(settings, {USERS: {}}, "users"):
            name = (message.key or b"").decode()
            users.pop(name, None)
            if message.value:
                users[name] = str(json.loads(message.value)["group"])
    except UsageError:  # no such topic yet: nobody was added
        return {}
    return users


def all_users(settings: Settings, file: TopicsFile) -> dict[str, str]:
    """Every user that should be there, name to group: those of the file and those that were added."""
    return {**registered(settings), **{name: user.group for name, user in file.users.items()}}


def diff_access(settings: Settings, file: TopicsFile) -> AccessChanges:
    """What lies between this broker's users and rights and the file. ``settings`` must be an administrator's."""
    admin = make_admin(settings)
    try:
        actual = read_grants(admin)
    except NoAuthorizer:
        return AccessChanges(disabled=True)
    users, there = all_users(settings, file), scram_users(admin)
    with translated("looking at topics"):
        existing = sorted(admin.list_topics(timeout=_TIMEOUT).topics)
    want = desired_grants(file, users, existing, settings.group_prefix)
    changes = plan_access(want, actual, users, file, settings.group_prefix)
    absent = sorted(set(users) - there)
    known = {name for name, user in file.users.items() if user.password}
    return AccessChanges(
        changes.grant, changes.revoke, tuple(name for name in absent if name in known),
        tuple(name for name in absent if name not in known), changes.foreign,
    )  # fmt: skip


def apply_access(settings: Settings, file: TopicsFile, patience: float = 10.0) -> AccessChanges:
    """Make users and rights as the file states them; returns what was found and changed.

    A right that was just given counts a moment later: waits until the broker shows all of them.
    """
    admin = make_admin(settings)
    changes = diff_access(settings, file)
    for name in changes.make:
        set_password(admin, name, file.users[name].password)
    grant_and_revoke(admin, changes)
    deadline = time.monotonic() + patience
    while (changes.grant or changes.revoke) and time.monotonic() < deadline:
        there = set(read_grants(admin))
        if there >= set(changes.grant) and not there & set(changes.revoke):
            break
        time.sleep(0.02)
    return changes


def make_ready(settings: Settings) -> None:
    """Topics, users and rights on the broker as the topics file states them, before workers start."""
    file, admin = load_topics(settings.topics_file), settings.as_admin()
    apply_topics(make_admin(admin), file, settings.profile)
    apply_access(admin, file)


def grant_and_revoke(admin: AdminClient, changes: AccessChanges) -> None:
    """Carry out the rules of a plan: what is given first, denials before all."""
    with translated("changing rights"):
        if changes.grant:
            bindings = [AclBinding(*_terms(grant)) for grant in changes.grant]
            for future in admin.create_acls(bindings, request_timeout=_TIMEOUT).values():
                future.result(_TIMEOUT)
        if changes.revoke:
            filters = [AclBindingFilter(*_terms(grant)) for grant in changes.revoke]
            for future in admin.delete_acls(filters, request_timeout=_TIMEOUT).values():
                future.result(_TIMEOUT)


def add_user(settings: Settings, file: TopicsFile, name: str, group: str, password: str) -> None:
    """Add a user (or change its group and password) and give it its rights.

    Raises
    ------
    UsageError
        A name that cannot be one, no such group, or a user that the file states with another group.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no user name: 3 to 41 small letters, digits and dashes, a letter first")
    if name == group or (f"{name}-".startswith(f"{settings.group_prefix}-") and name not in file.users):
        raise UsageError(f"{name!r} is a name of our own: choose another")
    if group not in file.groups:
        raise UsageError(f"no group {group!r}: known are {', '.join(file.groups)}")
    stated = file.users.get(name)
    if stated is not None and stated.group != group:
        raise UsageError(f"{name} is in topics.yaml with the group {stated.group}")
    admin = make_admin(settings)
    set_password(admin, name, password)
    if stated is None:
        ensure_topics(admin, file, settings.profile, [USERS])
        _register(settings, name, json.dumps({"group": group}).encode())
    apply_access(settings, file)


def remove_user(settings: Settings, file: TopicsFile, name: str) -> None:
    """Take a user's rights and password away.

    Raises
    ------
    UsageError
        No such user, or one that the file states.
    """
    if name in file.users:
        raise UsageError(f"{name} is stated in topics.yaml: take it out there, then 'ztf-stream topics apply'")
    admin = make_admin(settings)
    if name not in registered(settings):
        raise UsageError(f"there is no user {name!r}")
    _register(settings, name, None)
    mine = [grant for grant in read_grants(admin) if grant.principal == f"User:{name}"]
    grant_and_revoke(admin, AccessChanges(revoke=tuple(mine)))
    with translated(f"removing the user {name}"):
        deletion = UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512)
        for future in admin.alter_user_scram_credentials([deletion], request_timeout=_TIMEOUT).values():
            future.result(_TIMEOUT)
    apply_access(settings, file)


def _register(settings: Settings, name: str, value: bytes | None) -> None:
    sender = Sender(make_producer(settings, "users"))
    sender.send(OutMessage(USERS, name.encode(), value))
    sender.flush()


def describe(settings: Settings, file: TopicsFile) -> Sequence[Mapping[str, object]]:
    """Every user: name, group, whether it has a password, where it is stated, how many topics it may read."""
    admin = make_admin(settings)
    there, grants = scram_users(admin), read_grants(admin)
    rows = []
    for name, group in sorted(all_users(settings, file).items()):
        mine = {
            g.name for g in grants if g.principal == f"User:{name}" and (g.resource, g.operation) == ("topic", "read")
        }
        stated = "topics.yaml" if name in file.users else USERS
        rows.append({"user": name, "group": group, "password": name in there, "stated": stated, "topics": len(mine)})
    return rows
