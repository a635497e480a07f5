"""The cluster's files against the settings, the workers and ``topics.yaml``: what they name exists and fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.engine.config import PREFIX, Settings, load_settings
from stream.engine.embedded_kafka import ADMIN, SERVICE
from stream.engine.topics import load_topics
from stream.engine.workers import WORKERS

OPS = Path(__file__).resolve().parents[2] / "ops"
FILE = load_topics()
COMPOSE = yaml.safe_load((OPS / "compose.yaml").read_text())
MANIFESTS = [(OPS / f"kubernetes/{name}.yaml").read_text() for name in ("kafka", "workers", "apply")]
PODS = [document for text in MANIFESTS for document in yaml.safe_load_all(text)]
LINES = (OPS / "kafka/server.properties").read_text().splitlines()
PROPERTIES = dict(line.split("=", 1) for line in LINES if re.match(r"[a-z]", line))


def pods_of(kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in PODS if d["kind"] == kind}


def workload(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"]["template"]["spec"]


def pod_environment(container: dict[str, Any]) -> dict[str, str]:
    """What the container sees; a value from a secret or its own name is that reference as text."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= pods_of("ConfigMap")[source["configMapRef"]["name"]]["data"]
    for entry in container["env"]:
        found[entry["name"]] = str(entry.get("value", entry.get("valueFrom")))
    return found


def environments() -> dict[str, dict[str, str]]:
    """Environment of every process of ours in both kinds of cluster, by where it stands."""
    compose = {
        f"compose {name}": service["environment"]
        for name, service in COMPOSE["services"].items()
        if service["image"] == "ztf-stream"
    }
    pods = {}
    for name, document in {**pods_of("StatefulSet"), **pods_of("Job")}.items():
        for container in workload(document)["containers"]:
            if container["image"].startswith("ztf-stream"):
                pods[f"kubernetes {name}"] = pod_environment(container)
    return compose | pods


