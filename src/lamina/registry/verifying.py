"""`verify`: computes every digest of a registry again, and checks that its records agree with its files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lamina.errors import LaminaError, RegistryError
from lamina.registry.adding import needed
from lamina.registry.blobs import CHUNK, Blobs, read_blob
from lamina.registry.digests import PREFIX
from lamina.registry.evidence import parse_record
from lamina.registry.facts import Version
from lamina.registry.lookup import ALL, changes, rows_of_versions
from lamina.registry.manifest import Manifest
from lamina.registry.records.database import Database, Row, Transaction

_BATCH = 500


@dataclass(frozen=True)
class Verified:
    """The result of `verify`.

    Attributes:
        versions: How many were checked.
        blobs: How many files were read.
        aliases: How many were checked.
        records: How many gate records were checked.
        problems: What is wrong, in sentences; empty if nothing is.
    """

    versions: int
    blobs: int
    aliases: int
    records: int
    problems: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        counts = {name: getattr(self, name) for name in ("versions", "blobs", "aliases", "records")}
        return {"passed": self.passed, **counts, "problems": self.problems}


def verify(
    records: Database, blobs: Blobs, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verified:
    """Checks a registry: digests of all blobs and manifests, targets of aliases, and the history.

    Args:
        records, blobs: The registry's.
        progress: Called with how many versions are checked, of how many.

    Raises:
        RegistryError: The records cannot be read at all.
    """
    problems = [f"records: {problem}" for problem in records.check()]
    with records.reading() as tx:
        problems += _check_entries(tx)
        aliases = tx.all(
            "SELECT a.entry_id, e.name, a.alias, a.version_id, v.removed, v.number, v.entry_id AS owner FROM aliases a"
            " JOIN entries e ON e.id = a.entry_id LEFT JOIN versions v ON v.id = a.version_id ORDER BY e.name, a.alias"
        )
        for alias in aliases:
            problems += _check_alias(tx, alias)
        total = tx.all("SELECT count(*) AS n FROM versions WHERE removed IS NULL")[0]["n"]
        gates = tx.all("SELECT digest, candidate, against, verdict FROM gates ORDER BY id")
    seen: dict[str, str | None] = {}
    done, last = 0, 0
    while rows := _next(records, last):
        for row in rows:
            found = list(_check_version(records, blobs, row, seen))
            if found and _is_removed(records, row):  # by a collection beside this check
                seen = {digest: problem for digest, problem in seen.items() if problem is None}
            else:
                problems += found
            done += 1
            progress(done, total)
        last = rows[-1]["id"]
    for gate in gates:
        problems += _check_gate(blobs, gate)
    return Verified(done, len(seen) + len(gates), len(aliases), len(gates), problems)


def check_whole(blobs: Blobs, version: Version) -> None:
    """Reads all files of a version, and checks their digests: what an alias is pointed at can be loaded.

    Raises:
        RegistryError: Its manifest or a file is missing or damaged, or its row is of another adapter.
    """
    manifest = Manifest.from_bytes(read_blob(blobs, version.digest), version.ref)
    found = {file.name: _check_blob(blobs, file.sha256, file.size) for file in manifest.files}
    wrong = [f"{name}: {problem}" for name, problem in found.items() if problem is not None]
    if manifest.adapter_digest != version.adapter_digest:
        wrong.append("its row says something else than its manifest")
    if wrong:
        raise RegistryError(
            f"{version.ref}: {wrong[0]}, so no alias is pointed at it. Fix: `lamina registry add` of the same run or "
            "adapter writes its files anew; `lamina registry verify` checks all versions."
        )


def _next(records: Database, last: int) -> list[Row]:
    with records.reading() as tx:
        return rows_of_versions(tx, last, _BATCH)


def _check_entries(tx: Transaction) -> Iterator[str]:
    rows = tx.all(
        "SELECT e.name, e.versions, e.newest, count(v.id) AS found, coalesce(max(v.number), 0) AS highest,"
        " coalesce(sum(CASE WHEN v.removed IS NULL THEN 0 ELSE 1 END), 0) AS removed"
        " FROM entries e LEFT JOIN versions v ON v.entry_id = e.id GROUP BY e.id, e.name, e.versions, e.newest"
    )
    for row in rows:
        there = row["found"] - (row["removed"] if row["found"] else 0)
        if row["versions"] != there:
            yield f"{row['name']}: counts {row['versions']} versions, and has {there}"
        if row["newest"] < row["highest"]:
            yield f"{row['name']}: its newest version should be {row['newest']}, and there is {row['highest']}"


def _check_alias(tx: Transaction, alias: Row) -> Iterator[str]:
    shown = f"{alias['name']}@{alias['alias']}"
    if alias["number"] is None or alias["owner"] != alias["entry_id"]:
        yield f"{shown}: points at a version that is not there"
        return
    if alias["removed"] is not None:
        yield f"{shown}: points at {alias['name']}:{alias['number']}, whose files were removed"
    history = changes(tx, alias["entry_id"], alias["alias"], ALL)
    if not history or history[0].after != alias["number"]:
        said = f"version {history[0].after}" if history else "nothing"
        yield f"{shown}: points at version {alias['number']}, and its history ends at {said}"
    for later, earlier in itertools.pairwise(history):
        if later.before != earlier.after:
            yield f"{shown}: a change is missing from its history between {earlier.id} and {later.id}"


def _is_removed(records: Database, row: Row) -> bool:
    with records.reading() as tx:
        return bool(tx.all("SELECT 1 FROM versions WHERE id = :id AND removed IS NOT NULL", id=row["id"]))


def _check_version(records: Database, blobs: Blobs, row: Row, seen: dict[str, str | None]) -> Iterator[str]:
    ref = f"{row['name']}:{row['number']}"
    try:
        manifest = Manifest.from_bytes(read_blob(blobs, row["digest"]), ref)
    except LaminaError as error:
        yield f"{ref}: {_first(error)}"
        return
    seen.setdefault(row["digest"], None)
    recorded = (row["adapter_digest"], row["base_digest"], row["method"], row["size"])
    if recorded != (manifest.adapter_digest, manifest.base_digest, manifest.method, manifest.size):
        yield f"{ref}: its row says something else than its manifest"
    with records.reading() as tx:
        files = tx.all("SELECT digest, size FROM files WHERE version_id = :id", id=row["id"])
    if {file["digest"]: file["size"] for file in files} != needed(manifest):
        yield f"{ref}: the files that are kept for it are not those of its manifest"
    for file in manifest.files:
        if file.sha256 not in seen:
            seen[file.sha256] = _check_blob(blobs, file.sha256, file.size)
        if (problem := seen[file.sha256]) is not None:
            yield f"{ref}: {file.name}: {problem}"


def _check_blob(blobs: Blobs, digest: str, size: int) -> str | None:
    found, count = hashlib.sha256(), 0
    try:
        with blobs.open(digest) as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                count += len(chunk)
    except LaminaError as error:
        return _first(error)
    except OSError as error:
        return f"{digest}: cannot be read: {error.strerror}"
    if count != size:
        return f"{digest}: has {count} bytes, and should have {size}"
    return None if PREFIX + found.hexdigest() == digest else f"{digest}: its bytes were changed"


def _check_gate(blobs: Blobs, gate: Row) -> Iterator[str]:
    shown = f"gate record {gate['digest']}"
    try:
        record = parse_record(read_blob(blobs, gate["digest"]), shown, gate["digest"])
    except LaminaError as error:
        yield f"{shown}: {_first(error)}"
        return
    recorded = (gate["candidate"], gate["against"] or None, gate["verdict"])
    if recorded != (record.candidate.adapter_digest, record.against.adapter_digest, record.verdict):
        yield f"{shown}: its row says something else than the record"


def _first(error: LaminaError) -> str:
    return str(error).partition(" Fix: ")[0].rstrip(".")
