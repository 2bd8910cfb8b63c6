"""Leases: while somebody reads the files of a version, `gc` leaves that version alone."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence

from lamina.errors import LaminaError
from lamina.registry.facts import Version
from lamina.registry.lookup import live_version
from lamina.registry.names import Reference
from lamina.registry.records.database import Database

# Longer than anybody reads; the lease of a reader that died keeps its versions so long.
LEASE_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def leased(records: Database, references: Sequence[Reference], who: str) -> Iterator[list[Version]]:
    """Yields versions that `gc` leaves alone inside the block; a registry that cannot be written is read all the same.

    Args:
        records: The registry's.
        references: Of the versions.
        who: Who reads them.

    Raises:
        ConfigError: There is no such version.
        RegistryError: `gc` has removed the files of one.
    """
    keys = [uuid.uuid4().hex for _ in references]
    try:
        with records.writing() as tx:
            tx.hold_blobs(alone=False)
            versions = [live_version(tx, reference) for reference in references]
            for key, version in zip(keys, versions, strict=True):
                tx.run(
                    "INSERT INTO leases (id, version_id, expires, who) VALUES (:id, :version, :expires, :who)",
                    id=key,
                    version=version.id,
                    expires=time.time() + LEASE_SECONDS,
                    who=who,
                )
    except OSError:
        with records.reading() as tx:
            versions = [live_version(tx, reference) for reference in references]
        yield versions
        return
    try:
        yield versions
    finally:
        with contextlib.suppress(LaminaError), records.writing() as tx:
            for key in keys:
                tx.run("DELETE FROM leases WHERE id = :id", id=key)
