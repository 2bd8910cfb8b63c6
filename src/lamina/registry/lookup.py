"""Finds versions, aliases and changes in the records, and says what is nearest to a name that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lamina.errors import ConfigError, Problem, RegistryError, nearest
from lamina.registry.digests import PREFIX, short
from lamina.registry.facts import AliasState, Change, Entry, Version
from lamina.registry.names import Reference
from lamina.registry.records.database import Row, Transaction

_VERSION = """
    SELECT v.id, v.entry_id, e.name, v.number, v.digest, v.adapter_digest, v.base_digest, v.base_ref, v.method, v.size,
        v.created, v.who, v.removed
    FROM versions v JOIN entries e ON e.id = v.entry_id
"""
_CHANGE = """
    SELECT h.id, e.name, h.alias, h.at, h.who, h.action, f.number AS before, t.number AS after, h.why, h.evidence,
        h.override
    FROM history h JOIN entries e ON e.id = h.entry_id
        LEFT JOIN versions f ON f.id = h.from_id LEFT JOIN versions t ON t.id = h.to_id
"""
# How many names are compared with one that is not there.
_MOST_NAMES = 2000
# How many aliases of an entry a list of entries shows, those that were moved last.
_MOST_ALIASES = 10
ALL = 2**31 - 1


def entry_id(tx: Transaction, name: str) -> int:
    """Finds an entry.

    Raises:
        ConfigError: There is none; the nearest name is given.
    """
    found = tx.all("SELECT id FROM entries WHERE name = :name", name=name)
    if found:
        return found[0]["id"]
    near = tx.all(
        "SELECT name FROM entries WHERE substr(name, 1, 1) = :first ORDER BY name LIMIT :most",
        first=name[:1],
        most=_MOST_NAMES,
    )
    near = near or tx.all("SELECT name FROM entries ORDER BY updated DESC LIMIT :most", most=_MOST_NAMES)
    names = [row["name"] for row in near]
    fix = nearest(name, names) or (
        "see `lamina registry ls`" if names else "add it: lamina registry add RUN --name NAME"
    )
    raise ConfigError(Problem("reference", f"the registry has no {name!r}.", fix))


def find_version(tx: Transaction, reference: Reference) -> Version:
    """Finds the version that a reference names.

    Raises:
        ConfigError: There is none, or there are several of that digest; the nearest names are given.
    """
    entry = entry_id(tx, reference.name)
    if reference.alias is not None:
        return alias_state(tx, entry, reference).version
    if reference.version is not None:
        found = tx.all(f"{_VERSION} WHERE e.id = :entry AND v.number = :number", entry=entry, number=reference.version)
    elif reference.digest is not None:
        found = tx.all(
            f"{_VERSION} WHERE e.id = :entry AND v.digest >= :low AND v.digest < :high"
            " AND substr(v.digest, 1, :length) = :low ORDER BY v.number LIMIT 3",
            entry=entry,
            low=reference.digest,
            high=f"{reference.digest}g",
            length=len(reference.digest),
        )
    else:
        found = tx.all(
            f"{_VERSION} WHERE e.id = :entry AND v.removed IS NULL ORDER BY v.number DESC LIMIT 1", entry=entry
        )
    if len(found) > 1:
        several = ", ".join(short(row["digest"]) for row in found)
        raise ConfigError(Problem("reference", f"{reference} may be {several}", "give more digits"))
    if not found:
        raise _no_version(tx, reference, entry)
    return version_of(tx, found[0])


def live_version(tx: Transaction, reference: Reference) -> Version:
    """Finds a version whose files are there.

    Raises:
        ConfigError: There is none of that name.
        RegistryError: `gc` has removed its files.
    """
    version = find_version(tx, reference)
    if version.removed is not None:
        raise RegistryError(
            f"{version.ref}: `lamina registry gc` has removed its files. Fix: add the same adapter again from where it "
            "was trained; it gets its number back."
        )
    return version


def alias_state(tx: Transaction, entry: int, reference: Reference) -> AliasState:
    """Finds where an alias points.

    Raises:
        ConfigError: There is no such alias; the nearest one is given.
    """
    found = alias_states(tx, entry, reference.alias)
    if found:
        return found[0]
    sql = "SELECT alias FROM aliases WHERE entry_id = :entry ORDER BY updated DESC LIMIT :most"
    names = [row["alias"] for row in tx.all(sql, entry=entry, most=_MOST_NAMES)]
    listed = f"it has {', '.join(sorted(names)[:10])}" if names else "it has none"
    fix = nearest(reference.alias or "", names)
    fix = fix or f"set it: lamina promote {reference.name}:VERSION --to {reference.alias}"
    raise ConfigError(Problem("reference", f"{reference.name!r} has no alias {reference.alias!r} ({listed}).", fix))


def alias_states(tx: Transaction, entry: int, alias: str | None = None, most: int = ALL) -> list[AliasState]:
    """Finds where the aliases of an entry point, or one of them; what was moved last first."""
    rows = tx.all(
        "SELECT a.id AS alias_id, a.alias, a.revision, a.updated, a.version_id FROM aliases a WHERE a.entry_id = :entry"
        + ("" if alias is None else " AND a.alias = :alias")
        + " ORDER BY a.updated DESC, a.alias LIMIT :most",
        **{"entry": entry, "most": most} | ({} if alias is None else {"alias": alias}),
    )
    found = []
    for row in rows:
        version = version_of(tx, tx.all(f"{_VERSION} WHERE v.id = :id", id=row["version_id"])[0])
        last = tx.all(
            "SELECT override, evidence FROM history WHERE entry_id = :entry AND alias = :alias AND to_id = :version"
            " AND action <> 'rollback' ORDER BY id DESC LIMIT 1",
            entry=entry,
            alias=row["alias"],
            version=row["version_id"],
        )
        override, evidence = (last[0]["override"], last[0]["evidence"]) if last else (None, None)
        found.append(
            AliasState(
                row["alias_id"],
                version.name,
                row["alias"],
                version,
                row["revision"],
                override,
                evidence,
                row["updated"],
            )
        )
    return found


def version_of(tx: Transaction, row: Row) -> Version:
    """Returns a row of `versions` with its aliases and tags."""
    aliases = tx.all("SELECT alias FROM aliases WHERE version_id = :id ORDER BY alias", id=row["id"])
    tags = tx.all("SELECT key, value FROM tags WHERE version_id = :id ORDER BY key", id=row["id"])
    own = tuple(each["alias"] for each in aliases)
    return replace(Version(**row), aliases=own, tags={tag["key"]: tag["value"] for tag in tags})


def versions_of(tx: Transaction, entry: int, most: int) -> list[Version]:
    """Lists the newest versions of an entry."""
    rows = tx.all(f"{_VERSION} WHERE e.id = :entry ORDER BY v.number DESC LIMIT :most", entry=entry, most=most)
    return [version_of(tx, row) for row in rows]


def rows_of_versions(tx: Transaction, after: int, most: int) -> list[Row]:
    """Returns rows of versions whose files are there, by key, from the one after `after`."""
    return tx.all(
        f"{_VERSION} WHERE v.id > :after AND v.removed IS NULL ORDER BY v.id LIMIT :most", after=after, most=most
    )


def versions_with_adapter(tx: Transaction, digest: str) -> list[Version]:
    """Finds the versions of an adapter by the digest of what it computes."""
    return [version_of(tx, row) for row in tx.all(f"{_VERSION} WHERE v.adapter_digest = :digest", digest=digest)]


def entries(tx: Transaction, most: int, prefix: str = "") -> list[Entry]:
    """Lists entries, what was changed last first."""
    rows = tx.all(
        "SELECT id, name, versions, newest, updated FROM entries"
        + (" WHERE substr(name, 1, :length) = :prefix" if prefix else "")
        + " ORDER BY updated DESC, name LIMIT :most",
        **({"length": len(prefix), "prefix": prefix} if prefix else {}),
        most=most,
    )
    found = []
    for row in rows:
        aliases = tx.all(
            "SELECT a.alias, v.number FROM (SELECT alias, version_id FROM aliases WHERE entry_id = :entry"
            " ORDER BY updated DESC, alias LIMIT :most) a JOIN versions v ON v.id = a.version_id ORDER BY a.alias",
            entry=row["id"],
            most=_MOST_ALIASES,
        )
        forced = tx.all(
            "SELECT count(*) AS n FROM history WHERE entry_id = :entry AND override IS NOT NULL", entry=row["id"]
        )
        at = {each["alias"]: each["number"] for each in aliases}
        found.append(Entry(row["name"], row["versions"], row["newest"], at, forced[0]["n"], row["updated"]))
    return found


def changes(tx: Transaction, entry: int, alias: str | None, most: int, version: int | None = None) -> list[Change]:
    """Lists the history of an entry, of an alias, or of what touched a version; the last change first."""
    wanted = ""
    values: dict[str, Any] = {}
    if alias is not None:
        wanted = " AND h.alias = :alias"
        values["alias"] = alias
    if version is not None:
        wanted += " AND (h.to_id = :version OR h.from_id = :version)"
        values["version"] = version
    rows = tx.all(
        f"{_CHANGE} WHERE h.entry_id = :entry{wanted} ORDER BY h.id DESC LIMIT :most", entry=entry, most=most, **values
    )
    return [Change(**{**_without_name(row), "alias": f"{row['name']}@{row['alias']}"}) for row in rows]


def _without_name(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "name"}


def _no_version(tx: Transaction, reference: Reference, entry: int) -> ConfigError:
    numbers: Sequence[int] = [
        row["number"]
        for row in tx.all(
            "SELECT number FROM versions WHERE entry_id = :entry ORDER BY number DESC LIMIT 1", entry=entry
        )
    ]
    if not numbers:
        return ConfigError(Problem("reference", f"{reference.name!r} has no versions", "add one: lamina registry add"))
    if reference.version is None and reference.digest is None:
        message = f"`lamina registry gc` has removed its files, of all versions of {reference.name!r}"
        return ConfigError(Problem("reference", message, "add the same adapter again: lamina registry add"))
    kind = "digest" if reference.digest and reference.digest.startswith(PREFIX) else "version"
    fix = f"its newest is {reference.name}:{numbers[0]}; see `lamina registry ls {reference.name}`"
    return ConfigError(Problem("reference", f"{reference.name!r} has no such {kind}: {reference}", fix))
