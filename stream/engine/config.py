"""Configuration: one typed object, and the only place of the whole system that reads the environment.

Every field is an environment variable with the prefix ``ZTF_`` (``ZTF_BOOTSTRAP``, ``ZTF_STORE``, ...) and a
keyword of :func:`load_settings`. An unknown name is an error, in either form: a misspelt setting that is silently
ignored costs a night. Setting ``ZTF_BOOTSTRAP`` alone is enough to use a cluster of one's own.
"""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stream.core.errors import UsageError

PREFIX = "ZTF_"


class Settings(BaseSettings):
    """Everything that can be chosen about a running system. Immutable; made by :func:`load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, case_sensitive=False
    )

    bootstrap: str = Field(
        "", description="Kafka brokers as host:port,host:port; empty starts (or finds) the embedded broker."
    )
    redis_url: str = Field(
        "", description="Redis as redis://host:port/db; empty starts (or finds) the embedded server."
    )
    data_dir: Path = Field(
        Path("run"), description="Folder of the embedded broker and Redis, their logs and running.json."
    )
    cache_dir: Path = Field(
        Path("~/.cache/ztf-stream"),
        description="Folder where the broker's jars are kept, so that only the first start downloads them.",
    )
    store: str = Field("store", description="Product store: a folder or any fsspec URL such as s3://bucket/ztf.")
    topics_file: str = Field("", description="A topics.yaml of one's own; empty uses the one that ships.")
    camera: Literal["full", "small"] = Field("full", description="Camera geometry; small is for tests and demos.")
    profile: Literal["laptop", "cluster"] = Field(
        "laptop", description="Which sizes of topics.yaml apply: laptop bounds every topic by bytes."
    )
    group_prefix: str = Field(
        "ztf", description="Start of the names of our consumer groups, transactional ids and client ids."
    )

    instance: str = Field(
        "",
        description=(
            "Name of this machine in worker identities; empty is the host name. Two machines must differ, and one "
            "must keep its name over restarts."
        ),
    )

    sasl_username: str = Field("", description="Kafka user; empty connects without authentication.")
    sasl_password: SecretStr = Field(SecretStr(""), description="Password of that Kafka user.")
    admin_username: str = Field(
        "", description="Kafka user that may make topics, users and rights; empty uses the one above."
    )
    admin_password: SecretStr = Field(SecretStr(""), description="Password of that Kafka user.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism of the cluster; used only with a user."
    )
    tls: bool = Field(False, description="Whether to speak TLS to Kafka.")
    tls_ca: str = Field("", description="File with the certificate authority of the cluster; empty uses the system's.")

    old_calibration_days: float = Field(
        3.0, gt=0, description="Age of a bias or flat beyond which quality records note old_bias or old_flat."
    )
    pocket_correction: bool = Field(
        False, description="Undo the sensors' pocket effect with the published parameters: 0.8 s a quadrant."
    )
    cut_profile: str = Field(
        "inclusive",
        description=(
            "Which candidates are sent: inclusive leaves shapes to the classifiers, survey-2018 are the survey's own "
            "cuts, noise-aware are these with room for the noise of faint sources."
        ),
    )
    rejected_share: float = Field(
        0.01, ge=0, le=1, description="Share of the rejected candidates that go to ztf.rejected with their stamps."
    )
    fakes_share: float = Field(
        1.0,  # a piece costs 5 to 6 per cent of its quadrant
        ge=0,
        le=1,
        description=(
            "Share of the quadrants into a copy of which fake sources are injected, so that completeness is known at "
            "all times; 0 switches them off. The public stream never sees one."
        ),
    )
    candid_version: int = Field(
        1,
        ge=1,
        le=80,  # 81 is that of streaks
        description=(
            "The two version digits of every candid: 1 in operation; another number when nights are processed again "
            "with other software, so that the new candidates can be told from those that were sent."
        ),
    )
    reprocess_alerts: bool = Field(
        False,
        description=(
            "Send alerts of quadrants whose alerts were sent under other version digits. Off: they are held (counted "
            "as held, kept in the products), nobody gets a second alert of one event."
        ),
    )

    pixel_workers: int = Field(2, ge=1, le=512, description="Quadrant worker processes on this machine, one a core.")
    record_workers: int = Field(1, ge=1, le=64, description="Processes of each kind of record worker on this machine.")
    emit_workers: int = Field(1, ge=1, le=64, description="Alert emitter processes on this machine.")
    session_timeout_ms: int = Field(
        10_000,
        ge=6_000,
        le=300_000,
        description=(
            "After how long without a heartbeat a worker counts as dead and its partitions move. Heartbeats come from "
            "the client's own thread, so a long quadrant does not endanger it; a restarted worker takes its place "
            "back at once (static membership), so only a machine that stays away costs these ten seconds."
        ),
    )
    max_poll_interval_ms: int = Field(
        600_000, ge=10_000, description="Longest time a worker may spend on one quadrant before it counts as stuck."
    )
    transaction_timeout_ms: int = Field(
        20_000,
        ge=5_000,
        description=(
            "How long the broker keeps a transaction of a dead worker open. A transaction lasts from the first "
            "message produced to the commit, tens of milliseconds, and readers wait behind an open one."
        ),
    )
    raw_backlog: int = Field(
        12,
        ge=0,
        description=(
            "Ingest waits when a partition of ztf.raw holds more unprocessed quadrants than this, so that the "
            "retention of a small disk never drops one unseen; 0 never waits."
        ),
    )
    schema_framing: Literal["none", "confluent"] = Field(
        "none",
        description=(
            "Whether messages of the internal topics carry their schema's identifier (Confluent wire format), for "
            "readers with a schema registry; both forms are always read. Public topics never do."
        ),
    )
    overtake_public_seconds: float = Field(
        120.0,
        ge=0.0,
        description="A public quadrant that has waited this long on ztf.raw lets newer ones of its channel pass.",
    )
    overtake_other_seconds: float = Field(
        45.0, ge=0.0, description="The same for quadrants of the other programs, whose alerts are not public."
    )
    overtake_newer: int = Field(
        2, ge=1, description="How many newer quadrants of its channel must wait for an old one to let them pass."
    )
    night_quiet_seconds: float = Field(
        600.0,
        ge=0.0,
        description="A night that is over is closed when nothing of it has come for so long and nothing is waiting.",
    )
    renew_references: bool = Field(
        True, description="When a night is closed, references that its exposures make enough better are made anew."
    )
    learn_camera: bool = Field(
        True,
        description="When a night is closed, its images teach later nights the distortion and artefacts that return.",
    )
    deadletter_value_bytes: int = Field(
        262_144,
        ge=0,
        le=2_000_000,
        description="Largest original message that a dead letter carries itself; larger ones by place.",
    )

    metrics_host: str = Field("127.0.0.1", description="Address on which processes answer Prometheus.")
    metrics_port: int = Field(
        0, ge=-1, le=65_535, description="Port of a process's metrics: -1 none, 0 any free one (shown by status)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="How logs look: auto is console on a terminal, JSON lines elsewhere."
    )

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if bool(self.sasl_username) != bool(self.sasl_password.get_secret_value()):
            raise ValueError("sasl_username and sasl_password go together: give both or neither")
        if bool(self.admin_username) != bool(self.admin_password.get_secret_value()):
            raise ValueError("admin_username and admin_password go together: give both or neither")
        if self.tls_ca and not self.tls:
            raise ValueError("tls_ca is given but tls is off: set tls to true")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what :func:`load_settings` hands over: no environment, .env file or secrets folder behind one's back."""
        return (init_settings,)

    def identity(self, role: str, index: int) -> str:
        """Name of a worker that is the same after a restart and nobody else's: static membership, transactional id."""
        return f"{self.group_prefix}-{role}-{self.instance or socket.gethostname()}-{index}"

    def group(self, role: str) -> str:
        """Consumer group of a kind of worker."""
        return f"{self.group_prefix}-{role}"

    def as_admin(self) -> Settings:
        """The same settings, connecting as the administrator where one is known."""
        if not self.admin_username:
            return self
        return self.model_copy(update={"sasl_username": self.admin_username, "sasl_password": self.admin_password})

    def without_admin(self) -> Settings:
        """The same settings without the administrator: what a worker gets that makes no topics, users or rights."""
        return self.model_copy(update={"admin_username": "", "admin_password": SecretStr("")})

    def kafka(self) -> dict[str, Any]:
        """Connection part of a librdkafka configuration (``bootstrap`` must be set)."""
        if not self.bootstrap:
            raise UsageError(
                "no Kafka broker is known: set ZTF_BOOTSTRAP to your own, or start the embedded one with "
                "'ztf-stream run'"
            )
        conf: dict[str, Any] = {"bootstrap.servers": self.bootstrap}
        if self.sasl_username:
            conf["sasl.username"] = self.sasl_username
            conf["sasl.password"] = self.sasl_password.get_secret_value()
            conf["sasl.mechanism"] = self.sasl_mechanism
        if self.sasl_username or self.tls:
            conf["security.protocol"] = ("SASL_" if self.sasl_username else "") + ("SSL" if self.tls else "PLAINTEXT")
        if self.tls_ca:
            conf["ssl.ca.location"] = self.tls_ca
        return conf

    def environment(self) -> dict[str, str]:
        """The variables that make :func:`load_settings` in a child process return these very settings."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value == type(self).model_fields[name].default:
                continue
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            values[PREFIX + name.upper()] = text
        return values


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return close[0] if close else known[0]


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """The settings: ``overrides`` (``None`` values are left out) over the environment over the defaults.

    Parameters
    ----------
    environ : mapping, optional
        Stands in for the process's environment in tests.
    **overrides
        Field names of :class:`Settings`.

    Raises
    ------
    UsageError
        An unknown variable or keyword (the message names the nearest known one), or a value out of range.
    """
    env = os.environ if environ is None else environ
    fields = sorted(Settings.model_fields)
    known = [PREFIX + name.upper() for name in fields]
    for name in sorted(env):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise UsageError(
                f"unknown environment variable {name}: did you mean {_nearest(name.upper(), known)}? "
                f"Known are {', '.join(known)}"
            )
    for name in sorted(overrides):
        if name not in fields:
            raise UsageError(f"unknown setting {name!r}: did you mean {_nearest(name, fields)!r}?")
    values: dict[str, Any] = {
        name.upper()[len(PREFIX) :].lower(): value for name, value in env.items() if name.upper().startswith(PREFIX)
    }
    values = {name: value for name, value in values.items() if value != ""}
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            lines.append(f"{PREFIX + where.upper() if where else 'settings'}: {item['msg']}")
        raise UsageError("; ".join(lines)) from None
