"""Stores a version: its blobs first, then one transaction that makes it visible as a whole.

Until the transaction ends, `gc` cannot remove blobs; what it removed between writing and the transaction is written
again. So a version never points at a file that is not there, and a kill leaves blobs that nobody needs at most.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import RegistryError
from lamina.registry.blobs import Blobs
from lamina.registry.facts import Version
from lamina.registry.lookup import find_version
from lamina.registry.manifest import Manifest
from lamina.registry.names import Reference
from lamina.registry.records.database import Database, Transaction

_ATTEMPTS = 5


@dataclass(frozen=True)
class Added:
    """The result of `add`.

    Attributes:
        version: The version.
        is_new: Whether it was not there before.
    """

    version: Version
    is_new: bool

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**self.version.as_json(), "new": self.is_new}


def store(
    records: Database,
    blobs: Blobs,
    name: str,
    manifest: Manifest,
    sources: Mapping[str, Path],
    who: str,
    tags: Mapping[str, str],
) -> Added:
    """Stores one version.

    Args:
        records, blobs: The registry's.
        name: Of its entry.
        manifest: Its manifest.
        sources: Where its files are: digest -> path.
        who: Who adds it.
        tags: To be set on it.

    Raises:
        RegistryError, StorageError: It cannot be stored; then nothing points at what was written.
    """
    for _ in range(_ATTEMPTS):
        put(blobs, manifest, sources)
        with records.writing() as tx:
            tx.hold_blobs(alone=False)
            if all(blobs.has(digest) for digest in needed(manifest)):
                return insert(tx, name, manifest, who, tags)
    raise RegistryError(f"{name}: its files are removed as fast as they are written. Fix: stop `lamina registry gc`.")


def put(blobs: Blobs, manifest: Manifest, sources: Mapping[str, Path]) -> None:
    """Writes the files of a version and its manifest."""
    for digest, path in sources.items():
        blobs.put(path, digest)
    blobs.put(manifest.content, manifest.digest)


def needed(manifest: Manifest) -> dict[str, int]:
    """What a version needs: digest -> size of each file and of its manifest."""
    return {file.sha256: file.size for file in manifest.files} | {manifest.digest: len(manifest.content)}


def insert(
    tx: Transaction, name: str, manifest: Manifest, who: str, tags: Mapping[str, str], number: int | None = None
) -> Added:
    """Makes a version visible, whose blobs are there.

    Args:
        tx: A transaction that writes.
        name, manifest, who, tags: As for `store`.
        number: The number that it should have, if that is free; by default the next.
    """
    now = time.time()
    tx.run(
        "INSERT INTO entries (name, created, updated, newest, versions) VALUES (:name, :now, :now, 0, 0)"
        " ON CONFLICT DO NOTHING",
        name=name,
        now=now,
    )
    # The update also locks the entry until the end, so that numbers are given out one at a time.
    tx.run("UPDATE entries SET updated = :now WHERE name = :name", name=name, now=now)
    entry = tx.all("SELECT id, newest FROM entries WHERE name = :name", name=name)[0]
    found = tx.all(
        "SELECT id, number, removed FROM versions WHERE entry_id = :entry AND digest = :digest",
        entry=entry["id"],
        digest=manifest.digest,
    )
    is_new = not found or found[0]["removed"] is not None
    if found:
        key, number = found[0]["id"], found[0]["number"]
        tx.run("UPDATE versions SET removed = NULL WHERE id = :id", id=key)
    else:
        number = _number(tx, entry["id"], entry["newest"], number)
        key = _insert_row(tx, entry["id"], number, manifest, who, now)
    if is_new:
        for digest, size in needed(manifest).items():
            sql = "INSERT INTO files (version_id, digest, size) VALUES (:id, :digest, :size) ON CONFLICT DO NOTHING"
            tx.run(sql, id=key, digest=digest, size=size)
        tx.run(
            "UPDATE entries SET versions = versions + 1,"
            " newest = CASE WHEN newest < :number THEN :number ELSE newest END WHERE id = :entry",
            number=number,
            entry=entry["id"],
        )
    for tag, value in tags.items():
        tx.run("DELETE FROM tags WHERE version_id = :id AND key = :key", id=key, key=tag)
        sql = "INSERT INTO tags (version_id, key, value) VALUES (:id, :key, :value)"
        tx.run(sql, id=key, key=tag, value=value)
    return Added(find_version(tx, Reference(name, version=number)), is_new)


def _number(tx: Transaction, entry: int, newest: int, wanted: int | None) -> int:
    sql = "SELECT 1 FROM versions WHERE entry_id = :entry AND number = :number"
    if wanted is not None and not tx.all(sql, entry=entry, number=wanted):
        return wanted
    return newest + 1


def _insert_row(tx: Transaction, entry: int, number: int, manifest: Manifest, who: str, now: float) -> int:
    return tx.all(
        "INSERT INTO versions"
        " (entry_id, number, digest, adapter_digest, base_digest, base_ref, method, size, created, who) VALUES"
        " (:entry, :number, :digest, :adapter, :base, :ref, :method, :size, :now, :who) RETURNING id",
        entry=entry,
        number=number,
        digest=manifest.digest,
        adapter=manifest.adapter_digest,
        base=manifest.base_digest,
        ref=manifest.base.get("ref"),
        method=manifest.method,
        size=manifest.size,
        now=now,
        who=who,
    )[0]["id"]
