"""What the registry tells of its versions, aliases and changes, as plain records."""

from __future__ import annotations

import getpass
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Version:
    """A version of an entry; it never changes.

    Attributes:
        id: Key of its row.
        entry_id: Key of its entry's row.
        name: Of its entry.
        number: Which one of the entry's.
        digest: Its identity: the digest of its manifest.
        adapter_digest: Of what it computes.
        base_digest: Of the tensors of its base; None where that is not known.
        base_ref: What its base is called.
        method: Name of its method.
        size: Bytes of its files.
        created: When it was added, in seconds since 1970.
        who: Who added it.
        removed: When `gc` removed its files; None while they are there.
        aliases: Those that point at it.
        tags: Its tags.
    """

    id: int
    entry_id: int
    name: str
    number: int
    digest: str
    adapter_digest: str
    base_digest: str | None
    base_ref: str | None
    method: str
    size: int
    created: float
    who: str
    removed: float | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)
    tags: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def ref(self) -> str:
        """How to refer to it, such as `support:7`."""
        return f"{self.name}:{self.number}"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        value = {key: item for key, item in asdict(self).items() if key not in ("id", "entry_id", "number")}
        times = {"created": when(self.created), "removed": None if self.removed is None else when(self.removed)}
        return {"ref": self.ref, "version": self.number, **value, **times, "aliases": list(self.aliases)}


@dataclass(frozen=True)
class AliasState:
    """Where an alias points.

    Attributes:
        id: Key of its row.
        name: Of its entry.
        alias: Its name.
        version: What it points at.
        revision: How often it was moved: what a change compares before it swaps.
        override: Why it was let there without evidence, a rollback to it aside; None where there was no such reason.
        evidence: The gate record that let it there.
        updated: When that was.
    """

    id: int
    name: str
    alias: str
    version: Version
    revision: int
    override: str | None
    evidence: str | None
    updated: float

    @property
    def ref(self) -> str:
        """How to refer to it, such as `support@prod`."""
        return f"{self.name}@{self.alias}"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "ref": self.ref,
            "alias": self.alias,
            "version": self.version.number,
            "digest": self.version.digest,
            "adapter_digest": self.version.adapter_digest,
            "revision": self.revision,
            "override": self.override,
            "evidence": self.evidence,
            "updated": when(self.updated),
        }


@dataclass(frozen=True)
class Change:
    """A row of the history.

    Attributes:
        id: Its place in the history of all.
        alias: The alias, such as `support@prod`.
        at: When, in seconds since 1970.
        who: Who did it.
        action: `alias`, `promote`, `rollback`, `import` or `delete`.
        before: Number of the version that it pointed at; None for none.
        after: Number of the version that it points at from then on; None for none.
        why: The reason that was given.
        evidence: Digest of the gate record.
        override: Why there was no need of one.
    """

    id: int
    alias: str
    at: float
    who: str
    action: str
    before: int | None
    after: int | None
    why: str | None
    evidence: str | None
    override: str | None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        value = asdict(self)
        return {**value, "at": when(self.at), "from": value.pop("before"), "to": value.pop("after")}


@dataclass(frozen=True)
class Entry:
    """An entry, as `ls` shows it.

    Attributes:
        name: Its name.
        versions: How many it has, without those that `gc` removed.
        newest: Number of the newest.
        aliases: Where those that were moved last point: alias -> version.
        overrides: How many changes of its history were made without evidence, by an override.
        updated: When something was last added or moved.
    """

    name: str
    versions: int
    newest: int
    aliases: dict[str, int]
    overrides: int
    updated: float

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "updated": when(self.updated)}


def when(seconds: float) -> str:
    """Returns a time in ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def me() -> str:
    """Returns who is doing something, such as `ada@workstation`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = "unknown"
    name = f"{user}@{socket.gethostname()}"
    return name.encode("utf-8", "backslashreplace").decode()  # LOGNAME may hold any bytes
