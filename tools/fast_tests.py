"""Chooses the tests of `make fast`: a verdict on the whole house in less than two minutes.

A plugin of pytest. Of each test function it takes the first case; of each file as many functions, from its top, as fit
into its share of seconds. Functions known to be slow are left out, and files with a slow fixture: they are listed in
`tests/slow_functions.txt`, which `make fast-times` measures and writes. `tests/docs` has no share to keep to, and its
`test_structure.py` runs whole.

    python -m pytest -p tools.fast_tests                # what `make fast` runs
    python -m pytest -p tools.fast_tests --record       # every function's first case; writes the list of slow ones
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW = Path(__file__).resolve().parents[1] / "tests" / "slow_functions.txt"
SLOW_SECONDS = 1.0
# Of the clock: a test that waits, for a server or a signal, keeps a worker from other tests.
SLOW_WAITING = 4.0
# Of a fixture: whichever test of the file comes first would pay for it, so the whole file is left out.
SLOW_FIXTURE = 5.0
WHOLE = ("tests", "docs")
ALWAYS = "test_structure.py"

_HEAD = f"""\
# Test functions whose first case takes more than {SLOW_SECONDS:g} s of a core or {SLOW_WAITING:g} s of waiting,
# set-up included, and files with a fixture of more than {SLOW_FIXTURE:g} s. Written by `make fast-times`.
# `make fast` leaves them out; `make test` runs everything.
"""
_spent: defaultdict[Path, float] = defaultdict(float)
_seconds: dict[str, float] = {}
_STARTED = pytest.StashKey[float]()
_STARTED_CORE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the two options."""
    parser.addoption("--share", type=float, default=0.3, help="seconds that each test file gets")
    parser.addoption("--record", action="store_true", help="run all functions, and write down which are slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the first case of each test function that is not slow."""
    slow = set() if config.getoption("--record") else slow_functions()
    kept: dict[str, pytest.Item] = {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        file, _, name = function.rpartition("::")
        if item.path.name == ALWAYS or slow.isdisjoint((file, name)):
            kept.setdefault(item.nodeid if _is_whole(item) else function, item)
    chosen = list(kept.values())
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Counts the seconds of each file, and what each test cost."""
    item.stash[_STARTED], item.stash[_STARTED_CORE] = time.monotonic(), _core_seconds()
    try:
        return (yield)
    finally:
        _spent[item.path] += time.monotonic() - item.stash[_STARTED]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Gives a test's cost to its last report, which also gets from a worker of xdist to the main process."""
    if call.when == "setup":
        item.user_properties.append(("fixture_seconds", call.duration))
    if call.when == "teardown":
        waited = time.monotonic() - item.stash[_STARTED]
        cost = max(_core_seconds() - item.stash[_STARTED_CORE], waited * SLOW_SECONDS / SLOW_WAITING)
        item.user_properties.append(("cost_seconds", cost))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what comes after a file's share."""
    share = float(item.config.getoption("--share") or 0.0)
    limited = not item.config.getoption("--record") and not _is_whole(item)
    if limited and _spent[item.path] > share:
        pytest.skip("its file has had its share of make fast")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes the cost of each function."""
    if report.when == "teardown":
        costs = dict(report.user_properties)
        cost, fixture = costs["cost_seconds"], costs["fixture_seconds"]
        assert isinstance(cost, float) and isinstance(fixture, float)
        file, _, name = report.nodeid.partition("[")[0].rpartition("::")
        _seconds[file if fixture > SLOW_FIXTURE else name] = cost


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the list of slow functions; with xdist this is done by the process that all workers report to."""
    if session.config.getoption("--record") and not hasattr(session.config, "workerinput"):
        names = sorted(name for name, seconds in _seconds.items() if seconds > SLOW_SECONDS)
        SLOW.write_text(_HEAD + "".join(f"{name}\n" for name in names), encoding="utf-8")


def _core_seconds() -> float:
    """Of this process and of those that it waited for: unlike the clock, the same on a busy machine."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def slow_functions() -> set[str]:
    """Returns the names of slow test functions, and files with slow fixtures."""
    lines = SLOW.read_text(encoding="utf-8").splitlines() if SLOW.exists() else []
    return {line for line in lines if not line.startswith("#")}


def _is_whole(item: pytest.Item) -> bool:
    return item.path.relative_to(item.config.rootpath).parts[: len(WHOLE)] == WHOLE
