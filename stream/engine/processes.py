"""Child processes that end with their parent: spawning, stopping, waiting, ports, tails of logs.

A child gets a session of its own, so that Ctrl-C on the terminal reaches only the parent, which then stops its
children in order; and it is tied to its parent by the kernel (``PR_SET_PDEATHSIG``), so that a parent killed by
SIGKILL leaves nobody behind. The tie is to the parent's *thread* that spawned: spawn from the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stream.core.errors import UsageError

# Runs in the child before the real program: ask the kernel for a signal when the parent dies, make sure that the
# parent is still there, then become the program. Done by exec and not by ``preexec_fn``, which may deadlock in
# a parent with threads (Kafka clients and TensorFlow have many).
_LAUNCHER = """
import ctypes, os, sys
parent, sig = int(sys.argv[1]), int(sys.argv[2])
try:
    ctypes.CDLL(None).prctl(1, sig, 0, 0, 0)
except AttributeError:
    pass
if os.getppid() != parent:
    sys.exit(0)
os.execv(sys.argv[3], sys.argv[3:])
"""


def spawn(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    parent_death: signal.Signals = signal.SIGTERM,
    piped: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` (absolute program path first) as a child that receives ``parent_death`` when we die.

    Output goes to ``log`` (appended), or where ours goes. ``env`` is added to the inherited environment. ``piped``:
    with a standard input that we write to.
    """
    if threading.current_thread() is not threading.main_thread():
        # The kernel would end the child when this thread ends, minutes later and without a trace.
        raise RuntimeError("start child processes from the main thread: their lives are tied to it")
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(parent_death))]
    merged = {**os.environ, **env} if env else None
    if log is None:
        source = subprocess.PIPE if piped else None
        return subprocess.Popen([*launcher, *argv], env=merged, cwd=cwd, stdin=source, start_new_session=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [*launcher, *argv],
            env=merged,
            cwd=cwd,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], timeout: float = 10.0) -> int:
    """End a child and whatever it started in its session: SIGTERM, then SIGKILL after ``timeout`` seconds.

    Returns its exit status.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    # The child leads its own process group: what it may have left there is ours to end, nothing else is in it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def free_port(*taken: int) -> int:
    """A TCP port of the loopback interface that nobody listens on right now, and none of ``taken``."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:  # the system may give the same one twice as long as nobody uses it
            return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def alive(pid: int, marker: str) -> bool:
    """Whether process ``pid`` exists and ``marker`` is in its command line (a pid may have a new owner).

    Where the command line cannot be read (not Linux), existence is all that is asked.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return False  # somebody else's process: not one of ours
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc/self/cmdline").exists()
    return state != "Z" and marker.encode() in command


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, or a word that there are none."""
    try:
        with log.open(errors="replace") as file:
            text = "".join(deque(file, maxlen=lines)).strip()
    except OSError:
        text = ""
    return text or "(its log is empty)"


def wait_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, what: str, timeout: float
) -> None:
    """Wait until ``ready()`` holds.

    Raises
    ------
    UsageError
        The process ended, or ``timeout`` seconds passed; the message carries the end of its log.
    """
    deadline = time.monotonic() + timeout
    while True:
        status = process.poll()
        if status is not None:
            raise UsageError(f"{what} stopped at its start (exit status {status}). The end of {log}:\n{tail(log)}")
        if ready():
            return
        if time.monotonic() > deadline:
            raise UsageError(f"{what} gave no answer within {timeout:.0f} s. The end of {log}:\n{tail(log)}")
        time.sleep(0.05)
