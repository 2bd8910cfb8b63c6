"""Moves aliases: by hand, by evidence, and back; each in one transaction that compares, swaps and writes the history.

A change is decided on what was read before. If somebody else moved the alias in the meantime, its revision is another,
nothing is changed, and the error says who it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from lamina.errors import ConfigError, ConflictError, Problem, RegistryError
from lamina.registry.facts import AliasState, Change, Version
from lamina.registry.lookup import alias_states, changes, live_version
from lamina.registry.names import Reference
from lamina.registry.records.database import Transaction

# Aliases that need evidence from the start; any other does once it has been promoted.
GATED = ("prod", "production", "live")


@dataclass(frozen=True)
class Move:
    """A change of an alias.

    Attributes:
        alias: Such as `support@prod`.
        before: What it pointed at; None for nothing.
        after: What it points at now; None for nothing.
        changed: Whether that is another.
        evidence: Digest of the gate record.
        override: Why there was no need of one.
    """

    alias: str
    before: Version | None
    after: Version | None
    changed: bool
    evidence: str | None = None
    override: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "alias": self.alias,
            "from": self.before and self.before.ref,
            "to": self.after and self.after.ref,
            "digest": self.after and self.after.digest,
            "adapter_digest": self.after and self.after.adapter_digest,
            "changed": self.changed,
            "evidence": self.evidence,
            "override": self.override,
        }


@dataclass(frozen=True)
class Reason:
    """Why an alias is moved, as the history keeps it.

    Attributes:
        action: `alias`, `promote`, `rollback`, `import` or `delete`.
        who: Who does it.
        why: In their words.
        evidence: Digest of the gate record.
        override: Why there is no need of one.
    """

    action: str
    who: str
    why: str | None = None
    evidence: str | None = None
    override: str | None = None


def state_of(tx: Transaction, entry: int, alias: str) -> AliasState | None:
    """Where an alias points; None for nowhere."""
    found = alias_states(tx, entry, alias)
    return found[0] if found else None


def is_gated(tx: Transaction, entry: int, alias: str) -> bool:
    """Whether an alias moves by evidence alone: by its name, or since it was promoted, here or where it came from."""
    if alias in GATED:
        return True
    return bool(
        tx.all(
            "SELECT 1 FROM history WHERE entry_id = :entry AND alias = :alias"
            " AND (action = 'promote' OR evidence IS NOT NULL) LIMIT 1",
            entry=entry,
            alias=alias,
        )
    )


def move(
    tx: Transaction, entry: int, alias: str, before: AliasState | None, after: Version | None, reason: Reason
) -> None:
    """Moves an alias, if it is still where it was, and writes the history.

    Args:
        tx: A transaction that writes.
        entry: Key of the entry.
        alias: The alias.
        before: Its state when the move was decided; None for nowhere.
        after: Where it goes; None to take it away.
        reason: For the history.

    Raises:
        ConflictError: It was moved in the meantime.
        RegistryError: `gc` has removed the version in the meantime.
    """
    tx.hold_blobs(alone=False)
    now = time.time()
    if after is not None:
        live_version(tx, Reference(after.name, version=after.number))
    if after is None:
        assert before is not None, "only an alias that is there is taken away"
        done = tx.run(
            "DELETE FROM aliases WHERE id = :id AND revision = :revision", id=before.id, revision=before.revision
        )
    elif before is None:
        done = tx.run(
            "INSERT INTO aliases (entry_id, alias, version_id, revision, updated)"
            " VALUES (:entry, :alias, :version, 1, :now) ON CONFLICT DO NOTHING",
            entry=entry,
            alias=alias,
            version=after.id,
            now=now,
        )
    else:
        done = tx.run(
            "UPDATE aliases SET version_id = :version, revision = revision + 1, updated = :now"
            " WHERE id = :id AND revision = :revision AND version_id = :expected",
            version=after.id,
            now=now,
            id=before.id,
            revision=before.revision,
            expected=before.version.id,
        )
    if done != 1:
        raise _conflict(tx, entry, alias)
    tx.run(
        "INSERT INTO history (entry_id, alias, at, who, action, from_id, to_id, why, evidence, override) VALUES"
        " (:entry, :alias, :now, :who, :action, :before, :after, :why, :evidence, :override)",
        entry=entry,
        alias=alias,
        now=now,
        who=reason.who,
        action=reason.action,
        before=None if before is None else before.version.id,
        after=None if after is None else after.id,
        why=reason.why,
        evidence=reason.evidence,
        override=reason.override,
    )
    tx.run("UPDATE entries SET updated = :now WHERE id = :entry", now=now, entry=entry)


def rollback_target(history: list[Change]) -> int | None:
    """Returns the number of the version that a rollback leads to; None if there is none.

    Each rollback takes one move back, so that two in a row lead two moves back.

    Args:
        history: Of one alias, the last change first.
    """
    stack: list[int] = []
    for change in reversed(history):
        if change.action == "delete" or change.after is None:
            stack.clear()
        elif change.action == "rollback" and len(stack) > 1:
            stack.pop()
        else:
            stack.append(change.after)
    return stack[-2] if len(stack) > 1 else None


def check_ungated(tx: Transaction, entry: int, reference: Reference, override: str | None) -> None:
    """Checks that an alias may be moved by hand.

    Raises:
        ConfigError: It moves by evidence alone.
    """
    if override is None and reference.alias is not None and is_gated(tx, entry, reference.alias):
        message = f"{reference} moves by evidence alone"
        fix = f"lamina promote {reference.name}:VERSION --to {reference.alias}; or give --override REASON, which stays"
        raise ConfigError(Problem("alias", message, fix))


def nothing_before(reference: Reference) -> RegistryError:
    """The error of a rollback that leads nowhere."""
    return RegistryError(
        f"{reference}: has pointed at nothing else before, so there is no way back. Fix: see "
        f"`lamina registry history {reference}`, and promote another version."
    )


def _conflict(tx: Transaction, entry: int, alias: str) -> ConflictError:
    last = changes(tx, entry, alias, 1)
    said = "somebody else has moved it"
    if last:
        to = "nothing" if last[0].after is None else f"{last[0].alias.partition('@')[0]}:{last[0].after}"
        said = f"{last[0].who} has moved {last[0].alias} to {to}"
    return ConflictError(
        f"{alias}: {said} in the meantime, so nothing was changed. Fix: compare with what it points at now "
        "(`lamina gate ... --against`), and promote again."
    )
