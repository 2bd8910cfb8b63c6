"""Exports: the same on both sides, and nothing lands of a file that is not what it says."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, LaminaError, NewerVersionError, RegistryError
from lamina.registry import archive
from lamina.registry.digests import canonical
from lamina.registry.registry import Registry
from tests.support.registry import make_adapter, make_record, make_run

Entries = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions, a record, a tag and two aliases."""
    found = Registry(tmp_path / "registry", who="ada@test")
    for seed in range(3):
        found.add(make_run(tmp_path / f"run{seed}", seed), "support", tags={"seed": str(seed)})
    found.store_record(make_record(found.find("support:2")))
    found.promote("support:2", "prod")
    found.set_alias("support:3", "canary")
    return found


def content(registry: Registry) -> list[Any]:
    """What is in a registry, without who and when."""
    versions = registry.versions("support")
    return [(v.number, v.digest, v.tags, registry.manifest(v)) for v in versions if v.removed is None]


def test_a_colleague_gets_the_same(registry: Registry, tmp_path: Path) -> None:
    file, digest = tmp_path / "support.tar", registry.aliases("support")[-1].evidence
    done = registry.export(["support"], file)
    assert done.versions == ["support:1", "support:2", "support:3"] and done.records == 1
    assert done.bytes == file.stat().st_size
    other = Registry(tmp_path / "other", who="bob@elsewhere")
    taken = other.import_archive(file, aliases=True)
    assert taken.added == done.versions and taken.aliases == ["support@canary", "support@prod"]
    assert content(other) == content(registry) and other.verify().passed
    assert other.find("support@prod").digest == registry.find("support@prod").digest
    for where in (registry, other):
        assert {state.alias: state.evidence for state in where.aliases("support")} == {"prod": digest, "canary": None}
    assert other.history("support@prod")[0].action == "import"
    again = other.import_archive(file, aliases=True)
    assert (again.added, again.known, again.aliases) == ([], done.versions, [])
    assert again.kept == ["support@canary", "support@prod"]
    assert len(other.history("support")) == 2
    registry.export(["support"], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == file.read_bytes()
    assert entries(file)[0][0].name == "index.json"  # any tar reads it


def test_one_version_keeps_its_number_where_that_is_free(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "one.tar"
    assert registry.export(["support@prod"], file).versions == ["support:2"]
    other = Registry(tmp_path / "other")
    assert other.import_archive(file).added == ["support:2"] and other.history("support") == []
    assert other.add(tmp_path / "run0", "support").version.number == 3
    third = Registry(tmp_path / "third")
    third.add(make_adapter(tmp_path / "x", 50), "help")
    third.add(make_adapter(tmp_path / "y", 51), "help")
    assert third.import_archive(file, name="help").added == ["help:3"]
    assert third.verify().passed
    registry.add(make_adapter(tmp_path / "z", 52), "else")
    registry.export(["support", "else:1"], file)
    with pytest.raises(ConfigError, match="stands for one entry"):
        third.import_archive(file, name="help")


def entries(path: Path) -> Entries:
    """What is in a tar, with its bytes."""
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def written(path: Path, content: Entries) -> Path:
    """Writes a tar as others would."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in content:
            archive.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    """A header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def with_index(content: Entries, change: Callable[[dict[str, Any]], object]) -> Entries:
    """The same with another index."""
    index = json.loads(content[0][1])
    change(index)
    data = canonical(index)
    return [(member("index.json", size=len(data)), data), *content[1:]]


FORM: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}


def manifest_of(content: Entries) -> bytes:
    """The manifest of the first version."""
    digest = json.loads(content[0][1])["versions"][0]["digest"]
    return next(data for info, data in content if info.name == f"blobs/{digest.removeprefix('sha256:')}")


def with_manifest(content: Entries, data: bytes) -> Entries:
    """The same with another manifest of the first version, with the digest that it has."""
    name = hashlib.sha256(data).hexdigest()

    def change(index: dict[str, Any]) -> None:
        index["versions"][0]["digest"] = f"sha256:{name}"
        index["blobs"].append({"digest": f"sha256:{name}", "size": len(data)})
        index["aliases"] = []

    return [*with_index(content, change), (member(f"blobs/{name}", size=len(data)), data)]


CHANGES: dict[str, Callable[[Entries], Entries]] = {
    "a link": lambda found: [*found, (member("blobs/x", tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "a hard link": lambda found: [*found, (member("blobs/x", tarfile.LNKTYPE, "index.json"), b"")],
    "a device": lambda found: [*found, (member("blobs/x", tarfile.CHRTYPE), b"")],
    "a folder": lambda found: [*found, (member("blobs", tarfile.DIRTYPE), b"")],
    "a pipe": lambda found: [*found, (member("blobs/x", tarfile.FIFOTYPE), b"")],
    "an absolute name": lambda found: [*found, (member("/etc/x"), b"")],
    "a name that leads out": lambda found: [*found, (member("../x"), b"")],
    "a name that leads out later": lambda found: [*found, (member("blobs/../../x"), b"")],
    "a file that is not in the index": lambda found: [*found, (member("blobs/" + "0" * 64), b"")],
    "a file twice": lambda found: [*found, found[1]],
    "a file that is missing": lambda found: found[:-1],
    "no index": lambda found: found[1:],
    "the index last": lambda found: [*found[1:], found[0]],
    "nothing": lambda found: [],
    "other bytes": lambda found: [*found[:1], (found[1][0], bytes(len(found[1][1]))), *found[2:]],
    "a version without a manifest": lambda found: with_index(
        found, lambda index: index["versions"][0].update(digest="sha256:" + "0" * 64)
    ),
    "a manifest that is none": lambda found: with_index(
        found, lambda index: index["versions"][0].update(digest=index["blobs"][0]["digest"])
    ),
    "a record that is none": lambda found: with_index(
        found, lambda index: index["records"].append(index["blobs"][0]["digest"])
    ),
    "a name with slashes": lambda found: with_index(found, lambda index: index["versions"][0].update(name="../x")),
    "a number that is none": lambda found: with_index(found, lambda index: index["versions"][0].update(number=0)),
    "an alias of nothing": lambda found: with_index(found, lambda index: index["aliases"][0].update(name="else")),
    "sizes without an end": lambda found: with_index(found, lambda index: index["blobs"][0].update(size=2**60)),
    "a negative size": lambda found: with_index(found, lambda index: index["blobs"][0].update(size=-1)),
    "too many files": lambda found: with_index(found, lambda index: index["blobs"].extend(100_000 * index["blobs"])),
    "another kind": lambda found: with_index(found, lambda index: index.update(kind="x")),
    "no versions": lambda found: with_index(found, lambda index: index.pop("versions")),
    "tags that are none": lambda found: with_index(found, lambda index: index["versions"][0].update(tags=["x"])),
    "a tag that is no text": lambda found: with_index(
        found, lambda index: index["versions"][0].update(tags={"x": ["y"]})
    ),
    "a manifest that nobody could read": lambda found: with_manifest(found, b"[" * 200_000),
    "a manifest with half a character": lambda found: with_manifest(
        found, json.dumps({**json.loads(manifest_of(found)), "method": "\ud800"}, **FORM).encode()
    ),
    "a manifest with NaN": lambda found: with_manifest(
        found, json.dumps({**json.loads(manifest_of(found)), "settings": {"r": math.nan}}, **FORM).encode()
    ),
    "a live alias without evidence": lambda found: with_index(
        found, lambda index: index["aliases"][1].update(evidence=None)
    ),
    "a live alias with evidence of nothing": lambda found: with_index(
        found, lambda index: index["aliases"][1].update(evidence="sha256:" + "0" * 64)
    ),
    "a live alias with the evidence of another version": lambda found: with_index(
        found, lambda index: index["aliases"][1].update(digest=index["versions"][0]["digest"])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_lands_of_a_file_that_is_not_what_it_says(registry: Registry, tmp_path: Path, change: str) -> None:
    registry.export(["support"], tmp_path / "good.tar")
    bad = written(tmp_path / "bad.tar", CHANGES[change](entries(tmp_path / "good.tar")))
    other = Registry(tmp_path / "other")
    with pytest.raises((RegistryError, ConfigError)) as error:
        other.import_archive(bad, aliases=True)
    assert "Fix: " in str(error.value)
    assert other.entries() == ([], 0) and list(other.blobs.listed()) == []


def test_a_manifest_without_an_end_is_not_read(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    registry.export(["support"], tmp_path / "good.tar")
    monkeypatch.setattr(archive, "MOST_DOCUMENT_BYTES", 100)
    with pytest.raises(RegistryError, match="more than 100 bytes"):
        Registry(tmp_path / "other").import_archive(tmp_path / "good.tar")


def test_an_alias_that_was_promoted_moves_by_evidence_where_it_arrives_too(registry: Registry, tmp_path: Path) -> None:
    registry.promote("support:2", "stage")
    registry.export(["support"], tmp_path / "good.tar")
    other = Registry(tmp_path / "other")
    other.import_archive(tmp_path / "good.tar", aliases=True)
    with pytest.raises(ConfigError, match="evidence alone"):
        other.set_alias("support:1", "stage")
    assert other.set_alias("support:1", "canary").changed


def test_a_file_of_a_newer_lamina(registry: Registry, tmp_path: Path) -> None:
    registry.export(["support"], tmp_path / "good.tar")
    newer = with_index(entries(tmp_path / "good.tar"), lambda index: index.update(format=2))
    with pytest.raises(NewerVersionError):
        registry.import_archive(written(tmp_path / "newer.tar", newer))


def test_any_damage_is_found(registry: Registry, tmp_path: Path) -> None:
    """A byte changed, or the file cut anywhere: an error, or the same content."""
    registry.export(["support:1"], tmp_path / "good.tar")
    good, draw = (tmp_path / "good.tar").read_bytes(), random.Random(0)
    bad, wanted = tmp_path / "bad.tar", content(registry)[-1:]
    for number in range(150):
        place = draw.randrange(len(good))
        if number % 3:
            bad.write_bytes(good[:place] + bytes([good[place] ^ 1 << draw.randrange(8)]) + good[place + 1 :])
        else:
            bad.write_bytes(good[:place])
        other = Registry(tmp_path / f"other{number}")
        try:
            other.import_archive(bad)
        except LaminaError:
            assert other.entries() == ([], 0)
        else:
            assert content(other) == wanted


def test_a_file_of_something_else(registry: Registry, tmp_path: Path) -> None:
    for data in (b"", b"x" * 2000, bytes(2000), b"\x1f\x8b" + b"x" * 600):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(RegistryError, match="cannot be imported"):
            registry.import_archive(tmp_path / "x")


def test_a_damaged_blob_is_not_exported(registry: Registry, tmp_path: Path) -> None:
    digest = registry.show("support:1").manifest.files[1].sha256
    path = registry.blobs.path(digest)  # type: ignore[attr-defined]
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(RegistryError, match="are not those"):
        registry.export(["support"], tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
    assert [problem for problem in registry.verify().problems if "adapter_model.safetensors" in problem]
    registry.add(tmp_path / "run0", "support", tags={"seed": "0"})  # heals it
    assert registry.verify().passed
