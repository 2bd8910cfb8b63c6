"""Opens the records of a registry, wherever they are."""

from __future__ import annotations

from pathlib import Path

from lamina.registry.places import Place
from lamina.registry.records.database import Database


def open_database(place: Place, create: bool = True) -> Database:
    """Opens the records of a registry; missing migrations are run.

    Args:
        place: Where the registry is.
        create: Whether to make one where there is none.

    Raises:
        NewerVersionError: A newer lamina has changed the tables.
        RegistryError: The database is damaged, cannot be reached, or is not there and `create` is false.
        StorageError: It cannot be made.
    """
    if isinstance(place.records, Path):
        from lamina.registry.records.sqlite import SqliteDatabase

        return SqliteDatabase(place.records, create)
    from lamina.registry.records.postgres import PostgresDatabase

    return PostgresDatabase(place.records, place.shown)
