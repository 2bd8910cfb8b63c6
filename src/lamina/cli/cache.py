"""`lamina cache`: lists the cache folder, and removes entries that nobody uses."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.output import JsonFlag, notify, out, print_json
from lamina.errors import ConfigError, Problem

cache = typer.Typer(help="List and prune the cache folder.", no_args_is_help=False)

Kinds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KIND]...",
        help="Only these kinds: models, adapters, quantized, tokens, references, kernels, shapes, fingerprints, gguf, "
        "files, answers, judged, errors.",
    ),
]


@cache.command(name="ls")
def show(kinds: Kinds = None, as_json: JsonFlag = False) -> None:
    """List the cache by kind, or the entries of the given kinds."""
    from lamina.cache.folder import cache_folder
    from lamina.cache.prune import KINDS, cache_entries

    entries = cache_entries(kinds or [])
    if as_json:
        total = sum(entry.bytes for entry in entries)
        print_json({"folder": str(cache_folder()), "bytes": total, "entries": [entry.as_json() for entry in entries]})
        return
    if kinds:
        table = Table("kind", "entry", "size", "last used", box=None, padding=(0, 2))
        for entry in entries:
            table.add_row(entry.kind, escape(entry.path.name), _size(entry.bytes), _ago(entry.last_used))
    else:
        table = Table("kind", "entries", "size", "last used", "what", box=None, padding=(0, 2))
        for name, kind in KINDS.items():
            if own := [entry for entry in entries if entry.kind == name]:
                last = max(entry.last_used for entry in own)
                table.add_row(name, f"{len(own):,}", _size(sum(e.bytes for e in own)), _ago(last), kind.what)
    out.print(table)
    out.print(f"{cache_folder()}: {_size(sum(entry.bytes for entry in entries))}", markup=False)


@cache.command()
def prune(
    kinds: Kinds = None,
    older_than: Annotated[float | None, typer.Option(min=0.0, help="Only entries not used for N days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove entries of every kind and age.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be removed, and remove nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove cache entries that no process is using. They are created again when needed."""
    if not kinds and older_than is None and not everything:
        raise ConfigError(
            Problem("prune", "needs to know what to remove", "name kinds, or add --older-than DAYS, or --all")
        )
    if everything and (kinds or older_than is not None):
        raise ConfigError(Problem("--all", "cannot be combined with kinds or --older-than", "remove one of them"))
    from lamina.cache.prune import prune as prune_cache

    pruned = prune_cache(kinds or [], older_than_days=older_than or 0.0, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **pruned.as_json()})
        return
    for entry in pruned.removed:
        out.print(f"{entry.kind}/{entry.path.name}  {_size(entry.bytes)}", markup=False)
    for entry in pruned.in_use:
        notify(f"{entry.kind}/{entry.path.name} is in use, so it is kept")
    done = "would be removed" if dry_run else "removed"
    out.print(f"{len(pruned.removed)} {done}, {_size(pruned.bytes)}")


def _size(count: int) -> str:
    """Formats a number of bytes: `2500` -> `2.4 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:,.1f} GiB"


def _ago(moment: float) -> str:
    days = int((time.time() - moment) // (24 * 3600))
    return "today" if days <= 0 else "yesterday" if days == 1 else f"{days} days ago"