@pytest.mark.parametrize(
    ("where", "environment"), environments().items(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_setting_exists_and_has_a_value_that_is_one(where, environment):
    ours = {k: v for k, v in environment.items() if k.startswith(PREFIX)}
    settings = load_settings(environ=ours)
    assert {k[len(PREFIX) :].lower() for k in ours} <= set(Settings.model_fields)
    assert settings.profile == "cluster"
    assert (settings.sasl_username, settings.sasl_mechanism, settings.tls) == (SERVICE, "SCRAM-SHA-512", True)
    assert settings.kafka()["security.protocol"] == "SASL_SSL"
    assert settings.metrics_port > 0
    assert settings.metrics_host == "0.0.0.0"
    admins = any(word in where for word in ("nights", "apply"))
    assert (settings.admin_username == ADMIN) == admins, "only who makes topics and rights is an administrator"


def test_every_kind_of_worker_is_there():
    commands = [service.get("command", []) for service in COMPOSE["services"].values()]
    assert {c[1] for c in commands if c[:1] == ["worker"]} == set(WORKERS)
    pods = [workload(d)["containers"][0].get("args", []) for d in pods_of("StatefulSet").values()]
    assert {args[1] for args in pods if args[:1] == ["worker"]} == set(WORKERS)
    assert pods_of("StatefulSet")["nights"]["spec"]["replicas"] == 1


def test_names_are_stable_and_nobody_else_s():
    for name, environment in environments().items():
        if name.startswith("kubernetes") and "apply" not in name:
            assert "metadata.name" in environment["ZTF_INSTANCE"]
    commands = [tuple(s["command"]) for s in COMPOSE["services"].values() if s["image"] == "ztf-stream"]
    assert len(set(commands)) == len(commands), "two of one kind on one instance need another --index"


def test_workers_are_asked_where_they_answer():
    for name, document in pods_of("StatefulSet").items():
        (container,) = workload(document)["containers"]
        if not container["image"].startswith("ztf-stream"):
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["metrics"] == int(pod_environment(container)["ZTF_METRICS_PORT"]), name
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/metrics", "port": "metrics"}


def test_addresses_are_those_of_the_brokers():
    port = int(re.search(r"CLIENTS://[^:]*:(\d+)", PROPERTIES["listeners"]).group(1))
    (bootstrap,) = {e["ZTF_BOOTSTRAP"] for n, e in environments().items() if n.startswith("compose")}
    nodes = [name for name, service in COMPOSE["services"].items() if "NODE_ID" in service.get("environment", {})]
    assert bootstrap.split(",") == [f"{node}:{port}" for node in nodes]
    for name in nodes:
        environment = COMPOSE["services"][name]["environment"]
        assert environment["ADVERTISED"] == name == environment[f"HOST_{environment['NODE_ID']}"]
    (bootstrap,) = {e["ZTF_BOOTSTRAP"] for n, e in environments().items() if n.startswith("kubernetes")}
    kafka = pods_of("StatefulSet")["kafka"]
    pods = [f"kafka-{k}.{kafka['spec']['serviceName']}.ztf.svc" for k in range(kafka["spec"]["replicas"])]
    assert bootstrap.split(",") == [f"{pod}:{port}" for pod in pods]
    (container,) = workload(kafka)["containers"]
    assert [pod_environment(container)[f"HOST_{k}"] for k in (1, 2, 3)] == pods
    assert port in {p["containerPort"] for p in container["ports"]}
    assert {p["port"] for p in pods_of("Service")["kafka"]["spec"]["ports"]} == {
        p["containerPort"] for p in container["ports"]
    }


def test_the_brokers_keep_what_topics_yaml_asks_for():
    cluster = FILE.profiles["cluster"]
    assert int(PROPERTIES["default.replication.factor"]) == cluster.replication == 3
    assert int(PROPERTIES["min.insync.replicas"]) == cluster.min_insync
    for name in ("offsets.topic", "transaction.state.log"):
        assert int(PROPERTIES[f"{name}.replication.factor"]) == cluster.replication
    largest = max(spec.max_message_bytes for spec in FILE.topics)
    assert int(PROPERTIES["message.max.bytes"]) >= largest
    assert int(PROPERTIES["replica.fetch.max.bytes"]) >= largest
    assert PROPERTIES["auto.create.topics.enable"] == "false"


def test_nobody_gets_in_without_a_user_or_unencrypted():
    protocols = dict(pair.split(":") for pair in PROPERTIES["listener.security.protocol.map"].split(","))
    assert {listener.split(":")[0] for listener in PROPERTIES["listeners"].split(",")} == set(protocols)
    assert set(protocols.values()) == {"SASL_SSL"}
    assert PROPERTIES["authorizer.class.name"].endswith("StandardAuthorizer")
    assert PROPERTIES["allow.everyone.if.no.acl.found"] == "false"
    assert PROPERTIES["super.users"] == f"User:{ADMIN}"
    script = (OPS / "kafka/start.sh").read_text()
    assert set(re.findall(r"name=([a-z-]+),", script)) == {ADMIN, SERVICE}
    assert FILE.users[SERVICE].group == "services"
    filled = set(re.findall(r"@([A-Z_0-9]+)@", (OPS / "kafka/server.properties").read_text()))
    assert filled == set(re.findall(r"s\|@([A-Z_0-9]+)@\|", script))


def test_no_secret_stands_in_the_files():
    """Passwords come from secrets; the known one of the public user is in topics.yaml alone."""
    assert not [d for d in PODS if d["kind"] == "Secret"]
    for environment in environments().values():
        for name, value in environment.items():
            if "PASSWORD" in name:
                assert value.startswith("${") or "secretKeyRef" in value
    keys = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for document in {**pods_of("StatefulSet"), **pods_of("Job")}.values()
        for container in workload(document)["containers"]
        for entry in container.get("env", ())
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert keys == {ADMIN, SERVICE, "cluster-id"}
