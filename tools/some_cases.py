"""Runs some cases of each parametrized test, for `make test`; `make test CASES=0` runs all of them.

A plugin of pytest. Of a function with more cases than `--cases`, so many are kept, chosen by a hash of their names: the
choice is the same on every machine and at every commit, follows no order of the parameters, and a case that is added
replaces at most one of those that run. Cases that were asked for by name always run.

With `--turn`, as in CI, three in eight of the slow functions (`tests/slow_functions.txt`) run, and the others wait for
another turn; which ones run is drawn anew for each value, such as a commit.

    python -m pytest -p tools.some_cases --cases 6 --turn 4f2a91c
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest
from tools.fast_tests import slow_functions


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--cases", type=int, default=0, help="cases of each test function; 0 runs all")
    parser.addoption("--turn", default="", help="draws the slow functions that run; without it, all do")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases beyond `--cases`, and the slow functions whose turn it is not."""
    most: int = config.getoption("--cases") or len(items)
    turn: str = config.getoption("--turn")
    slow = slow_functions() if turn else set()
    by_function: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        function = item.nodeid.partition("[")[0]
        file, _, name = function.rpartition("::")
        if slow.isdisjoint((file, name)) or _digest(f"{turn} {name}") < "6":
            by_function[function].append(item)
    kept = {item for cases in by_function.values() for item in sorted(cases, key=_place)[:most]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _place(item: pytest.Item) -> str:
    return _digest(item.nodeid)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
