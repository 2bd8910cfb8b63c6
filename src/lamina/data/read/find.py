"""Which files a user means: a file, a folder or one of its splits, a glob, or a data set of the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from lamina.data.read.splits import Choice, choose, declares, is_no_data, kind_of, layout_of, saved_split
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
_SPLIT = re.compile(r"(?P<path>.+?):(?P<split>[\w.\[\]%:-]+)")
# How a file begins that `git lfs` has not fetched.
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 3


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
        skipped: Files beside it that are not read; on the first file of a folder or a glob.
        notes: What a user should know of how the files were chosen; on the first of them.
        own_eval: What to name to evaluate on the validation split that the folder keeps for it; empty if it has none.
        within: The folder or the glob that it was found by; empty if the user named the file itself.
    """

    name: str
    path: Path | None
    kind: str
    compression: str = ""
    split: str = "train"
    hub_id: str = ""
    hub_config: str = ""
    skipped: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    own_eval: str = field(default="", compare=False)
    within: str = field(default="", compare=False)


def find_files(wanted: str, field: str = "data.train", role: str = "train") -> list[DataFile]:
    """The files that `wanted` stands for, in order of their names.

    Of a folder with splits (see `data/read/splits.py`), those of the split that the role is for: `train` never reads
    what is kept for evaluation unless that is named.

    Args:
        wanted: A file, a folder (searched through, hidden files apart), `folder:split`, a glob, or
            `user/dataset[/configuration][:split]` of the hub.
        field: The configuration field that named it, for errors.
        role: `train`, `eval` (to evaluate on while training) or `test` (on what is done).

    Raises:
        ConfigError: There is no such file, a folder or glob has none of a known kind, or it does not tell which of its
            splits the role is for.
    """
    path = Path(wanted)
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long for any file
        raise ConfigError(Problem(field, f"{wanted}: {error.strerror}", "check the path")) from None
    if path.is_dir():
        return _in_folder(path, "", "", field, role)
    if exists and not path.is_file():
        message = f"{wanted} is no regular file, and data is read more than once"
        raise ConfigError(Problem(field, message, "save it to a file first"))
    if exists:
        return [_data_file(path, field)]
    _check_link(path, field)
    if (found := _by_split(wanted, field, role)) is not None:
        return found
    hub = _HUB_ID.fullmatch(wanted)
    if _GLOB.search(wanted) and not (hub and hub["split"]):  # a part of a split is written `train[:10%]`
        return _by_pattern(wanted, field, role)
    if hub and not _suffixes(path)[0]:
        if role != "train" and not hub["split"]:
            message = f"{wanted} is no file here, and of a data set of the hub the split to evaluate on has to be named"
            fix = f"name it, such as {wanted}:validation or {wanted}:test, or check the path"
            raise ConfigError(Problem(field, message, fix))
        config = hub["config"] or ""
        return [DataFile(wanted, None, "hub", split=hub["split"] or "train", hub_id=hub["id"], hub_config=config)]
    raise ConfigError(Problem(field, f"{wanted} does not exist", "check the path; it is relative to where you run"))


def _by_split(wanted: str, field: str, role: str) -> list[DataFile] | None:
    """The files of `folder:split`, `folder/configuration` or both; None where `wanted` is neither."""
    parted = _SPLIT.fullmatch(wanted)
    path, split = (Path(parted["path"]), parted["split"]) if parted else (Path(wanted), "")
    if split and path.is_dir():
        return _in_folder(path, "", split, field, role)
    if declares(path.parent, path.name):
        return _in_folder(path.parent, path.name, split, field, role)
    if split and path.is_file():
        raise ConfigError(Problem(field, f"{path} is a file, which has no splits", f"name it alone: {path}"))
    return None


