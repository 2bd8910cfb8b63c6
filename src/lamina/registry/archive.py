"""`export` and `import`: versions with all their files as one file that can be handed to somebody.

The file is a plain tar: `index.json` first, then each blob by its digest. Writing it twice gives the same bytes.
Reading takes nothing else than what is written here: regular files with names of that form, as many and as large as the
index says, each with its own digest. Nothing lands in the registry before all of it was checked.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lamina import files
from lamina.errors import ConfigError, Problem, RegistryError, StorageError, check_format
from lamina.registry.adding import insert, needed, put
from lamina.registry.aliases import GATED, Reason, move, state_of
from lamina.registry.blobs import Blobs, copy_blob, read_blob
from lamina.registry.digests import PREFIX, canonical, is_digest
from lamina.registry.evidence import GateRecord, parse_record
from lamina.registry.facts import Version
from lamina.registry.gates import store_record
from lamina.registry.leases import leased
from lamina.registry.lookup import ALL, alias_states, entry_id, live_version, versions_of
from lamina.registry.manifest import Manifest
from lamina.registry.names import Reference, check_alias, check_name, check_tag, parse
from lamina.registry.records.database import Database
from lamina.registry.tar import Member, members, read_header, write_end, write_member

FORMAT = 1
KIND = "lamina registry export"
INDEX = "index.json"
MOST_INDEX_BYTES = 64 * 2**20
MOST_ENTRIES = 100_000
MOST_BYTES = 256 * 2**30
# Of a manifest and of a gate record, which are read as a whole; `read_blob` takes no more either.
MOST_DOCUMENT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        path: The file.
        versions: References of what is in it.
        records: How many gate records.
        bytes: Its size.
    """

    path: Path
    versions: list[str]
    records: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"path": str(self.path), "versions": self.versions, "records": self.records, "bytes": self.bytes}


@dataclass(frozen=True)
class Imported:
    """The result of `import`.

    Attributes:
        added: References of versions that are new.
        known: References of versions that were there.
        aliases: Aliases that were set.
        kept: Aliases of the file that were left as they are here.
        records: How many gate records the file has.
    """

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    records: int = 0

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


def export(records: Database, blobs: Blobs, refs: Sequence[str], path: Path, who: str) -> Exported:
    """Writes versions into one file.

    Args:
        records, blobs: The registry's.
        refs: References; a bare name stands for all versions of the entry.
        path: The file.
        who: Who exports them.

    Raises:
        ConfigError: There is no such version.
        RegistryError: A file of it is missing or damaged.
        StorageError: The file cannot be written; what was at `path` is unchanged.
    """
    wanted = [Reference(version.name, version=version.number) for version in _wanted(records, refs)]
    with leased(records, wanted, who) as versions:
        index, sizes = _index(records, blobs, versions)
        content = canonical(index)
        with files.new_binary_file(path) as file:
            write_member(file, INDEX, len(content))
            file.write(content)
            write_end(file, len(content), last=False)
            for digest, size in sizes.items():
                write_member(file, f"blobs/{digest.removeprefix(PREFIX)}", size)
                copy_blob(blobs, digest, size, file)
                write_end(file, size, last=False)
            write_end(file, 0, last=True)
    return Exported(path, [version.ref for version in versions], len(index["records"]), path.stat().st_size)


def _wanted(records: Database, refs: Sequence[str]) -> list[Version]:
    wanted: dict[int, Version] = {}
    with records.reading() as tx:
        for ref in refs:
            reference = parse(ref)
            found = [live_version(tx, reference)]
            if str(reference) == reference.name:
                entry = entry_id(tx, reference.name)
                found = [version for version in versions_of(tx, entry, ALL) if version.removed is None]
            wanted |= {version.id: version for version in found}
    return sorted(wanted.values(), key=lambda version: (version.name, version.number))


