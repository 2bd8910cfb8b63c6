"""Records in an SQLite file: a write-ahead log, so that readers never wait, and one writer at a time, who waits."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.errors import RegistryError, StorageError
from lamina.registry.records.database import Row, check_schema, damaged

BUSY_SECONDS = 60.0
_SCHEMA = "SELECT version_num FROM lamina_registry_schema"


class SqliteTransaction:
    """A transaction on an SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def all(self, sql: str, **values: Any) -> list[Row]:
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def run(self, sql: str, **values: Any) -> int:
        return self._connection.execute(sql, values).rowcount

    def hold_blobs(self, *, alone: bool) -> None:
        return  # there is one writer at a time


class SqliteDatabase:
    """An SQLite file. Safe to use from several threads."""

    def __init__(self, path: Path, create: bool = True) -> None:
        self._path, self._lock = path, threading.RLock()
        if not path.exists():
            if not create:
                raise RegistryError(
                    f"{path.parent}: there is no registry. Fix: check --registry and LAMINA_REGISTRY, or make one with "
                    "`lamina registry add RUN --name NAME`."
                )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError.wrap(error, path.parent, "making the registry") from error
        self._connection: sqlite3.Connection | None = None
        with self._errors():
            self._connection = self._connected()
            if not self._is_current():
                self._migrate()

    @contextlib.contextmanager
    def reading(self) -> Iterator[SqliteTransaction]:
        with self._transaction("BEGIN") as transaction:
            yield transaction

    @contextlib.contextmanager
    def writing(self) -> Iterator[SqliteTransaction]:
        with self._transaction("BEGIN IMMEDIATE") as transaction:
            yield transaction

    def check(self) -> list[str]:
        with self.reading() as transaction:
            found = [str(row["quick_check"]) for row in transaction.all("PRAGMA quick_check")]
            lost = transaction.all("PRAGMA foreign_key_check")
        wrong = [line for line in found if line != "ok"]
        return wrong + [f"a row of {row['table']} points at a row of {row['parent']} that is not there" for row in lost]

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[SqliteTransaction]:
        with self._lock, self._errors():
            if self._connection is None:
                self._connection = self._connected()
            connection = self._connection
            connection.execute(begin)
            try:
                yield SqliteTransaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # a promotion that was reported outlives a loss of power
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            self._use_log(connection)
        return connection

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Turns the write-ahead log on, for which SQLite itself does not wait while others read."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _is_current(self) -> bool:
        assert self._connection is not None
        try:
            row = self._connection.execute(_SCHEMA).fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return False
        return row is not None and check_schema(row[0], str(self._path))

    def _migrate(self) -> None:
        from sqlalchemy.exc import DBAPIError

        from lamina.registry.records.migrate import migrate_sqlite

        assert self._connection is not None
        self._connection.close()
        try:
            migrate_sqlite(self._path)
        except DBAPIError as error:
            raise error.orig or error from None
        self._connection = self._connected()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> RegistryError | StorageError:
        text, shown = str(error), self._path
        if "full" in text:
            return StorageError.wrap(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), shown, "writing")
        if "locked" in text or "busy" in text:
            return RegistryError(
                f"{shown}: another process has been writing for {BUSY_SECONDS:.0f} seconds. Fix: wait for it, or stop "
                "it."
            )
        if "readonly" in text or "unable to open" in text:
            return StorageError(f"{shown}: cannot be opened for writing. Fix: check the path and your rights there.")
        if re.search(r"malformed|not a database|no such|disk I/O", text):
            return damaged(shown, text)
        return RegistryError(f"{shown}: the database refused a change: {text}. Fix: run `lamina registry verify`.")
