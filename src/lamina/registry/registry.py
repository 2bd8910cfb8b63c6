"""`Registry`: versions of adapters by name, aliases that point at them, and the evidence that lets an alias move.

    registry = lamina.Registry("registries/team")
    registry.add("runs/support", "support")
    registry.promote("support:1", "prod")        # with a passing gate record for exactly this pair
    registry.rollback("support@prod")
    lamina.load(registry.folder("support@prod"))

What a verb does not need is not imported with it: `ls` and `promote` answer in less time than that would take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError, Problem, RegistryError
from lamina.registry.blobs import read_blob
from lamina.registry.digests import is_digest
from lamina.registry.facts import AliasState, Change, Entry, Version
from lamina.registry.lookup import (
    alias_states,
    changes,
    entries,
    entry_id,
    find_version,
    live_version,
    versions_of,
)
from lamina.registry.moving import DEFAULT_ROWS, Aliases
from lamina.registry.names import Reference, check_license, check_name, check_tag, check_text, parse

if TYPE_CHECKING:
    from lamina.registry.adding import Added
    from lamina.registry.archive import Exported, Imported
    from lamina.registry.gc import Collected
    from lamina.registry.manifest import Manifest
    from lamina.registry.verifying import Verified


@dataclass(frozen=True)
class Shown:
    """All about a version.

    Attributes:
        version: The version.
        manifest: Its manifest.
        history: The changes that led to it or away from it, the last first.
        records: Digests and verdicts of the gate records about it, the last first.
    """

    version: Version
    manifest: Manifest
    history: list[Change]
    records: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **self.version.as_json(),
            "manifest": self.manifest.as_json(),
            "history": [change.as_json() for change in self.history],
            "records": self.records,
        }


class Registry(Aliases):
    """A registry. Safe to use from several threads; close it, or use it in a `with` block."""

    def add(
        self,
        source: str | Path,
        name: str,
        *,
        adapter_digest: str | None = None,
        evaluations: Sequence[str] = (),
        parents: Sequence[str] = (),
        license: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Added:
        """Makes a version of a run or an adapter folder. The same content added again is the same version.

        Args:
            source: The run or the adapter folder.
            name: Of the entry, which is made if there is none.
            adapter_digest: Of an adapter that lamina did not train, as `read_adapter` gives it.
            evaluations: Digests of evaluations of it.
            parents: References of versions in this registry that it came from.
            license: SPDX name of its license.
            tags: To be set on it.

        Raises:
            AdapterError: It is damaged, or there is none.
            ConfigError: The name, a tag, the license or an evaluation's digest is none, or a parent is not there.
            RegistryError, StorageError: It cannot be stored.
        """
        from lamina.registry.adding import store
        from lamina.registry.manifest import build_manifest, find_adapter

        check_name(name)
        for key, value in (tags or {}).items():
            check_tag(key, value)
        if license is not None:
            check_license(license)
        for digest in evaluations:
            if not is_digest(digest):
                fix = "give the digest that `lamina eval --json` prints"
                raise ConfigError(Problem("--evaluation", f"{digest[:200]!r} is no digest of an evaluation", fix))
        folder = find_adapter(Path(source))
        origins = [self.find(parent).digest for parent in parents]
        manifest = build_manifest(
            folder, adapter_digest=adapter_digest, evaluations=evaluations, parents=origins, license=license
        )
        sources = {file.sha256: folder / file.name for file in manifest.files}
        return store(self.records, self.blobs, name, manifest, sources, self.who, tags or {})

    def entries(self, most: int = DEFAULT_ROWS, prefix: str = "") -> tuple[list[Entry], int]:
        """Lists entries, what was changed last first, and counts all.

        Raises:
            ConfigError: The prefix is not UTF-8.
        """
        check_text("--prefix", prefix)
        with self.records.reading() as tx:
            return entries(tx, most, prefix), tx.all("SELECT count(*) AS n FROM entries")[0]["n"]

    def versions(self, name: str, most: int = DEFAULT_ROWS) -> list[Version]:
        """Lists the versions of an entry, the newest first.

        Raises:
            ConfigError: There is no such entry.
        """
        with self.records.reading() as tx:
            return versions_of(tx, entry_id(tx, check_name(name)), most)

    def aliases(self, name: str, most: int = DEFAULT_ROWS) -> list[AliasState]:
        """Lists where the aliases of an entry point, what was moved last first.

        Raises:
            ConfigError: There is no such entry.
        """
        with self.records.reading() as tx:
            return alias_states(tx, entry_id(tx, check_name(name)), most=most)

    def manifest(self, version: Version) -> Manifest:
        """Reads the manifest of a version, and checks its digest.

        Raises:
            RegistryError: It is damaged or missing, or `gc` has removed it.
        """
        from lamina.registry.manifest import Manifest

        try:
            return Manifest.from_bytes(read_blob(self.blobs, version.digest), version.ref)
        except RegistryError:
            with self.records.reading() as tx:
                live_version(tx, Reference(version.name, version=version.number))  # removed is not lost
            raise

    def show(self, ref: str) -> Shown:
        """Collects all about a version.

        Raises:
            ConfigError: There is none.
            RegistryError: Its manifest is damaged or missing.
        """
        reference = parse(ref)
        with self.records.reading() as tx:
            version = find_version(tx, reference)
            history = changes(tx, version.entry_id, None, DEFAULT_ROWS, version.id)
            records = tx.all(
                "SELECT digest, against, verdict, stored FROM gates WHERE candidate = :digest"
                " ORDER BY id DESC LIMIT 50",
                digest=version.adapter_digest,
            )
        told = [{**row, "against": row["against"] or None} for row in records]
        return Shown(version, self.manifest(version), history, told)

    def diff(self, one: str, other: str) -> dict[str, tuple[Any, Any]]:
        """Compares the manifests of two versions: dotted field -> what each has.

        Raises:
            ConfigError: One is not there.
            RegistryError: A manifest is damaged or missing.
        """
        first, second = (_flat(self.manifest(self.find(ref)).as_json()) for ref in (one, other))
        keys = sorted(first.keys() | second.keys())
        return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}

    def tag(self, ref: str, tags: Mapping[str, str | None]) -> Version:
        """Sets tags of a version; None takes one away.

        Raises:
            ConfigError: There is no such version, or a tag is none.
        """
        reference = parse(ref)
        for key, value in tags.items():
            check_tag(key, value or "")
        with self.records.writing() as tx:
            version = find_version(tx, reference)
            for key, value in tags.items():
                tx.run("DELETE FROM tags WHERE version_id = :id AND key = :key", id=version.id, key=key)
                if value is not None:
                    sql = "INSERT INTO tags (version_id, key, value) VALUES (:id, :key, :value)"
                    tx.run(sql, id=version.id, key=key, value=value)
            return find_version(tx, reference)

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Verified:
        """Computes all digests again, and checks the records; see `verifying.py`.

        Raises:
            RegistryError: The records cannot be read at all.
        """
        from lamina.registry.verifying import verify

        return verify(self.records, self.blobs, progress)

    def gc(
        self,
        *,
        window_days: float = 30.0,
        last_targets: int = 10,
        grace_seconds: float = 3600.0,
        dry_run: bool = False,
    ) -> Collected:
        """Removes what nobody needs; see `gc.py`.

        Args:
            window_days: Keep what was added or touched within so many days.
            last_targets: Keep so many of each alias' last targets.
            grace_seconds: Keep files that were written within so many seconds.
            dry_run: Remove nothing, and tell what would be.

        Raises:
            RegistryError, StorageError: Something could not be removed; running it again goes on.
        """
        from lamina.registry.gc import collect

        return collect(
            self.records,
            self.blobs,
            window_days=window_days,
            last_targets=last_targets,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
        )

    def export(self, refs: Sequence[str], path: str | Path) -> Exported:
        """Writes versions, with all their files and gate records, into one file; see `archive.py`.

        Args:
            refs: References; a bare name stands for all versions of the entry.
            path: The file.

        Raises:
            ConfigError: There is no such version.
            RegistryError, StorageError: A file is missing or damaged, or cannot be written.
        """
        from lamina.registry.archive import export

        return export(self.records, self.blobs, refs, Path(path), self.who)

    def import_archive(self, path: str | Path, *, name: str | None = None, aliases: bool = False) -> Imported:
        """Takes over what `export` wrote, once all of it was checked; see `archive.py`.

        Args:
            path: The file.
            name: What to call the entry here, if the file has one alone.
            aliases: Also set the file's aliases, where there is none of that name.

        Raises:
            ConfigError: `name` is given, and there are several entries.
            RegistryError, StorageError: It is no export, damaged, or cannot be read; nothing was changed.
        """
        from lamina.registry.archive import import_archive

        return import_archive(self.records, self.blobs, Path(path), self.who, name=name, aliases=aliases)

    def folder(self, ref: str) -> Path:
        """Gives a folder with the files of a version, as they were in its adapter folder; read-only, and kept.

        Raises:
            ConfigError: There is no such version.
            RegistryError: Its files are missing or damaged.
        """
        from lamina.registry.materialize import materialize

        return materialize(self.records, self.blobs, parse(ref), self.who)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: item for item in value}
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