def _index(records: Database, blobs: Blobs, versions: list[Version]) -> tuple[dict[str, Any], dict[str, int]]:
    ids = {version.id for version in versions}
    with records.reading() as tx:
        aliases = [
            {
                "name": state.name,
                "alias": state.alias,
                "digest": state.version.digest,
                "evidence": state.evidence,
                "override": state.override,
            }
            for entry in sorted({version.entry_id for version in versions})
            for state in alias_states(tx, entry)
            if state.version.id in ids
        ]
        gates = [
            row["digest"]
            for digest in sorted({version.adapter_digest for version in versions})
            for row in tx.all("SELECT digest FROM gates WHERE candidate = :digest ORDER BY id", digest=digest)
        ]
    sizes: dict[str, int] = {}
    for version in versions:
        sizes |= needed(Manifest.from_bytes(read_blob(blobs, version.digest), version.ref))
    sizes |= {digest: len(read_blob(blobs, digest)) for digest in gates}
    index = {
        "format": FORMAT,
        "kind": KIND,
        "versions": [
            {"name": each.name, "number": each.number, "digest": each.digest, "tags": each.tags} for each in versions
        ],
        "aliases": sorted(aliases, key=lambda alias: (alias["name"], alias["alias"])),
        "records": gates,
        "blobs": [{"digest": digest, "size": size} for digest, size in sizes.items()],
    }
    return index, sizes


@dataclass(frozen=True)
class _Content:
    """A file that was checked: manifests and records by digest, and where its blobs were put."""

    index: dict[str, Any]
    manifests: dict[str, Manifest]
    sources: dict[str, Path]


def import_archive(
    records: Database, blobs: Blobs, path: Path, who: str, *, name: str | None = None, aliases: bool = False
) -> Imported:
    """Takes over what `export` wrote. Importing the same file again changes nothing.

    Args:
        records, blobs: The registry's.
        path: The file.
        who: Who imports it.
        name: What to call the entry here, if the file has one alone.
        aliases: Also set the file's aliases, where there is none of that name.

    Raises:
        ConfigError: `name` is given, and there are several entries.
        NewerVersionError: A newer lamina wrote it.
        RegistryError: It is no export, or damaged; the registry is unchanged.
        StorageError: It cannot be read.
    """
    try:
        with path.open("rb") as file, tempfile.TemporaryDirectory(prefix="lamina-import-") as folder:
            content = _checked(file, path, Path(folder))
            _check_names(content.index, name)
            return _land(records, blobs, content, who, path.name, name, aliases)
    except (RegistryError, ConfigError, StorageError):
        raise
    except OSError as error:
        raise StorageError.wrap(error, path, "importing") from error


def _land(
    records: Database, blobs: Blobs, content: _Content, who: str, source: str, name: str | None, aliases: bool
) -> Imported:
    index, done = content.index, Imported(records=len(content.index["records"]))
    for digest in index["records"]:
        store_record(records, blobs, parse_record(content.sources[digest].read_bytes(), digest, digest))
    for manifest in content.manifests.values():
        put(blobs, manifest, {file.sha256: content.sources[file.sha256] for file in manifest.files})
    with records.writing() as tx:
        tx.hold_blobs(alone=False)
        for manifest in content.manifests.values():  # what `gc` took in the meantime is written again
            if not all(blobs.has(digest) for digest in needed(manifest)):
                put(blobs, manifest, {file.sha256: content.sources[file.sha256] for file in manifest.files})
        numbers: dict[tuple[str, str], Version] = {}
        for each in index["versions"]:
            added = insert(
                tx, name or each["name"], content.manifests[each["digest"]], who, each["tags"], each["number"]
            )
            numbers[each["name"], each["digest"]] = added.version
            (done.added if added.is_new else done.known).append(added.version.ref)
        for each in index["aliases"] if aliases else ():
            version = numbers[each["name"], each["digest"]]
            shown = f"{version.name}@{each['alias']}"
            if state_of(tx, version.entry_id, each["alias"]) is not None:
                done.kept.append(shown)
                continue
            reason = Reason("import", who, f"imported from {source}", each["evidence"], each["override"])
            move(tx, version.entry_id, each["alias"], None, version, reason)
            done.aliases.append(shown)
    return done


def _checked(file: IO[bytes], path: Path, folder: Path) -> _Content:
    """Reads a file into a folder, and checks all of it."""
    first = read_header(file, path)
    if first is None or first.name != INDEX or first.size > MOST_INDEX_BYTES:
        raise _unusable(path, f"does not begin with {INDEX}")
    index = _read_index(file.read(first.size), path)
    file.seek(-first.size % 512, 1)
    wanted = {blob["digest"]: blob["size"] for blob in index["blobs"]}
    sources: dict[str, Path] = {}
    for member in members(file, path):
        digest = _digest_of(member, wanted, sources, path)
        sources[digest] = folder / digest.removeprefix(PREFIX)
        with sources[digest].open("xb") as target:
            if member.copy(file, target) != digest:
                raise _unusable(path, f"{member.name} has other bytes than its name says")
    if lost := wanted.keys() - sources.keys():
        raise _unusable(path, f"{len(lost)} of its files are missing")
    manifests = {}
    for each in index["versions"]:
        manifest = Manifest.from_bytes(sources[each["digest"]].read_bytes(), f"{path}: {each['name']}")
        if not needed(manifest).items() <= wanted.items():
            raise _unusable(path, f"files of {each['name']}:{each['number']} are missing")
        manifests[each["digest"]] = manifest
    found = {
        digest: parse_record(sources[digest].read_bytes(), f"{path}: {digest}", digest) for digest in index["records"]
    }
    for alias in index["aliases"]:
        _check_evidence(alias, manifests[alias["digest"]], found, path)
    return _Content(index, manifests, sources)


