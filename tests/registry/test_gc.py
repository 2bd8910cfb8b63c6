"""What `gc` removes, and what it must not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, RegistryError
from lamina.registry import adding, archive, hub, materialize, verifying
from lamina.registry.registry import Registry
from tests.support.registry import make_adapter, make_record

NOW: dict[str, Any] = {"window_days": 0.0, "grace_seconds": -10.0}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Six versions that nothing points at."""
    found = Registry(tmp_path / "registry")
    for seed in range(6):
        found.add(make_adapter(tmp_path / f"a{seed}", seed), "support")
    return found


def left(registry: Registry) -> list[int]:
    """Numbers of the versions whose files are there."""
    return [version.number for version in registry.versions("support") if version.removed is None]


def test_nothing_new_is_removed(registry: Registry) -> None:
    assert registry.gc().as_json() == {"versions": [], "blobs": 0, "bytes": 0, "dry_run": False}


def test_what_an_alias_and_its_last_targets_need_stays(registry: Registry) -> None:
    registry.set_alias("support:1", "canary")
    for number in (2, 3, 4):
        registry.promote(f"support:{number}", "prod", override="test")
    registry.tag("support:5", {"keep": "for the audit"})
    planned = registry.gc(**NOW, last_targets=2, dry_run=True)
    assert left(registry) == [6, 5, 4, 3, 2, 1]
    done = registry.gc(**NOW, last_targets=2)
    assert (done.versions, done.blobs, done.bytes) == (planned.versions, planned.blobs, planned.bytes)
    assert done.versions == ["support:2", "support:6"] and done.blobs == 6 and done.bytes > 0
    assert left(registry) == [5, 4, 3, 1]
    assert registry.verify().passed
    assert registry.rollback("support@prod").after == registry.find("support:3")
    with pytest.raises(RegistryError, match="has removed its files"):
        registry.rollback("support@prod")
    assert registry.find("support@prod").number == 3
    for use in (lambda: registry.promote("support:6", "prod", override="x"), lambda: registry.folder("support:6")):
        with pytest.raises(RegistryError, match="has removed its files"):
            use()
    assert registry.entries()[0][0].versions == 4


def test_what_a_rollback_leads_to_stays_however_often_it_went_back_and_forth(registry: Registry) -> None:
    for number in (1, 2):
        registry.promote(f"support:{number}", "prod", override="test")
    for number in (3, 4, 5, 6):
        registry.promote(f"support:{number}", "prod", override="test")
        registry.rollback("support@prod")
    registry.gc(**NOW, last_targets=1)
    assert left(registry) == [2, 1]
    assert registry.rollback("support@prod").after == registry.find("support:1")


def test_the_window_of_the_history(registry: Registry) -> None:
    registry.set_alias("support:1", "canary")
    registry.set_alias("support:2", "canary")
    with registry.records.writing() as tx:
        tx.run("UPDATE versions SET created = :then", then=time.time() - 40 * 24 * 3600)
    done = registry.gc(last_targets=1, grace_seconds=-10.0)
    assert done.versions == [f"support:{number}" for number in (3, 4, 5, 6)]


def test_a_version_that_was_removed_comes_back_with_its_number(registry: Registry, tmp_path: Path) -> None:
    registry.gc(**NOW)
    assert left(registry) == [] and list(registry.blobs.listed()) == []
    added = registry.add(tmp_path / "a3", "support")
    assert added.is_new and added.version.ref == "support:4"
    assert registry.add(make_adapter(tmp_path / "new", 9), "support").version.number == 7
    assert registry.verify().passed


def test_a_name_whose_versions_are_all_removed_is_told_so(registry: Registry) -> None:
    registry.gc(**NOW)
    with pytest.raises(ConfigError, match=r"gc` has removed its files, of all versions of 'support'.*add the same"):
        registry.promote("support", "prod")


