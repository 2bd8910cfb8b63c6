"""Which files a user means: a file, a folder, a glob, or a data set of the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lamina.errors import ConfigError, Problem

# Suffix -> kind. A file's own beginning decides where the suffix says nothing.
KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_GLOB = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w\[\]%:-]+))?")


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Attributes:
        name: As the user named it, or as it was found under what the user named.
        path: Where it lies; None for a data set of the hub.
        kind: One of `KINDS`' values, or `hub`.
        compression: `gzip`, `zstd`, or empty.
        split: Of a data set of the hub.
        hub_id: Its id there.
        hub_config: Which of its configurations, where it has several.
        skipped: Files beside it that hold no rows, such as a README; on the first file of a folder.
    """

    name: str
    path: Path | None
    kind: str
    compression: str = ""
    split: str = "train"
    hub_id: str = ""
    hub_config: str = ""
    skipped: tuple[str, ...] = field(default=(), compare=False)


def find_files(wanted: str, field: str = "data.train") -> list[DataFile]:
    """The files that `wanted` stands for, in order of their names.

    Args:
        wanted: A file, a folder (searched through, hidden files apart), a glob, or
            `user/dataset[/configuration][:split]` of the hub.
        field: The configuration field that named it, for errors.

    Raises:
        ConfigError: There is no such file, or a folder or glob has none of a known kind.
    """
    path = Path(wanted)
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long for any file
        raise ConfigError(Problem(field, f"{wanted}: {error.strerror}", "check the path")) from None
    if path.is_dir():
        return _in_folder(path, wanted, field)
    if exists and not path.is_file():
        message = f"{wanted} is no regular file, and data is read more than once"
        raise ConfigError(Problem(field, message, "save it to a file first"))
    if exists:
        return [_data_file(path, field)]
    _check_link(path, field)
    hub = _HUB_ID.fullmatch(wanted)
    if _GLOB.search(wanted) and not (hub and hub["split"]):  # a part of a split is written `train[:10%]`
        found = sorted(map(Path, glob.glob(wanted, recursive=True)))  # noqa: PTH207
        for name in found:
            _check_link(name, field)
        found = [name for name in found if name.is_file()]
        if not found:
            raise ConfigError(Problem(field, f"no file fits the pattern {wanted}", "check the pattern"))
        return [_data_file(file, field) for file in found]
    if hub and not _suffixes(path)[0]:
        config = hub["config"] or ""
        return [DataFile(wanted, None, "hub", split=hub["split"] or "train", hub_id=hub["id"], hub_config=config)]
    raise ConfigError(Problem(field, f"{wanted} does not exist", "check the path; it is relative to where you run"))


def _in_folder(folder: Path, wanted: str, field: str) -> list[DataFile]:
    found = sorted(_walk(folder))
    known = [path for path in found if _suffixes(path)[0]]
    for path in known:
        _check_link(path, field)
    if not known:
        kinds = ", ".join(KINDS)
        raise ConfigError(
            Problem(field, f"{wanted} is a folder without data files", f"put files of a known kind there: {kinds}")
        )
    skipped = tuple(str(path) for path in found if path not in set(known))
    files = [_data_file(path, field) for path in known]
    first = files[0]
    return [DataFile(first.name, first.path, first.kind, first.compression, skipped=skipped), *files[1:]]


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, links followed, no folder twice (a link may lead back up)."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(root, name) for name in names if not name.startswith(".") and _is_file_or_link(Path(root, name))
        )


def _is_file_or_link(path: Path) -> bool:
    return path.is_file() or path.is_symlink()


def _check_link(path: Path, field: str) -> None:
    """A link that leads nowhere stands for rows that somebody meant to be there."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(Problem(field, f"{path} is a link that leads nowhere or to itself", "correct the link"))


def _data_file(path: Path, field: str) -> DataFile:
    kind, compression = _suffixes(path)
    kind = kind or _sniff(path)
    if not kind:
        raise ConfigError(
            Problem(
                field,
                f"{path} is of no known kind; known are {', '.join(KINDS)}, and the text ones with .gz or .zst",
                "rename or convert the file",
            )
        )
    return DataFile(str(path), path, kind, compression)


def _suffixes(path: Path) -> tuple[str, str]:
    """Kind and compression by the name; the kind is empty if the name does not tell."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1], "") if suffixes else ""
    last = suffixes[:-1] if compression else suffixes
    return KINDS.get(last[-1], "") if last else "", compression


def _sniff(path: Path) -> str:
    """The kind by how the file begins; empty if that does not tell."""
    try:
        with path.open("rb") as file:
            begin = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return ""
    marks = {b"PAR1": "parquet", b"ARROW1": "arrow", b"{": "json", b"[": "json"}
    return next((kind for mark, kind in marks.items() if begin.startswith(mark)), "")
