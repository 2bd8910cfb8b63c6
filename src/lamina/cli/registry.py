"""`lamina registry`: versions of adapters, aliases that move by evidence, and what is in between."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamina.cli.output import JsonFlag, err, out, pair, print_json, print_table
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.registry.aliases import Move
    from lamina.registry.facts import AliasState, Change, Version
    from lamina.registry.registry import Registry

_MOST_ALIASES = 3

registry = typer.Typer(help="Versions of adapters, and the aliases that point at them.", no_args_is_help=False)

Place = Annotated[
    str | None,
    typer.Option(
        "--registry", metavar="URL|FOLDER", help="The registry; by default LAMINA_REGISTRY, or the user's own."
    ),
]
Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME:VERSION, NAME@ALIAS or NAME@sha256:DIGEST.")]
AliasRef = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="An alias, such as support@prod.")]
Why = Annotated[str | None, typer.Option("--why", help="The reason, for the history.")]
Override = Annotated[
    str | None,
    typer.Option("--override", metavar="REASON", help="Do without evidence; the reason stays in the history."),
]
Most = Annotated[int, typer.Option("--limit", min=1, help="Show at most N rows.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report what would be done, and do nothing.")]


def opened(place: str | None, create: bool = False) -> Registry:
    """Opens the registry of a command.

    Args:
        place: As given; None for the default.
        create: Whether to make one where there is none.

    Raises:
        ConfigError, RegistryError: There is none, or it cannot be opened.
    """
    from lamina.registry.registry import Registry

    return Registry(place, create=create)


@registry.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="RUN|ADAPTER", help="A run directory or an adapter folder.")],
    name: Annotated[str, typer.Option("--name", help="What to call it.")],
    license: Annotated[str | None, typer.Option("--license", help="Its license, such as apache-2.0.")] = None,
    parent: Annotated[list[str] | None, typer.Option("--parent", metavar="REF", help="What it came from.")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--evaluation", metavar="DIGEST", help="Digest of an evaluation of it.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag; may be repeated.")] = None,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Add a run or an adapter as a version. The same content added again is the same version."""
    tags = dict(pair("--tag", text) for text in tag or [])
    from lamina.registry.manifest import find_adapter

    digest = _peft_digest(find_adapter(source))
    with opened(place, create=True) as found:
        added = found.add(
            source,
            name,
            adapter_digest=digest,
            evaluations=evaluation or [],
            parents=parent or [],
            license=license,
            tags=tags,
        )
    if as_json:
        print_json(added.as_json())
    else:
        known = "" if added.is_new else " (it was there)"
        out.print(f"{added.version.ref}  {added.version.digest}{known}", markup=False)


@registry.command()
def ls(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="List the versions of this entry.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Only entries that begin like this.")] = "",
    limit: Most = 50,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """List entries, what was changed last first; or the versions of one, the newest first."""
    with opened(place) as found:
        if name is not None:
            _list_versions(found, name, limit, as_json)
            return
        entries, total = found.entries(limit, prefix)
    if as_json:
        print_json({"registry": found.place.shown, "total": total, "entries": [entry.as_json() for entry in entries]})
        return
    rows = []
    for entry in entries:
        aliases = ", ".join(f"{alias} -> {number}" for alias, number in list(entry.aliases.items())[:_MOST_ALIASES])
        more = ", ..." if len(entry.aliases) > _MOST_ALIASES else ""
        own = (entry.name, entry.versions, entry.newest, aliases + more, entry.overrides or "", _day(entry.updated))
        rows.append(own)
    print_table(("name", "versions", "newest", "aliases", "overrides", "changed"), rows)
    if total > len(entries):
        err.print(f"{len(entries):,} of {total:,} entries; see more with --limit or --prefix", markup=False)


def _list_versions(found: Registry, name: str, limit: int, as_json: bool) -> None:
    versions, aliases = found.versions(name, limit), found.aliases(name, limit)
    if as_json:
        print_json(
            {
                "registry": found.place.shown,
                "name": name,
                "versions": [version.as_json() for version in versions],
                "aliases": [alias.as_json() for alias in aliases],
            }
        )
        return
    rows = []
    for version in versions:
        size = "removed" if version.removed else f"{version.size / 2**20:,.1f} MiB"
        own = (version.ref, ", ".join(version.aliases), version.method, size, _day(version.created), version.who)
        rows.append((*own, version.digest[:19]))
    print_table(("version", "aliases", "method", "size", "added", "by", "digest"), rows)
    _print_overrides(aliases)


@registry.command()
def show(ref: Ref, place: Place = None, as_json: JsonFlag = False) -> None:
    """Show all about a version: its manifest, its aliases, its history and its gate records."""
    with opened(place) as found:
        shown = found.show(ref)
    if as_json:
        print_json(shown.as_json())
        return
    version, manifest = shown.version, shown.manifest
    _print_version(version)
    facts: dict[str, Any] = {
        "adapter": manifest.adapter_digest,
        "base": f"{manifest.base.get('ref')}  {manifest.base.get('tensors') or ''}",
        "license": manifest.license or "",
        "data": ", ".join(
            f"{data.get('file') or data.get('path')} ({data.get('rows')} rows)" for data in manifest.data
        ),
        "probes": (manifest.probes or {}).get("count", ""),
        "versions": ", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
        "parents": ", ".join(manifest.parents),
        "evaluations": ", ".join(manifest.evaluations),
        "gate records": ", ".join(f"{record['verdict']} {record['digest'][:19]}" for record in shown.records),
        "files": ", ".join(f"{file.name} ({file.size:,} bytes)" for file in manifest.files),
    }
    print_table(("", ""), [(key, value) for key, value in facts.items() if value != ""])
    _print_changes(shown.history)


