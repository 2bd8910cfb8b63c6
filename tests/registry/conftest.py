"""A PostgreSQL server for the tests of one session, started by the first test that needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that runs."""
    with running_postgres() as server:
        yield server
