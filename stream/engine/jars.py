"""The embedded broker's program: Apache Kafka's jars, fetched once from Maven Central by jgo's own resolver."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

from stream.core.errors import UsageError

KAFKA_VERSION = "4.1.1"
KAFKA_COORDINATE = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through slf4j and leaves the choice of a back end to its distribution; without one a broker that
# cannot start says nothing. Version and binding as in the distribution of 4.1.1. Added by itself, not resolved
# together with Kafka: its parent's managed versions would pull kafka-clients back to 3.8.
LOG_BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3")
_MANIFEST = "classpath.json"


def _read_manifest(folder: Path) -> list[Path] | None:
    """The remembered jars, or ``None`` when there are none or one is gone or cut short."""
    try:
        entries = json.loads((folder / _MANIFEST).read_text())
        jars = [(folder / entry["path"], int(entry["size"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not jars or any(not path.is_file() or path.stat().st_size != size for path, size in jars):
        return None
    return [path for path, _ in jars]


def _fetch(folder: Path) -> None:
    """Download the jars into ``folder`` and write their manifest beside them."""
    from jgo.maven import MavenContext  # heavy, and needed only once a machine
    from jgo.parse import Coordinate

    context = MavenContext(repo_cache=folder, timeout=60)
    roots, further = context.resolver.resolve([context.create_dependency(Coordinate.parse(KAFKA_COORDINATE))])
    jars = [Path(d.artifact.resolve()) for d in [*roots, *further] if d.scope in ("compile", "runtime", None)]
    group, artifact, version = LOG_BINDING
    jars.append(Path(context.project(group, artifact).at_version(version).artifact().resolve()))
    entries = [{"path": os.path.relpath(jar, folder), "size": jar.stat().st_size} for jar in jars]
    (folder / _MANIFEST).write_text(json.dumps(entries, indent=1))


def kafka_classpath(cache_dir: Path) -> list[Path]:
    """The broker's 46 jars, downloaded into ``cache_dir`` (45 MB, about 15 s) unless they are there already.

    An interrupted download leaves nothing behind that a later start would trust: the jars are fetched into a
    scratch folder that takes its name only when complete.

    Raises
    ------
    UsageError
        They are not there and cannot be fetched.
    """
    cache_dir = cache_dir.expanduser().resolve()
    folder = cache_dir / f"kafka-{KAFKA_VERSION}"
    known = _read_manifest(folder)
    if known is not None:
        return known
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / "fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two first starts at once: the second finds the work done
        known = _read_manifest(folder)
        if known is not None:
            return known
        scratch = cache_dir / f"kafka-{KAFKA_VERSION}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.mkdir()
        try:
            _fetch(scratch)
        except Exception as error:  # jgo raises what its HTTP and XML layers raise
            shutil.rmtree(scratch, ignore_errors=True)
            raise UsageError(
                f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven Central into {cache_dir}: {error}. "
                "The first start of the embedded broker needs the network once; or copy that folder from a machine "
                "that has it; or use a cluster of your own with ZTF_BOOTSTRAP"
            ) from error
        scratch.rename(folder)
    jars = _read_manifest(folder)
    if jars is None:
        raise UsageError(f"the jars just fetched into {folder} cannot be read back: is the disk full?")
    return jars
