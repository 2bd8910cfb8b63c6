"""The verbs that move aliases, and the gate records that let them."""

from __future__ import annotations

from pathlib import Path

from lamina.errors import ConfigError, ConflictError, Problem
from lamina.registry.aliases import (
    Move,
    Reason,
    check_ungated,
    move,
    nothing_before,
    rollback_target,
    state_of,
)
from lamina.registry.evidence import GateRecord
from lamina.registry.facts import AliasState, Change, Version
from lamina.registry.gates import find_evidence, find_record, load_record, store_record
from lamina.registry.lookup import ALL, changes, entry_id, find_version, live_version
from lamina.registry.names import Reference, check_alias, check_text, parse, parse_alias
from lamina.registry.opened import Opened

DEFAULT_ROWS = 50


class Aliases(Opened):
    """A registry's aliases."""

    def set_alias(self, ref: str, alias: str, *, why: str | None = None, override: str | None = None) -> Move:
        """Points an alias that is not gated at a version.

        Raises:
            ConfigError: There is no such version; the alias moves by evidence alone, and there is no `override`; or a
                reason is not UTF-8.
            ConflictError: The alias was moved in the meantime.
            RegistryError: A file of the version is missing or damaged.
        """
        reference = parse(ref)
        target = Reference(reference.name, alias=check_alias(alias))
        _check_reason(why, override)
        with self.records.reading() as tx:
            version = live_version(tx, reference)
            check_ungated(tx, version.entry_id, target, override)
            before = state_of(tx, version.entry_id, alias)
        return self._moved(target, before, version, Reason("alias", self.who, why, override=override))

    def delete_alias(self, ref: str, *, why: str | None = None, override: str | None = None) -> Move:
        """Takes an alias away; its history stays.

        Raises:
            ConfigError: There is none; it moves by evidence alone, and there is no `override`; or a reason is not
                UTF-8.
            ConflictError: It was moved in the meantime.
        """
        reference = parse_alias(ref)
        _check_reason(why, override)
        with self.records.reading() as tx:
            entry = find_version(tx, reference).entry_id
            check_ungated(tx, entry, reference, override)
            before = state_of(tx, entry, reference.alias or "")
        if before is None:
            raise ConflictError(f"{reference}: somebody else has just taken it away.")
        reason = Reason("delete", self.who, why, override=override)
        with self.records.writing() as tx:
            move(tx, entry, before.alias, before, None, reason)
        return Move(str(reference), before.version, None, True, override=override)

    def promote(
        self,
        ref: str,
        alias: str,
        *,
        record: str | Path | None = None,
        override: str | None = None,
        why: str | None = None,
    ) -> Move:
        """Points an alias at a version, with a passing gate record for exactly this pair.

        Args:
            ref: The candidate.
            alias: Such as `prod`.
            record: The digest of a record in this registry, or a file of one; by default the newest for the pair.
            override: Promote without one, for this reason; it stays in the history for ever.
            why: For the history.

        Raises:
            ConfigError: There is no such version, or a reason is not UTF-8.
            ConflictError: The alias was moved in the meantime.
            EvidenceError: There is no record for this pair, or it does not say `promote`, or it was edited.
            RegistryError: A file of the version is missing or damaged.
        """
        reference = parse(ref)
        target = Reference(reference.name, alias=check_alias(alias))
        _check_reason(why, override)
        with self.records.reading() as tx:
            candidate = live_version(tx, reference)
            before = state_of(tx, candidate.entry_id, alias)
        against = before and before.version
        if against is not None and against.id == candidate.id:
            return Move(
                str(target), candidate, candidate, False, before and before.evidence, before and before.override
            )
        evidence = None
        if override is None:
            evidence = find_evidence(self.records, self.blobs, candidate, against, target, record)
        return self._moved(target, before, candidate, Reason("promote", self.who, why, evidence, override))

    def rollback(self, ref: str, *, why: str | None = None) -> Move:
        """Points an alias at what it pointed at before; each rollback takes one move back.

        Raises:
            ConfigError: There is no such alias, or the reason is not UTF-8.
            ConflictError: It was moved in the meantime.
            RegistryError: It pointed at nothing before, or that version's files were removed or are damaged.
        """
        reference = parse_alias(ref)
        _check_reason(why)
        with self.records.reading() as tx:
            entry = find_version(tx, reference).entry_id
            before = state_of(tx, entry, reference.alias or "")
            number = rollback_target(changes(tx, entry, reference.alias, ALL))
            if number is None:
                raise nothing_before(reference)
            version = live_version(tx, Reference(reference.name, version=number))
        return self._moved(reference, before, version, Reason("rollback", self.who, why))

    def history(self, ref: str, most: int = DEFAULT_ROWS) -> list[Change]:
        """Lists the changes of an alias, or of all aliases of an entry; the last change first.

        Raises:
            ConfigError: There is no such entry.
        """
        reference = parse(ref)
        with self.records.reading() as tx:
            entry = entry_id(tx, reference.name)
            found = changes(tx, entry, reference.alias, most)
            if not found and reference.alias is not None:
                find_version(tx, reference)  # says what is nearest
            return found

    def store_record(self, record: GateRecord) -> str:
        """Stores a gate record, and returns its digest. The same record stored again is the same.

        Raises:
            EvidenceError: It contradicts itself.
            StorageError: It cannot be stored.
        """
        return store_record(self.records, self.blobs, record)

    def read_record(self, digest: str) -> GateRecord:
        """Reads a gate record of this registry.

        Raises:
            EvidenceError: There is none, or it was edited.
        """
        return load_record(self.blobs, digest)

    def find_record(self, candidate: str, against: str | None) -> tuple[str, GateRecord] | None:
        """Finds the newest gate record of a pair, whatever its verdict; None if there is none.

        Args:
            candidate: Digest of the candidate's adapter.
            against: Digest of the other's; None for the bare base.

        Raises:
            EvidenceError: It was edited.
        """
        return find_record(self.records, self.blobs, candidate, against)

    def _moved(self, target: Reference, before: AliasState | None, after: Version, reason: Reason) -> Move:
        if before is not None and before.version.id == after.id:
            return Move(str(target), after, after, False, before.evidence, before.override)
        from lamina.registry.leases import leased  # `ls` needs none of it
        from lamina.registry.verifying import check_whole

        with leased(self.records, [Reference(after.name, version=after.number)], self.who):
            check_whole(self.blobs, after)
        with self.records.writing() as tx:
            move(tx, after.entry_id, target.alias or "", before, after, reason)
        return Move(str(target), before and before.version, after, True, reason.evidence, reason.override)


def _check_reason(why: str | None, override: str | None = None) -> None:
    """Checks what the history will keep, before anything is written."""
    for field, text in (("--why", why), ("--override", override)):
        if text is not None:
            check_text(field, text)
    if override is not None and not override.strip():
        raise ConfigError(Problem("--override", "is empty", "give the reason, which stays in the history"))