def test_a_reader_on_its_way_keeps_what_it_reads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    copy, removed = materialize.copy_blob, []

    def slow(*arguments: Any) -> None:
        removed.append(registry.gc(**NOW).versions)
        copy(*arguments)

    monkeypatch.setattr(materialize, "copy_blob", slow)
    folder = registry.folder("support:2")
    assert removed[0] == [f"support:{number}" for number in (1, 3, 4, 5, 6)] and removed[1:] == [[], []]
    for name in ("adapter_model.safetensors", "adapter_config.json", "lamina.json"):
        assert (folder / name).read_bytes() == (tmp_path / "a1" / name).read_bytes()
        assert not os.access(folder / name, os.W_OK) or os.geteuid() == 0
    assert registry.gc(**NOW).versions == ["support:2"]  # the lease has ended
    with registry.records.reading() as tx:
        assert tx.all("SELECT * FROM leases") == []


@pytest.mark.parametrize("where", ["promote", "export", "push"])
def test_a_collection_beside_a_reader_leaves_it_what_it_reads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    module, name = {
        "promote": (verifying, "read_blob"),
        "export": (archive, "copy_blob"),
        "push": (hub, "copy_blob"),
    }[where]
    read = getattr(module, name)

    def beside(*arguments: Any) -> Any:
        registry.gc(**NOW)
        return read(*arguments)

    monkeypatch.setattr(module, name, beside)
    if where == "promote":
        assert registry.promote("support:2", "prod", override="test").changed
    elif where == "export":
        assert registry.export(["support:2"], tmp_path / "x.tar").versions == ["support:2"]
    else:
        assert hub.push(registry, "support:2", "me/support", dry_run=True).files
    assert left(registry) == [2]


def test_what_a_collection_has_just_removed_is_not_called_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, read = registry.find("support:2"), verifying.read_blob
    assert registry.manifest(version).digest == version.digest

    def beside(*arguments: Any) -> Any:
        registry.gc(**NOW)
        return read(*arguments)

    monkeypatch.setattr(verifying, "read_blob", beside)
    assert registry.verify().problems == [] and left(registry) == []
    for ask in (lambda: registry.manifest(version), lambda: registry.show("support:2")):
        with pytest.raises(RegistryError, match="gc` has removed its files"):
            ask()


def test_a_lease_of_a_reader_that_died_ends(registry: Registry) -> None:
    keys = [registry.find(f"support:{number}").id for number in (1, 2)]
    with registry.records.writing() as tx:
        for key, version, expires in (("a", keys[0], time.time() + 60), ("b", keys[1], time.time() - 1)):
            sql = "INSERT INTO leases (id, version_id, expires, who) VALUES (:key, :version, :expires, 'x')"
            tx.run(sql, key=key, version=version, expires=expires)
    registry.gc(**NOW)
    assert left(registry) == [1]


def test_an_add_on_its_way_writes_again_what_was_removed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`gc` runs between the writing of an add's blobs and its transaction."""
    put, runs = adding.put, []

    def interrupted(*arguments: Any) -> None:
        put(*arguments)
        if not runs:
            runs.append(registry.gc(**NOW).blobs)

    monkeypatch.setattr(adding, "put", interrupted)
    added = registry.add(make_adapter(tmp_path / "new", 77), "support")
    assert runs and runs[0] >= 3 and added.is_new
    assert registry.verify().passed and left(registry) == [7]


def test_fresh_blobs_and_gate_records_stay(registry: Registry) -> None:
    digest = registry.store_record(make_record(registry.find("support:1")))
    count = len(list(registry.blobs.listed()))
    assert registry.gc(window_days=0.0).blobs == 0 and len(list(registry.blobs.listed())) == count
    registry.gc(**NOW)
    assert [found for found, _, _ in registry.blobs.listed()] == [digest]


def test_leftovers_of_interrupted_writes_go(registry: Registry, tmp_path: Path) -> None:
    old, new = (tmp_path / "registry" / "blobs" / "sha256" / f".writing-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    registry.gc()
    assert not old.exists() and new.exists()
