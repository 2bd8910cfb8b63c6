"""From a reference to a folder that is an adapter folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lamina.cache.prune import cache_entries
from lamina.errors import ConfigError, RegistryError
from lamina.registry.places import versions_in
from lamina.registry.registry import Registry
from lamina.registry.resolve import local_path, resolve
from tests.support.registry import make_adapter


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A version with an alias, in the default registry, and an empty cache."""
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAMINA_REGISTRY", str(tmp_path / "registry"))
    found = Registry()
    found.add(make_adapter(tmp_path / "a"), "support")
    found.set_alias("support:1", "canary")
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_is_the_adapter_folder(registry: Registry, tmp_path: Path) -> None:
    digest = registry.find("support").digest
    folders = {resolve(ref) for ref in ("support", "support:1", "support@canary", f"support@{digest[:20]}")}
    assert folders == {resolve("support", registry), resolve("support", tmp_path / "registry")}
    (folder,) = folders
    assert content(folder) == content(tmp_path / "a")
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    assert [entry.path for entry in cache_entries(["adapters"])] == [folder]


def test_references_mean_the_registry_that_is_named(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    other.add(make_adapter(tmp_path / "b", 7), "support")
    assert local_path("support:1") == resolve("support:1", registry) != resolve("support:1", other)
    with versions_in(tmp_path / "other"):
        assert local_path("support:1") == resolve("support:1", other)
        with versions_in(None):
            assert local_path("support:1") == resolve("support:1", other)
    assert local_path("support:1") == resolve("support:1", registry)


def test_paths_stay_paths(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("runs/a", "support", "C:/x", "a/b@c", "x@", "~/x@y/z", ".", "support:x"):
        assert local_path(text) == Path(text)
    (tmp_path / "support@canary").mkdir()  # what exists is meant
    assert local_path("support@canary") == Path("support@canary")
    with pytest.raises(ConfigError, match="Did you mean 'canary'"):
        local_path("support@canari")


def test_a_folder_that_was_changed_is_written_again(registry: Registry, tmp_path: Path) -> None:
    folder = resolve("support")
    for spoil in (
        lambda: (folder / "lamina.json").unlink(),
        lambda: (folder / "x").write_text("x"),
        lambda: os.truncate(folder / "adapter_model.safetensors", 3),
    ):
        spoil()
        assert content(resolve("support")) == content(tmp_path / "a")


def test_a_damaged_blob_gives_no_folder(registry: Registry, tmp_path: Path) -> None:
    digest = next(f.sha256 for f in registry.show("support").manifest.files if f.name.endswith("safetensors"))
    path = registry.blobs.path(digest)  # type: ignore[attr-defined]
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(RegistryError, match="not those that the digest is of"):
        resolve("support")
    assert not [entry for entry in (tmp_path / "cache" / "adapters").iterdir() if entry.is_dir()]
    path.unlink()
    with pytest.raises(RegistryError, match="has lost this file"):
        resolve("support")


def test_many_at_once(registry: Registry, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve("support@canary"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1 and content(found[0]) == content(tmp_path / "a")


def test_there_is_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_REGISTRY", str(tmp_path / "none"))
    with pytest.raises(RegistryError, match="there is no registry"):
        local_path("support@prod")
