"""Blobs: whole under their digest or not there, in a folder and through fsspec, and what a full disk leaves."""

from __future__ import annotations

import errno
import io
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, RegistryError, StorageError
from lamina.registry import blobs as blobs_module
from lamina.registry.blobs import Blobs, FolderBlobs, copy_blob, open_blobs, read_blob
from lamina.registry.digests import digest_of
from lamina.registry.registry import Registry
from tests.support.registry import make_adapter

CONTENT = bytes(range(256)) * 10
DIGEST = digest_of(CONTENT)


@pytest.fixture(params=["folder", "memory", "file"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """An empty place of each kind."""
    places = {"folder": tmp_path / "blobs", "memory": f"memory://{uuid.uuid4().hex}", "file": f"file://{tmp_path}/f"}
    return open_blobs(places[request.param])


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, os.urandom(3 * 2**20 + 1)])
def test_what_is_put_is_read(blobs: Blobs, tmp_path: Path, content: bytes) -> None:
    digest, file = digest_of(content), tmp_path / "x"
    file.write_bytes(content)
    assert not blobs.has(digest)
    blobs.put(file, digest)
    blobs.put(content, digest)
    assert blobs.has(digest) and read_blob(blobs, digest) == content
    assert [(found, size) for found, size, _ in blobs.listed()] == [(digest, len(content))]
    copied = io.BytesIO()
    copy_blob(blobs, digest, len(content), copied)
    assert copied.getvalue() == content
    blobs.remove(digest)
    blobs.remove(digest)
    assert not blobs.has(digest) and list(blobs.listed()) == []
    with pytest.raises(RegistryError, match="has lost this file"):
        read_blob(blobs, digest)


def test_bytes_of_another_digest_are_not_stored(blobs: Blobs) -> None:
    with pytest.raises(RegistryError, match="changed while it was being read"):
        blobs.put(b"other", DIGEST)
    assert not blobs.has(DIGEST) and list(blobs.listed()) == [] and blobs.leftovers(float("inf")) == []


def test_a_changed_byte_is_found_and_putting_it_again_heals(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(CONTENT, DIGEST)
    path = blobs.path(DIGEST)
    for damaged in (CONTENT[:-1], CONTENT + b"x", b"y" + CONTENT[1:], b""):
        path.chmod(0o644)
        path.write_bytes(damaged)
        with pytest.raises(RegistryError, match="not those that the digest is of"):
            read_blob(blobs, DIGEST)
        with pytest.raises(RegistryError, match="not those that the digest is of"):
            copy_blob(blobs, DIGEST, len(CONTENT), io.BytesIO())
        blobs.put(CONTENT, DIGEST)
        assert read_blob(blobs, DIGEST) == CONTENT


def test_a_large_blob_is_not_read_as_a_small_one(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put(CONTENT, DIGEST)
    with pytest.raises(RegistryError):
        read_blob(blobs, DIGEST, most=len(CONTENT) - 1)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(make_adapter(tmp_path / "a", 0), "support")
    copy, written = blobs_module._copy_checked, []

    def full(source: Any, target: Any, *rest: Any) -> None:
        written.append(target)
        if len(written) == 3:
            target.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(source, target, *rest)

    monkeypatch.setattr(blobs_module, "_copy_checked", full)
    with pytest.raises(StorageError, match="the disk is full"):
        registry.add(make_adapter(tmp_path / "b", 1), "support")
    assert [version.number for version in registry.versions("support")] == [1]
    assert registry.verify().passed
    assert not list(tmp_path.rglob(".writing-*"))
    assert registry.add(tmp_path / "b", "support").version.number == 2


def test_a_place_that_fsspec_does_not_know() -> None:
    for url in ("nonsense://bucket", "memory-x://a"):
        with pytest.raises(ConfigError, match="cannot be used for blobs"):
            open_blobs(url)


def test_errors_of_a_place_are_told(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(blobs, FolderBlobs):
        pytest.skip("folders have errors of the system alone")

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("SlowDown: try later")

    monkeypatch.setattr(blobs._system, "open", broken)  # type: ignore[attr-defined]
    with pytest.raises(RegistryError, match="SlowDown"):
        blobs.put(CONTENT, DIGEST)
    assert not blobs.has(DIGEST)


def test_a_registry_with_its_blobs_elsewhere(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/r.db?blobs=memory://{uuid.uuid4().hex}"
    registry = Registry(place)
    registry.add(make_adapter(tmp_path / "a", 0), "support")
    registry.set_alias("support:1", "canary")
    assert (registry.folder("support@canary") / "lamina.json").is_file()
    assert registry.verify().passed and not (tmp_path / "blobs").exists()
    registry.delete_alias("support@canary")
    assert registry.gc(window_days=0.0, last_targets=1, grace_seconds=-10.0).versions == []  # its last target
    registry.add(make_adapter(tmp_path / "b", 1), "help")
    assert registry.gc(window_days=0.0, grace_seconds=-10.0).versions == ["help:1"]
    assert registry.verify().passed
