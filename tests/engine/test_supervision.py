"""Child processes: restarted when they die, ended with their parent however it ends, nobody else harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.core.errors import UsageError
from stream.engine import processes
from stream.engine.supervise import BACKOFF_LONGEST, HEALTHY, Child, Supervisor, restart_delay

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
# Starts a grandchild and tells its pid.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open(sys.argv[1], 'w').write(str(child.pid))
time.sleep(60)
"""


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def wait(until: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_dead_are_restarted_and_all_end_at_the_stop(tmp_path):
    log = tmp_path / "child.log"
    first: dict[str, int] = {}

    def watch() -> None:
        now = supervisor.pids()
        if log.exists() and log.read_text().count("up") == 1 and not first:
            first.update(now)
            os.kill(now["a"], signal.SIGKILL)
        elif log.exists() and log.read_text().count("up") == 2:
            supervisor.stop()

    supervisor = Supervisor(
        [Child("a", python(SLEEPER), log=log), Child("b", python("import time; time.sleep(60)"))], watch=watch
    )
    assert supervisor.run() == 1
    assert len(first) == 2
    assert supervisor.pids() == {}
    for pid in first.values():
        assert gone(pid)


def test_who_ignores_the_request_is_killed_after_the_grace(tmp_path):
    log = tmp_path / "log"

    def watch() -> None:
        if log.exists() and "up" in log.read_text():
            pids.update(supervisor.pids())
            supervisor.stop()

    pids: dict[str, int] = {}
    supervisor = Supervisor([Child("stubborn", python(STUBBORN), log=log)], grace=0.5, watch=watch)
    started = time.monotonic()
    supervisor.run()
    assert time.monotonic() - started < 10.0
    assert gone(pids["stubborn"])


SUPERVISOR = """
import sys
from stream.engine.supervise import Child, Supervisor
children = [Child(str(i), (sys.executable, "-c", {code!r})) for i in range(3)]
def watch():
    open(sys.argv[1], "w").write(" ".join(map(str, supervisor.pids().values())))
supervisor = Supervisor(children, grace=2.0, watch=watch)
supervisor.run()
"""


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGINT, SLEEPER, 0),
        (signal.SIGTERM, SLEEPER, 0),
        (signal.SIGTERM, STUBBORN, 0),
        (signal.SIGKILL, SLEEPER, -9),
        (signal.SIGKILL, STUBBORN, -9),
    ],
)
def test_however_the_supervisor_ends_no_orphans_are_left(number, code, status, tmp_path):
    pids_file = tmp_path / "pids"
    bystander = subprocess.Popen(python("import time; time.sleep(60)"))
    script = textwrap.dedent(SUPERVISOR).format(code=code)
    process = subprocess.Popen(python(script, str(pids_file)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: pids_file.exists() and len(pids_file.read_text().split()) == 3, 20.0)
        pids = [int(pid) for pid in pids_file.read_text().split()]
        time.sleep(0.3)  # the children have become what they are
        process.send_signal(number)
        assert process.wait(20) == status
        wait(lambda: all(gone(pid) for pid in pids))
        assert bystander.poll() is None
    finally:
        process.kill()
        bystander.kill()
        bystander.wait()


def test_what_a_child_started_ends_with_it(tmp_path):
    note = tmp_path / "pid"
    child = processes.spawn(python(PARENT, str(note)), log=tmp_path / "log")
    wait(lambda: note.exists() and note.read_text() != "")
    grandchild = int(note.read_text())
    assert processes.stop(child, 2.0) == -signal.SIGTERM
    wait(lambda: gone(grandchild))


def test_a_thread_may_not_start_children_that_would_end_with_it():
    errors: list[Exception] = []

    def start() -> None:
        try:
            processes.spawn(python("pass"))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_two_children_of_one_name_are_a_mistake():
    with pytest.raises(UsageError, match="one name"):
        Supervisor([Child("a", ("/bin/true",)), Child("a", ("/bin/true",))])


def test_restarts_come_slower_and_slower_until_a_child_stays():
    delays = [restart_delay(deaths, 1.0) for deaths in range(1, 40)]
    assert delays == sorted(delays)
    assert delays[0] <= 1.0
    assert delays[-1] == BACKOFF_LONGEST
    assert restart_delay(30, HEALTHY) == 0.0


def test_a_port_is_free_until_somebody_listens():
    import socket

    port = processes.free_port()
    assert processes.port_is_free(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not processes.port_is_free(port)


def test_a_free_port_is_none_of_those_that_are_spoken_for(monkeypatch):
    """The system gives a port again that nobody uses yet: two for one broker once were the same."""
    import socket

    offers = iter([5001, 5001, 5002])

    class Offered(socket.socket):
        def bind(self, address):
            super().bind(address)
            self.offer = next(offers)

        def getsockname(self):
            return "127.0.0.1", self.offer

    monkeypatch.setattr(processes.socket, "socket", Offered)
    assert processes.free_port() == 5001
    assert processes.free_port(5001) == 5002


def test_alive_means_that_very_program():
    marker = "a-marker-of-this-test"
    process = subprocess.Popen(python("import time; time.sleep(60)", marker))
    try:
        wait(lambda: processes.alive(process.pid, marker))
        assert not processes.alive(process.pid, "another-marker")
    finally:
        process.kill()
    wait(lambda: not processes.alive(process.pid, marker))  # a zombie is not alive
    process.wait()
    assert not processes.alive(process.pid, marker)
    assert not processes.alive(2**22 + 1, "x")


def test_a_program_that_ends_at_its_start_is_told_with_its_log(tmp_path):
    log = tmp_path / "log"
    process = processes.spawn(python("print('no disk'); raise SystemExit(4)"), log=log)
    with pytest.raises(UsageError, match=r"exit status 4(.|\n)*no disk"):
        processes.wait_ready(process, lambda: False, log, "the program", 10.0)


def test_a_program_that_never_answers_is_told(tmp_path):
    log = tmp_path / "log"
    process = processes.spawn(python(SLEEPER), log=log)
    try:
        with pytest.raises(UsageError, match="no answer within"):
            processes.wait_ready(process, lambda: False, log, "the program", 0.3)
    finally:
        processes.stop(process, 2.0)


# Becomes whom it is told to be, and says so.
STAND_IN = """
import sys, time
print('ready', flush=True)
print('I am', sys.stdin.readline(), flush=True)
time.sleep(60)
"""


def test_a_stand_in_takes_the_place_of_the_dead_and_is_followed_by_another(tmp_path):
    logs = {name: tmp_path / name for name in ("a", "b")}
    killed: list[int] = []
    seen: list[dict[str, int]] = []

    def said(word: str) -> int:
        return sum(log.read_text().count(word) for log in logs.values() if log.exists())

    def watch() -> None:
        now = supervisor.pids()
        ready = "stand-in:a" in now and said("ready") == len(killed) + 1 and said("up") == 2
        if ready and said("I am") == len(killed):
            seen.append(now)
            if len(killed) == 2:
                supervisor.stop()
            else:
                killed.append(now["ab"[len(killed)]])
                os.kill(killed[-1], signal.SIGKILL)

    children = [
        Child(name, python(SLEEPER), log=log, stand_in=python(STAND_IN), order=f"another {name}")
        for name, log in logs.items()
    ]
    supervisor = Supervisor(children, watch=watch, stand_in_after=0.2)
    assert supervisor.run() == 2
    first, second, third = seen
    assert second["a"] == first["stand-in:a"]
    assert second["b"] == first["b"]
    assert third["b"] == second["stand-in:a"]
    assert "I am another a" in logs["a"].read_text()  # in the log of the one that started it: it has not moved yet
    assert "I am another b" in logs["a"].read_text()
    for pid in {*first.values(), *second.values(), *third.values()}:
        assert gone(pid)


def test_a_stand_in_that_died_while_it_waited_is_replaced_by_a_plain_start(tmp_path):
    log = tmp_path / "log"
    done: list[str] = []

    def watch() -> None:
        now = supervisor.pids()
        if not done and "stand-in:a" in now and log.exists() and "ready" in log.read_text():
            done.append("killed")
            os.kill(now["stand-in:a"], signal.SIGKILL)
            os.kill(now["a"], signal.SIGKILL)
        elif done and log.read_text().count("up") == 2:
            supervisor.stop()

    child = Child("a", python(SLEEPER), log=log, stand_in=python(STAND_IN), order="a")
    supervisor = Supervisor([child], watch=watch, stand_in_after=0.1)
    assert supervisor.run() >= 1


def test_who_was_killed_comes_back_sooner_than_who_fails():
    assert restart_delay(20, 1.0, -signal.SIGKILL) < restart_delay(20, 1.0, -signal.SIGSEGV) == BACKOFF_LONGEST