def _check_evidence(
    alias: Mapping[str, Any], manifest: Manifest, records: Mapping[str, GateRecord], path: Path
) -> None:
    """Checks that an alias has the evidence that it needs, as a promotion does."""
    record = records.get(alias["evidence"])
    if alias["evidence"] is None:
        if alias["alias"] in GATED and not (alias["override"] or "").strip():
            raise _unusable(path, f"the alias {alias['alias']} has neither a gate record nor the reason of an override")
    elif record is None or (record.verdict, record.candidate.adapter_digest) != ("promote", manifest.adapter_digest):
        raise _unusable(path, f"the alias {alias['alias']} has no gate record that lets its version be promoted")


def _digest_of(member: Member, wanted: dict[str, int], seen: dict[str, Path], path: Path) -> str:
    folder, _, name = member.name.partition("/")
    digest = PREFIX + name
    if folder != "blobs" or wanted.get(digest) != member.size or digest in seen:
        raise _unusable(path, f"{member.name[:100]!r} is not in its index, or there twice, or of another size")
    return digest


def _read_index(content: bytes, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(content)
        check_format(path, index["format"], FORMAT, "")
        if index["kind"] != KIND:
            raise ValueError(f"it is of the kind {index['kind']!r}")
        blobs = index["blobs"]
        if len(blobs) > MOST_ENTRIES or len(index["versions"]) > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES:,} files")
        for blob in blobs:
            if not is_digest(blob["digest"]) or type(blob["size"]) is not int or blob["size"] < 0:
                raise ValueError("a file has no digest and size")
        if sum(blob["size"] for blob in blobs) > MOST_BYTES:
            raise ValueError(f"its files have more than {MOST_BYTES:,} bytes")
        known = {blob["digest"]: blob["size"] for blob in blobs}
        for each in _each_version(index):
            if each["digest"] not in known:
                raise ValueError(f"{each['name']} has no manifest")
        if not set(index["records"]) <= known.keys():
            raise ValueError("a gate record is missing")
        documents = {*index["records"], *(each["digest"] for each in index["versions"])}
        if any(known[digest] > MOST_DOCUMENT_BYTES for digest in documents):
            raise ValueError(f"a manifest or a record has more than {MOST_DOCUMENT_BYTES:,} bytes")
        _check_aliases(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, RegistryError) or type(error).__name__ == "NewerVersionError":
            raise
        raise _unusable(path, f"its index is not as it must be ({error})") from None
    return index


def _each_version(index: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in index["versions"]:
        check_name(each["name"])
        if type(each["number"]) is not int or not 1 <= each["number"] < 10**9:
            raise ValueError(f"{each['number']!r} is no number of a version")
        for key, value in each["tags"].items():
            check_tag(key, value)
        yield each


def _check_aliases(index: dict[str, Any]) -> None:
    there = {(each["name"], each["digest"]) for each in index["versions"]}
    for each in index["aliases"]:
        check_alias(each["alias"])
        texts = (each["evidence"], each["override"])
        if (each["name"], each["digest"]) not in there or not all(t is None or isinstance(t, str) for t in texts):
            raise ValueError(f"the alias {each['alias']} points at nothing in it")


def _check_names(index: dict[str, Any], name: str | None) -> None:
    names = sorted({each["name"] for each in index["versions"]})
    if name is not None:
        check_name(name)
        if len(names) != 1:
            message = f"stands for one entry, and the file has {', '.join(names)}"
            raise ConfigError(Problem("--name", message, "leave it out"))


def _unusable(path: Path, reason: str) -> RegistryError:
    return RegistryError(
        f"{path}: cannot be imported: {reason}. Nothing was taken over. Fix: let `lamina registry export` write it "
        "again, and compare its SHA-256 after copying it."
    )
