"""A server as our child process: which process and port it had, how it ends, whatever server it is."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from stream.core.errors import UsageError
from stream.engine import processes


class EmbeddedService(ABC):
    """A server that lives as long as the ``with`` block, or between :meth:`start` and :meth:`stop`.

    What it keeps in its folder is used again, so that its state survives a restart; its port too, as long as nobody
    else took it.
    """

    what: ClassVar[str]  # as messages name it
    stop_timeout: ClassVar[float]  # seconds it has to close its files

    def __init__(self, folder: Path, log: Path, state_file: Path) -> None:
        self.folder = folder
        self.log = log
        self._state_file = state_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @abstractmethod
    def start(self) -> Self:
        """Start the server and wait until it answers."""

    def _previous(self) -> dict[str, int]:
        """Process id and port of the last start; empty without one."""
        try:
            state: dict[str, int] = json.loads(self._state_file.read_text())
        except (OSError, ValueError):
            return {}
        return state

    def _port(self, marker: str) -> int:
        """The port of last time if it is free, else a new one.

        Raises
        ------
        UsageError
            The server of last time, known by ``marker`` in its command line, still runs on this folder.
        """
        previous = self._previous()
        if previous and processes.alive(previous.get("pid", 0), marker):
            raise UsageError(
                f"{self.what} (process {previous['pid']}) is already running on {self.folder}: use it (its address is "
                "in running.json beside that folder), stop it, or choose another ZTF_DATA_DIR"
            )
        port = previous.get("port", 0)
        return port if port and processes.port_is_free(port) else processes.free_port()

    def _started(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._state_file.write_text(json.dumps({"pid": process.pid, "port": port}))

    def stop(self) -> None:
        """Stop the server; its files are flushed and closed unless it has to be killed."""
        if self._process is not None:
            processes.stop(self._process, self.stop_timeout)
            self._process = None
            self._state_file.write_text(json.dumps({"port": self._previous().get("port", 0)}))

    def kill(self) -> None:
        """Kill the server without warning, as a power cut would; for fault tests."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
