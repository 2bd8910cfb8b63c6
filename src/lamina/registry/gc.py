"""Removes what nobody needs: old versions that no alias needs, and blobs that no version needs.

What is needed: every version that an alias points at, or that a rollback leads to; the last targets of each alias; what
the history touched, or was added, within a window; what carries the tag `keep`; and what a reader has a lease on.

A version loses its files and keeps its row and its number, so that the history stays whole. First one transaction
marks versions, then blobs go, a few at a time, each time within a transaction in which nobody can add a version. A kill
at any moment leaves at most blobs that nobody needs, which the next run removes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lamina.registry.aliases import rollback_target
from lamina.registry.blobs import Blobs
from lamina.registry.lookup import ALL, changes
from lamina.registry.records.database import Database, Transaction

WINDOW_DAYS = 30.0
LAST_TARGETS = 10
# A blob is written some time before the version that needs it is there.
GRACE_SECONDS = 3600.0
KEEP_TAG = "keep"

_DAY = 24 * 3600
_BATCH = 100


@dataclass(frozen=True)
class Collected:
    """The result of `gc`.

    Attributes:
        versions: References of versions whose files are gone; with `dry_run`, would be.
        blobs: How many blobs were removed.
        bytes: Their size.
        dry_run: Whether nothing was removed.
    """

    versions: list[str] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"versions": self.versions, "blobs": self.blobs, "bytes": self.bytes, "dry_run": self.dry_run}


def collect(
    records: Database,
    blobs: Blobs,
    *,
    window_days: float = WINDOW_DAYS,
    last_targets: int = LAST_TARGETS,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
) -> Collected:
    """Removes what nobody needs.

    Args:
        records, blobs: The registry's.
        window_days: Keep what was added or touched within so many days.
        last_targets: Keep so many of each alias' last targets.
        grace_seconds: Keep blobs that were written within so many seconds.
        dry_run: Remove nothing, and tell what would be.

    Raises:
        RegistryError, StorageError: Something could not be removed; running it again goes on.
    """
    now = time.time()
    with records.reading() if dry_run else records.writing() as tx:
        if not dry_run:
            tx.hold_blobs(alone=True)
            tx.run("DELETE FROM leases WHERE expires < :now", now=now)
        old = list(_unneeded(tx, now - window_days * _DAY, last_targets, now))
        if not dry_run:
            for version in old:
                tx.run("UPDATE versions SET removed = :now WHERE id = :id", now=now, id=version["id"])
                tx.run("DELETE FROM files WHERE version_id = :id", id=version["id"])
                tx.run("UPDATE entries SET versions = versions - 1 WHERE id = :id", id=version["entry_id"])
    gone = {version["id"] for version in old} if dry_run else set()
    count, size = _collect_blobs(records, blobs, now - grace_seconds, gone, dry_run)
    if not dry_run:
        blobs.leftovers(now - max(grace_seconds, GRACE_SECONDS))
    return Collected([f"{version['name']}:{version['number']}" for version in old], count, size, dry_run)


def _unneeded(tx: Transaction, since: float, last: int, now: float) -> Iterator[dict[str, Any]]:
    """The versions that nobody needs, among those that were added before a time."""
    candidates = tx.all(
        "SELECT v.id, v.entry_id, e.name, v.number FROM versions v JOIN entries e ON e.id = v.entry_id"
        " WHERE v.removed IS NULL AND v.created < :since"
        " AND NOT EXISTS (SELECT 1 FROM aliases a WHERE a.version_id = v.id)"
        " AND NOT EXISTS (SELECT 1 FROM history h WHERE h.at >= :since AND (h.to_id = v.id OR h.from_id = v.id))"
        " AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.version_id = v.id AND l.expires >= :now)"
        " AND NOT EXISTS (SELECT 1 FROM tags t WHERE t.version_id = v.id AND t.key = :keep)"
        " ORDER BY v.id",
        since=since,
        now=now,
        keep=KEEP_TAG,
    )
    recent: dict[int, set[int]] = {}
    for version in candidates:
        entry = version["entry_id"]
        if entry not in recent:
            recent[entry] = _targets(tx, entry, last)
        if version["number"] not in recent[entry]:
            yield version


def _targets(tx: Transaction, entry: int, last: int) -> set[int]:
    """The numbers of the last targets of an entry's aliases, and of what rollbacks lead to."""
    found: set[int] = set()
    for row in tx.all("SELECT DISTINCT alias FROM history WHERE entry_id = :entry", entry=entry):
        history = changes(tx, entry, row["alias"], ALL)
        targets = dict.fromkeys(change.after for change in history if change.after is not None)
        found |= set(list(targets)[:last])
        back = rollback_target(history)
        found |= set() if back is None else {back}
    return found


def _collect_blobs(records: Database, blobs: Blobs, before: float, gone: set[int], dry_run: bool) -> tuple[int, int]:
    """Removes blobs that nobody needs and that were written before a time; returns how many, and their size."""
    count = size = 0
    batch: dict[str, int] = {}

    def flush() -> None:
        nonlocal count, size
        with records.reading() if dry_run else records.writing() as tx:
            if not dry_run:
                tx.hold_blobs(alone=True)
            for digest, length in batch.items():
                if not _is_needed(tx, digest, gone):
                    count, size = count + 1, size + length
                    if not dry_run:
                        blobs.remove(digest)
        batch.clear()

    for digest, length, written in blobs.listed():
        if written < before:
            batch[digest] = length
        if len(batch) == _BATCH:
            flush()
    if batch:
        flush()
    return count, size


def _is_needed(tx: Transaction, digest: str, gone: set[int]) -> bool:
    users = tx.all("SELECT version_id FROM files WHERE digest = :digest", digest=digest)
    if any(user["version_id"] not in gone for user in users):
        return True
    return bool(tx.all("SELECT 1 FROM gates WHERE digest = :digest", digest=digest))
