"""Records in PostgreSQL, through SQLAlchemy and psycopg: for registries that several machines write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lamina.errors import ConfigError, Problem, RegistryError
from lamina.registry.records.database import Row, check_schema

try:
    import psycopg
except ImportError:
    psycopg = None

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from lamina.registry.records.migrate import VERSION_TABLE, migrate

# Advisory locks, by numbers of our own: migrations, and the removal of blobs.
_MIGRATING = 0x6C616D01
_BLOBS = 0x6C616D02
_CONNECT_SECONDS = 10
_LOCK_SECONDS = 60


class PostgresTransaction:
    """A transaction in PostgreSQL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, sql: str, **values: Any) -> list[Row]:
        return [dict(row) for row in self._connection.execute(text(sql), values).mappings()]

    def run(self, sql: str, **values: Any) -> int:
        return self._connection.execute(text(sql), values).rowcount

    def hold_blobs(self, *, alone: bool) -> None:
        kind = "" if alone else "_shared"
        self._connection.execute(text(f"SELECT pg_advisory_xact_lock{kind}(:number)"), {"number": _BLOBS})


class PostgresDatabase:
    """A PostgreSQL database. Safe to use from several threads."""

    def __init__(self, url: str, shown: str) -> None:
        if psycopg is None:
            message = "is in PostgreSQL, and psycopg is not installed"
            raise ConfigError(Problem("--registry", message, "pip install 'lamina[postgres]'"))
        self._shown = shown
        options = f"-c lock_timeout={_LOCK_SECONDS * 1000} -c statement_timeout={5 * _LOCK_SECONDS * 1000}"
        with self._errors():
            self._engine = create_engine(
                url, pool_pre_ping=True, connect_args={"connect_timeout": _CONNECT_SECONDS, "options": options}
            )
            with self._engine.begin() as connection:
                if not self._is_current(connection):
                    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATING})
                    if not self._is_current(connection):
                        migrate(connection)

    @contextlib.contextmanager
    def reading(self) -> Iterator[PostgresTransaction]:
        same = self._engine.execution_options(isolation_level="REPEATABLE READ")
        with self._errors(), same.begin() as connection:
            yield PostgresTransaction(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[PostgresTransaction]:
        with self._errors(), self._engine.begin() as connection:
            yield PostgresTransaction(connection)

    def check(self) -> list[str]:
        return []  # PostgreSQL holds its own constraints

    def close(self) -> None:
        self._engine.dispose()

    def _is_current(self, connection: Connection) -> bool:
        if not inspect(connection).has_table(VERSION_TABLE):
            return False
        row = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).first()
        return row is not None and check_schema(row[0], self._shown)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            reason = _line(error)
            raise RegistryError(
                f"{self._shown}: the database refused a change: {reason}. Fix: run `lamina registry verify`."
            ) from error
        except (OperationalError, DBAPIError) as error:
            raise RegistryError(
                f"{self._shown}: the database cannot be used: {_line(error)}. Nothing was changed by what was under "
                "way, unless the connection was lost in its very last moment. Fix: see that the server runs, that the "
                "URL and your rights are right, and look at `lamina registry history` before running it again."
            ) from error
        except SQLAlchemyError as error:
            raise RegistryError(f"{self._shown}: the database cannot be used: {_line(error)}.") from error


def _line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:300].rstrip(".")
