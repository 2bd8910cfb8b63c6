"""What a database is to the registry: transactions that run SQL, and errors that say what to do."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from lamina.errors import NewerVersionError, RegistryError

# The newest migration; a schema that is not among these was written by a newer lamina.
HEAD = "0001"
KNOWN = ("0001",)

Row = dict[str, Any]


class Transaction(Protocol):
    """A transaction."""

    def all(self, sql: str, **values: Any) -> list[Row]:
        """Runs a statement, with `:name` for each value, and returns its rows."""
        ...

    def run(self, sql: str, **values: Any) -> int:
        """Runs a statement and returns how many rows it changed."""
        ...

    def hold_blobs(self, *, alone: bool) -> None:
        """Keeps blobs from being removed until the transaction ends; `alone`, so that it may remove them itself."""
        ...


class Database(Protocol):
    """A database with the tables of this version."""

    def reading(self) -> AbstractContextManager[Transaction]:
        """A transaction that sees one state.

        Raises:
            RegistryError: The database is damaged, or cannot be reached.
        """
        ...

    def writing(self) -> AbstractContextManager[Transaction]:
        """A transaction that is kept if its block succeeds, and leaves nothing if it fails.

        Raises:
            RegistryError: The database is damaged, cannot be reached, or was not free in time.
        """
        ...

    def check(self) -> list[str]:
        """Returns what the database itself finds wrong."""
        ...

    def close(self) -> None:
        """Closes it."""
        ...


def check_schema(found: str, shown: str) -> bool:
    """Returns whether a schema is the newest; an older one needs migrations.

    Raises:
        NewerVersionError: It is newer than this version.
    """
    if found not in KNOWN:
        reason = f"its tables have the schema {found!r}, and this version knows schemas up to {HEAD}"
        raise NewerVersionError(shown, "", reason)
    return found == HEAD


def damaged(shown: Path | str, reason: object) -> RegistryError:
    """The error of a database that cannot be read."""
    return RegistryError(
        f"{shown}: the registry's records are damaged ({' '.join(str(reason).split())}). Fix: put back a copy of the "
        "file; or move it away and `lamina registry import` an export. The blobs beside it are not touched."
    )
