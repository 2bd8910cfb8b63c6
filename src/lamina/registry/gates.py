"""The evidence for a promotion: stores gate records, and finds the one that lets a candidate take an alias."""

from __future__ import annotations

import time
from pathlib import Path

from lamina.errors import EvidenceError
from lamina.registry.blobs import Blobs
from lamina.registry.digests import is_digest, short
from lamina.registry.evidence import GateRecord, parse_record, read_record, record_digest
from lamina.registry.facts import Version
from lamina.registry.lookup import versions_with_adapter
from lamina.registry.names import Reference
from lamina.registry.records.database import Database


def store_record(records: Database, blobs: Blobs, record: GateRecord) -> str:
    """Stores a gate record, and returns its digest.

    Raises:
        EvidenceError: It contradicts itself.
        StorageError: It cannot be stored.
    """
    content, digest = record.content, record_digest(record)
    parse_record(content, "the record", digest)
    blobs.put(content, digest)
    with records.writing() as tx:
        tx.run(
            "INSERT INTO gates (digest, candidate, against, verdict, stored)"
            " VALUES (:digest, :candidate, :against, :verdict, :now) ON CONFLICT DO NOTHING",
            digest=digest,
            candidate=record.candidate.adapter_digest,
            against=record.against.adapter_digest or "",
            verdict=record.verdict,
            now=time.time(),
        )
    return digest


def load_record(blobs: Blobs, digest: str) -> GateRecord:
    """Reads a gate record, and checks it.

    Raises:
        EvidenceError: There is none, or it was edited.
    """
    if not is_digest(digest) or not blobs.has(digest):
        raise EvidenceError(f"{digest}: the registry has no such gate record. Fix: run `lamina gate` again.")
    with blobs.open(digest) as file:
        return parse_record(file.read(), digest, digest)


def find_record(records: Database, blobs: Blobs, candidate: str, against: str | None) -> tuple[str, GateRecord] | None:
    """Finds the newest gate record of a pair, with its digest; None if there is none.

    Raises:
        EvidenceError: It was edited.
    """
    with records.reading() as tx:
        rows = tx.all(
            "SELECT digest FROM gates WHERE candidate = :candidate AND against = :against ORDER BY id DESC LIMIT 1",
            candidate=candidate,
            against=against or "",
        )
    return (rows[0]["digest"], load_record(blobs, rows[0]["digest"])) if rows else None


def find_evidence(
    records: Database,
    blobs: Blobs,
    candidate: Version,
    against: Version | None,
    target: Reference,
    given: str | Path | None,
) -> str:
    """Finds the record that lets a candidate take an alias, and returns its digest.

    Args:
        records, blobs: The registry's.
        candidate: What shall take it.
        against: What it points at; None for nothing.
        target: The alias.
        given: The digest of a record in the registry, or a file of one; by default the newest for the pair.

    Raises:
        EvidenceError: There is none, or it is of another pair, or does not say `promote`, or was edited.
    """
    if given is not None and not is_digest(given):
        found = read_record(Path(given))
        _check_pair(found, str(given), candidate, against, str(target))
        return store_record(records, blobs, found)
    if given is not None:
        known = str(given), load_record(blobs, str(given))
    else:
        known = find_record(records, blobs, candidate.adapter_digest, against and against.adapter_digest)
    if known is None:
        raise _no_record(records, candidate, against, target)
    _check_pair(known[1], known[0], candidate, against, str(target))
    return known[0]


def _no_record(records: Database, candidate: Version, against: Version | None, target: Reference) -> EvidenceError:
    with records.reading() as tx:
        rows = tx.all(
            "SELECT against FROM gates WHERE candidate = :digest ORDER BY id DESC LIMIT 1",
            digest=candidate.adapter_digest,
        )
        others = [version.ref for version in versions_with_adapter(tx, rows[0]["against"])] if rows else []
    other = ""
    if rows:
        said = others[0] if others else short(rows[0]["against"] or None)
        other = f" (its newest record is against {said})"
    pair = f"{candidate.ref} against {against.ref if against else 'its bare base, as the alias points at nothing yet'}"
    return EvidenceError(
        f"{target}: there is no gate record for {pair}{other}. Fix: lamina gate {candidate.ref} --against "
        f"{target if against else 'base'} --gate gate.yaml; or give --override REASON, which stays in the history."
    )


def _check_pair(record: GateRecord, source: str, candidate: Version, against: Version | None, alias: str) -> None:
    """Checks that a record lets a candidate take an alias.

    Raises:
        EvidenceError: It is of another pair, or its verdict is another.
    """
    wanted = against and against.adapter_digest
    where = f"{alias} points at {against.ref} ({short(wanted)})" if against else f"{alias} points at nothing yet"
    again = f"lamina gate {candidate.ref} --against {alias if against else 'base'} --gate gate.yaml"
    if record.candidate.adapter_digest != candidate.adapter_digest or record.against.adapter_digest != wanted:
        raise EvidenceError(
            f"{source}: is of another pair: {record.pair}. What is asked is {candidate.ref} "
            f"({short(candidate.adapter_digest)}) against {short(wanted)}, because {where}. Fix: {again}"
        )
    for side, version in ((record.candidate, candidate), (record.against, against or candidate)):
        if None not in (side.base_digest, version.base_digest) and side.base_digest != version.base_digest:
            raise EvidenceError(
                f"{source}: was made on another base ({short(side.base_digest)}) than that of {version.ref} "
                f"({short(version.base_digest)}). Fix: {again}"
            )
    if against is None and record.against.packed_digest != record.candidate.packed_digest:
        message = f"was made against the base in another quantization than {candidate.ref} holds it in"
        raise EvidenceError(f"{source}: {message}. Fix: {again}")
    if record.verdict != "promote":
        failed = [check.name for check in record.checks if check.passed is not True]
        verdict = {"hold": "HOLD", "not_enough_rows": "NOT ENOUGH ROWS"}[record.verdict]
        raise EvidenceError(
            f"{candidate.ref}: its gate record ({short(source)}) says {verdict}"
            f"{': ' + ', '.join(failed[:5]) if failed else ''}. Fix: train a better candidate, or evaluate on more "
            "rows; --override REASON promotes it all the same, and stays in the history."
        )
