"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# One thread a process, as in the workers: results and times do not depend on the machine's core count.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402

# No deadlines: a busy machine is no defect. In CI the examples are the same every time; at a desk new ones are tried.
hypothesis_settings.register_profile("desk", deadline=None)
hypothesis_settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "desk")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # tests/synthetic.py


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real survey data beside the project; skips the test where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real survey data (../shared/data) is not beside this checkout")
    return folder


@pytest.hookimpl(tryfirst=True)  # before xdist's own, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the group of each test for ``--dist loadgroup``: a group is run by one process.

    The shared night, what `process` makes of it and the running system take minutes: whoever uses them is one group.
    All others go by file, so that a file's fixtures are made once.
    """
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        of_night = names & {"processed", "system"} or item.nodeid.startswith(("tests/e2e/", "tests/faults/"))
        item.add_marker(pytest.mark.xdist_group("the night" if of_night else item.nodeid.partition("::")[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to go on where xdist did not take the groups: each process would make a night of its own."""
    grouped = getattr(session.config.option, "loadgroup", False)  # a process of xdist, told to keep groups together
    if grouped and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("this pytest-xdist does not keep groups of tests together: see constraints.txt")


from nights import night, processed, system  # noqa: E402, F401 - fixtures
from services import broker, client, kafka, make_topic, prefix, redis_url, settings  # noqa: E402, F401 - fixtures
