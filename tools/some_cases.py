"""Runs some cases of each parametrized test, for `make test`; `make test CASES=0` runs all of them.

A plugin of pytest. Of a function with more cases than `--cases`, so many are kept, chosen by a hash of their names: the
choice is the same on every machine and at every commit, follows no order of the parameters, and a case that is added
does not change which of the others run. Cases that were asked for by name always run.

    python -m pytest -p tools.some_cases --cases 6
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--cases", type=int, default=0, help="cases of each test function; 0 runs all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases beyond `--cases`."""
    most: int = config.getoption("--cases")
    if not most:
        return
    by_function: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        by_function[item.nodeid.partition("[")[0]].append(item)
    kept = {item for cases in by_function.values() for item in sorted(cases, key=_place)[:most]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _place(item: pytest.Item) -> str:
    return hashlib.sha256(item.nodeid.encode()).hexdigest()