@registry.command()
def diff(ref: Ref, other: Ref, place: Place = None, as_json: JsonFlag = False) -> None:
    """Compare the manifests of two versions."""
    with opened(place) as found:
        differences = found.diff(ref, other)
    if as_json:
        print_json({"a": ref, "b": other, "differences": {name: list(values) for name, values in differences.items()}})
        return
    rows = [(name, *(str(value)[:100] for value in values)) for name, values in differences.items()]
    if rows:
        print_table(("field", ref, other), rows)
    else:
        out.print("no differences")


@registry.command()
def tag(
    ref: Ref,
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Tags; KEY= takes one away.")],
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Set tags of a version. `keep=...` lets gc leave it alone."""
    values: dict[str, str | None] = {}
    for text in tags:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(Problem("KEY=VALUE", f"{text!r} is not KEY=VALUE", "write a pair such as owner=ada"))
        values[key] = value or None
    with opened(place) as found:
        version = found.tag(ref, values)
    if as_json:
        print_json(version.as_json())
    else:
        _print_version(version)


@registry.command()
def alias(
    ref: Ref,
    name: Annotated[str | None, typer.Argument(metavar="[ALIAS]", help="The alias, such as canary.")] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Take the alias NAME@ALIAS away; its history stays.")
    ] = False,
    why: Why = None,
    override: Override = None,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at a version by hand. Aliases that were ever promoted, and prod, move by evidence alone."""
    if delete == (name is not None):
        raise ConfigError(
            Problem("ALIAS", "is needed, or else --delete", "write: lamina registry alias support:7 canary")
        )
    with opened(place) as found:
        if name is None:
            moved = found.delete_alias(ref, why=why, override=override)
        else:
            moved = found.set_alias(ref, name, why=why, override=override)
    _print_move(moved, as_json)


@registry.command()
def promote(
    ref: Ref,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias, such as prod.")],
    record: Annotated[
        str | None,
        typer.Option("--record", metavar="DIGEST|FILE", help="The gate record; by default the newest for this pair."),
    ] = None,
    override: Override = None,
    why: Why = None,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at a version, with a passing gate record for exactly this pair."""
    with opened(place) as found:
        moved = found.promote(ref, to, record=record, override=override, why=why)
    _print_move(moved, as_json)


@registry.command()
def rollback(ref: AliasRef, why: Why = None, place: Place = None, as_json: JsonFlag = False) -> None:
    """Point an alias at what it pointed at before. Each rollback takes one move back."""
    with opened(place) as found:
        moved = found.rollback(ref, why=why)
    _print_move(moved, as_json)


@registry.command()
def history(
    ref: Annotated[str, typer.Argument(metavar="NAME|NAME@ALIAS", help="An entry, or one of its aliases.")],
    limit: Most = 50,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Show who moved which alias, when, from what to what, why, and on what evidence."""
    with opened(place) as found:
        changes = found.history(ref, limit)
    if as_json:
        print_json({"ref": ref, "changes": [change.as_json() for change in changes]})
    else:
        _print_changes(changes)


def _peft_digest(folder: Path) -> str | None:
    """The digest of an adapter that lamina did not train, for which it must be read; None for one that says it."""
    if (folder / "lamina.json").is_file():
        return None
    from lamina.adapters.adapter import read_adapter

    return read_adapter(folder).digest


def _print_move(moved: Move, as_json: bool) -> None:
    if as_json:
        print_json(moved.as_json())
        return
    before, after = (version.ref if version else "nothing" for version in (moved.before, moved.after))
    if not moved.changed:
        out.print(f"{moved.alias} already points at {after}", markup=False)
        return
    reason = f"  override: {moved.override}" if moved.override else ""
    evidence = f"  evidence: {moved.evidence[:19]}" if moved.evidence else ""
    out.print(f"{moved.alias}: {before} -> {after}{evidence}{reason}", markup=False)


def _print_version(version: Version) -> None:
    aliases = "".join(f"  @{alias}" for alias in version.aliases)
    tags = "".join(f"  {key}={value}" for key, value in version.tags.items())
    gone = f"  (files removed {_day(version.removed)})" if version.removed else ""
    out.print(f"{version.ref}  {version.digest}{aliases}{tags}{gone}", markup=False)
    out.print(f"added {_day(version.created)} by {version.who}", markup=False)


def _print_changes(found: list[Change]) -> None:
    rows = []
    for change in found:
        reason = f"OVERRIDE: {change.override}" if change.override else change.why or ""
        ends = (str(change.before or "-"), str(change.after or "-"), (change.evidence or "")[:19])
        rows.append((_time(change.at), change.who, change.alias, change.action, *ends, reason))
    if rows:
        print_table(("when", "who", "alias", "what", "from", "to", "evidence", "why"), rows)


def _print_overrides(aliases: list[AliasState]) -> None:
    for state in aliases:
        if state.override:
            out.print(f"{state.ref} -> {state.version.ref} by an override: {state.override}", markup=False)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d", time.localtime(seconds))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
