"""Chooses the tests of `make fast`: a verdict on the whole house in about two minutes.

A plugin of pytest. Of each test function it takes the first case; of each file as many functions, from its top, as fit
into its share of seconds. Functions known to be slow are left out: `tests/slow_functions.txt` has their names, which
`make fast-times` measures and writes. `tests/docs`, which holds the structure of the house, has no limit.

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
SLOW_SECONDS = 2.0
WHOLE = ("tests", "docs")

_HEAD = f"""\
# Test functions whose first case takes more than {SLOW_SECONDS:g} s of a core, set-up included. Written by
# `make fast-times`; `make fast` leaves them out, `make test` runs everything.
"""
_spent: defaultdict[Path, float] = defaultdict(float)
_seconds: dict[str, float] = {}
_STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the two options."""
    parser.addoption("--share", type=float, default=0.5, help="seconds that each test file gets")
    parser.addoption("--record", action="store_true", help="run all functions, and write down which are slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the first case of each test function that is not slow."""
    slow = set() if config.getoption("--record") else _slow_functions()
    kept: dict[str, pytest.Item] = {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function.rpartition("::")[2] not in slow:
            kept.setdefault(item.nodeid if _is_whole(item) else function, item)
    chosen = list(kept.values())
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Counts the seconds of each file, and what each test cost."""
    start, item.stash[_STARTED] = time.monotonic(), _core_seconds()
    try:
        return (yield)
    finally:
        _spent[item.path] += time.monotonic() - start


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Gives a test's cost to its last report, which also gets from a worker of xdist to the main process."""
    if call.when == "teardown":
        item.user_properties.append(("core_seconds", _core_seconds() - item.stash[_STARTED]))


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
        cost = dict(report.user_properties)["core_seconds"]
        assert isinstance(cost, float)
        _seconds[report.nodeid.partition("[")[0].rpartition("::")[2]] = cost


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the list of slow functions; with xdist this is done by the process that all workers report to."""
    if session.config.getoption("--record") and not hasattr(session.config, "workerinput"):
        names = sorted(name for name, seconds in _seconds.items() if seconds > SLOW_SECONDS)
        SLOW.write_text(_HEAD + "".join(f"{name}\n" for name in names), encoding="utf-8")


def _core_seconds() -> float:
    """Of this process and of those that it waited for: unlike the clock, the same on a busy machine."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _slow_functions() -> set[str]:
    lines = SLOW.read_text(encoding="utf-8").splitlines() if SLOW.exists() else []
    return {line for line in lines if not line.startswith("#")}


def _is_whole(item: pytest.Item) -> bool:
    return item.path.relative_to(item.config.rootpath).parts[: len(WHOLE)] == WHOLE
