"""`lamina registry` commands about files: verify, gc, export and import, push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.output import Bars, JsonFlag, check_target, notify, out, print_json
from lamina.cli.registry import DryRun, Place, Ref, opened, registry
from lamina.errors import ConfigError, Problem


@registry.command()
def verify(place: Place = None, as_json: JsonFlag = False) -> None:
    """Compute all digests again, and check aliases and history. Exits with 1 if anything is wrong."""
    with opened(place) as found, Bars() as bars:
        result = found.verify(lambda done, total: bars.update("versions", done, total))
    if as_json:
        print_json(result.as_json())
    else:
        for problem in result.problems:
            out.print(problem, markup=False)
        counts = f"{result.versions:,} versions, {result.blobs:,} files, {result.aliases:,} aliases"
        verdict = "all is well" if result.passed else f"{len(result.problems):,} problems"
        out.print(f"{verdict}: {counts}, {result.records:,} gate records", markup=False)
    if not result.passed:
        raise typer.Exit(1)


@registry.command()
def gc(
    days: Annotated[
        float, typer.Option("--days", min=0.0, help="Keep what was added or touched within N days.")
    ] = 30.0,
    last: Annotated[int, typer.Option("--last", min=1, help="Keep the last N targets of each alias.")] = 10,
    dry_run: DryRun = False,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove files of old versions that no alias, no history and no reader needs."""
    with opened(place) as found:
        result = found.gc(window_days=days, last_targets=last, dry_run=dry_run)
    if as_json:
        print_json(result.as_json())
        return
    for ref in result.versions:
        out.print(ref, markup=False)
    done = "would be removed" if dry_run else "removed"
    out.print(f"{len(result.versions):,} versions and {result.blobs:,} files {done}, {result.bytes / 2**20:,.1f} MiB")


@registry.command()
def export(
    refs: Annotated[
        list[str], typer.Argument(metavar="REF...", help="Versions; a bare NAME stands for all of its versions.")
    ],
    target: Annotated[Path, typer.Option("--out", help="The file to write.")],
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Write versions, with all their files and gate records, into one file to hand to somebody."""
    check_target("--out", target)
    with opened(place) as found:
        result = found.export(refs, target)
    if as_json:
        print_json(result.as_json())
    else:
        out.print(f"{result.path}: {', '.join(result.versions)} ({result.bytes:,} bytes)", markup=False)


@registry.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What lamina registry export wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call the entry here.")] = None,
    aliases: Annotated[
        bool, typer.Option("--aliases", help="Also set the file's aliases, where there is none of that name.")
    ] = False,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Take over an export, once all of it was checked. Importing it again changes nothing."""
    if not source.is_file():
        raise ConfigError(Problem("FILE", f"{source} is no file", "check the path"))
    with opened(place, create=True) as found:
        result = found.import_archive(source, name=name, aliases=aliases)
    if as_json:
        print_json(result.as_json())
        return
    for word, refs in (("added", result.added), ("there already", result.known), ("alias", result.aliases)):
        for ref in refs:
            out.print(f"{word}: {ref}", markup=False)
    for ref in result.kept:
        notify(f"{ref} is left as it is here")


@registry.command()
def push(
    ref: Ref,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="On the Hugging Face hub: OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; by default private.")] = False,
    dry_run: DryRun = False,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload a version to the Hugging Face hub, with a model card made from its record."""
    from lamina.registry.hub import push as push_version

    with opened(place) as found:
        result = push_version(found, ref, repository, private=not public, dry_run=dry_run)
    if as_json:
        print_json(result.as_json())
        return
    for name, size in result.files.items():
        out.print(f"{name}  {size:,} bytes", markup=False)
    if dry_run:
        out.print(f"\n{result.card}", markup=False)
    out.print(f"{'would be uploaded to' if dry_run else 'uploaded to'} {result.repository}", markup=False)


@registry.command()
def pull(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="On the Hugging Face hub: OWNER/NAME.")],
    name: Annotated[str, typer.Option("--name", help="What to call it here.")],
    revision: Annotated[str | None, typer.Option("--revision", help="A commit, tag or branch of it.")] = None,
    place: Place = None,
    as_json: JsonFlag = False,
) -> None:
    """Download an adapter from the Hugging Face hub, and add it as a version."""
    from lamina.registry.hub import pull as pull_version

    with opened(place, create=True) as found:
        added = pull_version(found, repository, name, revision=revision)
    if as_json:
        print_json(added.as_json())
    else:
        out.print(f"{added.version.ref}  {added.version.digest}", markup=False)
