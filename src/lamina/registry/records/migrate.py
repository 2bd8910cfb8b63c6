"""Brings the tables of a registry up to date with alembic, in one transaction."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from lamina.registry.records.tables import METADATA

_MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "lamina_registry_schema"


def migrate(connection: Connection) -> None:
    """Runs the migrations that are missing, within the connection's transaction."""
    script = ScriptDirectory(str(_MIGRATIONS))
    with EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs("head", revision), destination_rev="head"
    ) as environment:
        environment.configure(
            connection=connection, target_metadata=METADATA, version_table=VERSION_TABLE, transactional_ddl=False
        )
        environment.run_migrations()


def migrate_sqlite(path: Path) -> None:
    """Runs the migrations that are missing on an SQLite file; one process at a time, and whole or not at all."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 60.0, "isolation_level": None})
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                migrate(connection)
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
    finally:
        engine.dispose()