def _in_folder(folder: Path, configuration: str, split: str, field: str, role: str) -> list[DataFile]:
    folder = _snapshot(folder, field)
    found = sorted(_walk(folder))
    wanted = str(folder / configuration)
    unknown = [path for path in found if not _suffixes(path)[0] and not is_no_data(path)]
    layout = layout_of([path for path in found if path not in set(unknown)], folder, configuration, field)
    if not layout.splits:
        kinds = ", ".join(KINDS)
        message = f"{wanted} is a folder without data files"
        raise ConfigError(Problem(field, message, f"put files of a known kind there: {kinds}"))
    choice = choose(layout, split, role, wanted, field)
    notes = list(_told(wanted, folder, choice, layout.others, unknown))
    if kind_of(saved_split(folder)) not in ("", "train") and role == "train" and not split:
        notes.append(f"{wanted}: its state.json says that it was saved from the split {saved_split(folder)!r}")
    validation = layout.kind("validation")
    own_eval = (
        f"{wanted}:{validation[0]}" if role == "train" and validation and validation[0] not in choice.names else ""
    )
    return _data_files(choice, [*layout.others, *unknown], notes, wanted, own_eval, field)


def _by_pattern(pattern: str, field: str, role: str) -> list[DataFile]:
    matched = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
    for path in matched:
        _check_link(path, field)
    found = [path for path in matched if path.is_file()]
    folders = [path.name for path in matched if path.is_dir()] if "**" not in pattern else []
    root = Path(*takewhile(lambda part: not _GLOB.search(part), Path(pattern).parts))
    layout = layout_of(found, root, field=field)
    if not layout.splits:
        raise ConfigError(Problem(field, f"no file fits the pattern {pattern}", "check the pattern"))
    choice = choose(layout, "", role, pattern, field, by_pattern=True)
    notes = list(_told(pattern, root, choice, layout.others, ()))
    if folders:
        notes.append(f"{pattern}: left out the folders {', '.join(folders[:_SHOWN])}; `**` in a pattern goes into them")
    return _data_files(choice, layout.others, notes, pattern, "", field)


def _data_files(
    choice: Choice, others: Iterable[Path], notes: Sequence[str], within: str, own_eval: str, field: str
) -> list[DataFile]:
    for path in choice.files:
        _check_link(path, field)
    first, *rest = (replace(_data_file(path, field), within=within) for path in choice.files)
    left = sorted([path for paths in choice.left.values() for path in paths] + list(others))
    skipped = tuple(map(str, left))
    return [replace(first, skipped=skipped, notes=tuple(notes), own_eval=own_eval), *rest]


def _told(wanted: str, root: Path, choice: Choice, others: Sequence[Path], unknown: Sequence[Path]) -> Iterator[str]:
    """What was taken of a folder or a pattern and what was left; nothing where all that is there was taken."""

    def names(paths: Sequence[Path]) -> str:
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        return ", ".join(str(path.relative_to(root)) for path in paths[:_SHOWN]) + more

    left = [f"the split {name} ({names(files)})" if name else names(files) for name, files in choice.left.items()]
    left += [f"{names(others)} (no data)"] if others else []
    left += [f"{names(unknown)} (of no known kind)"] if unknown else []
    if not left and not choice.names:
        return
    taken = f"the split {' and '.join(choice.names)}" if choice.names else "its files"
    yield f"{wanted}: read {taken} ({names(choice.files)})" + (f"; left out {', '.join(left)}" if left else "")


def _snapshot(folder: Path, field: str) -> Path:
    """The newest snapshot, where the folder is one of the hub's cache, which holds several versions of a data set."""
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and (folder / "refs").is_dir()):
        return folder
    there = sorted(path for path in snapshots.iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        there = [path for path in there if path.name == main.read_text(encoding="utf-8").strip()] or there
    if len(there) == 1:
        return there[0]
    message = f"{folder} is of the hub's cache and holds {len(there)} snapshots, none of them marked as its newest"
    raise ConfigError(Problem(field, message, f"name one below {snapshots}"))


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
    if _begin(path).startswith(_POINTER):
        message = f"{path} is not the file itself, but Git LFS's pointer to it"
        raise ConfigError(Problem(field, message, "fetch the file: run `git lfs pull` in the clone"))
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
    begin = _begin(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    marks = {b"PAR1": "parquet", b"ARROW1": "arrow", b"{": "json", b"[": "json"}
    return next((kind for mark, kind in marks.items() if begin.startswith(mark)), "")


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""
