"""Users' rights as ``topics.yaml`` makes them, and the plan from a broker's rights to them (no broker)."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stream.core.errors import UsageError
from stream.engine.access import AccessChanges, Grant, desired_grants, plan_access, touches
from stream.engine.topics import load_topics

FILE = load_topics()
NIGHT = [f"ztf_20181129_programid{n}" for n in range(4)]
USERS = {"public": "public", "ztf-service": "services", "lasair": "partnership", "palomar": "caltech"}
GRANTS = desired_grants(FILE, USERS, [*NIGHT, "somebody.elses"], "ztf")


def allowed(user: str, resource: str, name: str, operation: str) -> bool:
    """What Kafka's authorizer would say: denials first, then allowances, by literal name, prefix or *."""

    def about(g: Grant) -> bool:
        named = g.name in ("*", name) if g.pattern == "literal" else name.startswith(g.name)
        return g.principal == f"User:{user}" and g.resource == resource and named and g.operation in (operation, "all")

    found = [g.permission for g in GRANTS if about(g)]
    return "deny" not in found and "allow" in found


@pytest.mark.parametrize("spec", FILE.topics, ids=lambda spec: spec.name)
def test_who_reads_a_topic_is_what_its_access_says(spec):
    name = spec.topic("20181129" if spec.nightly else None)
    readers = {user for user in USERS if allowed(user, "topic", name, "read")}
    others = {"public": set(USERS), "internal": set()}.get(spec.access, {"palomar"})
    assert readers - {"ztf-service", "lasair"} == others - {"ztf-service", "lasair"}
    assert ("lasair" in readers) == (spec.access == "public" or "partnership" in spec.groups)
    assert ("ztf-service" in readers) == (name != "ztf.users")
    writers = {user for user in USERS if allowed(user, "topic", name, "write")}
    assert writers == ({"ztf-service"} if name != "ztf.users" else set())


def test_private_programs_have_their_readers_and_no_others():
    for topic in (*NIGHT[2:], "ztf.alerts.programid2", "ztf.alerts.programid3", NIGHT[0]):
        assert not allowed("public", "topic", topic, "read")
    assert allowed("lasair", "topic", NIGHT[2], "read")
    assert not allowed("lasair", "topic", NIGHT[3], "read")
    assert allowed("palomar", "topic", NIGHT[3], "read")


@pytest.mark.parametrize(
    ("user", "group", "may"),
    [
        ("public", "anything", True),
        ("public", "ztf-emit", False),
        ("public", "lasair", False),
        ("public", "lasair-2", False),
        ("public", "lasairs", True),
        ("lasair", "lasair-2", True),
        ("lasair", "lasair", True),
        ("lasair", "anything", False),
        ("lasair", "palomar-1", False),
        ("lasair", "ztf-emit", False),
        ("ztf-service", "ztf-emit", True),
        ("ztf-service", "lasair-2", False),
    ],
)
def test_consumer_groups_belong_to_somebody(user, group, may):
    assert allowed(user, "group", group, "read") == may


OURS = st.sampled_from(sorted(GRANTS))
STRANGE = st.builds(
    Grant, st.sampled_from(["User:public", "User:mallory", "User:other"]), st.sampled_from(["topic", "group"]),
    st.sampled_from(["*", "ztf", "ztf.raw", "ztf_20181129_programid2", "ztf_2018", "ztf-emit", "other.topic"]),
    st.sampled_from(["literal", "prefixed"]), st.sampled_from(["read", "all"]), st.just("allow"),
)  # fmt: skip


@given(st.sets(OURS), st.sets(STRANGE))
def test_carrying_out_a_plan_leaves_what_is_stated_and_what_is_foreign(kept, strange):
    actual = kept | strange
    changes = plan_access(GRANTS, actual, USERS, FILE, "ztf")
    after = (actual - set(changes.revoke)) | set(changes.grant)
    assert after == GRANTS | set(changes.foreign)
    assert not plan_access(GRANTS, after, USERS, FILE, "ztf").drift
    for grant in changes.foreign:
        assert grant.principal != "User:public"
        assert not touches(grant, FILE, "ztf")
    permissions = [grant.permission for grant in changes.grant]
    assert permissions == sorted(permissions, reverse=True), "denials come first"


@pytest.mark.parametrize(
    ("resource", "name", "pattern", "ours"),
    [
        ("topic", "ztf.raw", "literal", True),
        ("topic", "ztf.ra", "literal", False),
        ("topic", "ztf.ra", "prefixed", True),
        ("topic", "*", "literal", True),
        ("topic", "ztf_20181129_programid2", "literal", True),
        ("topic", "other", "prefixed", False),
        ("group", "ztf-emit", "literal", True),
        ("group", "z", "prefixed", True),
        ("group", "mine", "literal", False),
        ("transactional_id", "ztf-pixels-0", "literal", True),
    ],
)
def test_a_rule_that_touches_names_of_ours_is_ours(resource, name, pattern, ours):
    assert touches(Grant("User:x", resource, name, pattern, "read"), FILE, "ztf") == ours


def test_no_drift_where_nothing_is_kept():
    assert not AccessChanges(disabled=True).drift
    assert AccessChanges(missing=("x",)).drift


def load_with(tmp_path, change) -> None:
    from stream.engine.topics import Path, stream

    content = yaml.safe_load((Path(stream.__file__).parents[1] / "topics.yaml").read_text())
    change(content)
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(content))
    load_topics(tmp_path / "topics.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["users"]["public"].update(group="nobody"), "nobody"),
        (lambda c: c["users"]["ztf-service"].update(password="secret"), "public user"),
        (lambda c: c["topics"][0].update(groups=["caltech"]), "private topic, and no other"),
        (lambda c: c["topics"][0].update(access="private"), "private topic, and no other"),
        (lambda c: c["topics"][0].update(access="private", groups=["friends"]), "friends"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, said):
    with pytest.raises(UsageError, match=said):
        load_with(tmp_path, change)
