"""The records: migrations, places, and databases that are damaged, newer, busy or gone."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from lamina.errors import ConfigError, LaminaError, NewerVersionError, RegistryError
from lamina.registry.places import default_place, find_place
from lamina.registry.records import sqlite as sqlite_module
from lamina.registry.records.database import HEAD, KNOWN
from lamina.registry.records.migrate import VERSION_TABLE
from lamina.registry.records.tables import METADATA
from lamina.registry.registry import Registry
from tests.support.postgres import Postgres
from tests.support.registry import make_adapter


def test_migrations_lead_to_the_tables(tmp_path: Path, postgres: Postgres) -> None:
    place = postgres.new_database(tmp_path / "blobs")
    for opened in (Registry(tmp_path / "r"), Registry(place)):
        records = opened.place.records
        url = records if isinstance(records, str) else f"sqlite:///{records}"
        with create_engine(url).connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, METADATA) == []
            assert context.get_current_revision() == HEAD
        opened.close()


def test_every_migration_is_known() -> None:
    folder = Path(sqlite_module.__file__).parent / "migrations" / "versions"
    numbers = sorted(path.name[1:5] for path in folder.glob("m*.py"))
    assert list(KNOWN) == numbers and numbers[-1] == HEAD


def test_a_newer_schema_is_told(tmp_path: Path, postgres: Postgres) -> None:
    for place in (str(tmp_path / "r"), postgres.new_database(tmp_path / "blobs")):
        with Registry(place) as registry, registry.records.writing() as tx:
            tx.run(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        with pytest.raises(NewerVersionError, match=r"schema '9999'.* Fix: pip install"):
            Registry(place)


@pytest.mark.parametrize("kind", ["noise", "text", "cut", "middle"])
def test_a_corrupt_file_is_told(tmp_path: Path, kind: str) -> None:
    with Registry(tmp_path / "r") as registry:
        for seed in range(4):
            registry.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
    path = tmp_path / "r" / "registry.db"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    content = path.read_bytes()
    damaged = {
        "noise": bytes(255 - byte for byte in content),
        "text": b"hello\n" * 100,
        "cut": content[: len(content) // 3],
        "middle": content[:4096] + b"\xff" * (len(content) - 4096),
    }
    path.write_bytes(damaged[kind])
    try:
        with Registry(tmp_path / "r") as registry:
            assert registry.verify().problems  # opening reads a part of the file alone
    except RegistryError as error:
        assert "damaged" in str(error) and "Fix: " in str(error)
    assert path.read_bytes() == damaged[kind]  # nothing is made of it


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no registry"):
        Registry(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_a_writer_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry(tmp_path / "r").close()
    monkeypatch.setattr(sqlite_module, "BUSY_SECONDS", 0.2)
    other = sqlite3.connect(tmp_path / "r" / "registry.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Registry(tmp_path / "r") as registry:
        assert registry.entries() == ([], 0)  # readers do not wait
        with pytest.raises(RegistryError, match="another process has been writing"):
            registry.add(make_adapter(tmp_path / "a"), "support")
    other.execute("ROLLBACK")


def test_opened_by_many_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def opened() -> None:
        try:
            Registry(tmp_path / "r").close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=opened) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_postgres_gone_in_the_middle_of_a_promotion(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = postgres.new_database(tmp_path / "blobs")
    with Registry(place) as registry:
        for seed in range(2):
            registry.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
        registry.promote("support:1", "prod", override="the first")
        from lamina.registry import aliases

        def gone(tx: Any, *arguments: Any) -> Any:
            postgres.stop("immediate")
            return tx.all("SELECT 1 AS one")

        with monkeypatch.context() as patch:
            patch.setattr(aliases, "live_version", gone)  # after the transaction has begun, before the swap
            try:
                with pytest.raises(RegistryError, match="the database cannot be used"):
                    registry.promote("support:2", "prod", override="better")
                with pytest.raises(RegistryError, match=r"the database cannot be used.* Fix: "):
                    registry.promote("support:2", "prod", override="better")
            finally:
                postgres.start()
        assert registry.find("support@prod").number == 1  # the same object goes on
        assert len(registry.history("support@prod")) == 1 and registry.verify().passed
        assert registry.promote("support:2", "prod", override="better").changed


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMINA_REGISTRY", raising=False)
    assert default_place().endswith("lamina/registry")
    monkeypatch.setenv("LAMINA_REGISTRY", str(tmp_path))
    assert find_place().records == tmp_path / "registry.db" and find_place().blobs == tmp_path / "blobs"
    found = find_place("postgresql://ada:secret@db.example:5432/lamina?sslmode=require&blobs=s3://bucket/x")
    assert found.records == "postgresql+psycopg://ada:secret@db.example:5432/lamina?sslmode=require"
    assert found.blobs == "s3://bucket/x" and "secret" not in found.shown
    assert find_place("sqlite:////srv/r.db").records == Path("/srv/r.db")
    assert find_place("sqlite:////srv/r.db?blobs=/mnt/b").blobs == Path("/mnt/b")
    assert find_place("file:///srv/r").records == Path("/srv/r/registry.db")
    (tmp_path / "file").write_text("")
    for place, said in (
        ("postgresql://db/lamina", "holds records, and no files"),
        ("s3://bucket/x", "can hold blobs, and no records"),
        ("mysql://db/x", "can hold blobs, and no records"),
        (str(tmp_path / "file"), "is a file"),
    ):
        with pytest.raises(ConfigError, match=said):
            find_place(place)


def test_postgres_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LaminaError, match=r"cannot be used.* Fix: ") as error:
        Registry(f"postgresql://ada:secret@/x?host={tmp_path}&blobs={tmp_path}")
    assert "secret" not in str(error.value)
