"""Finds the files that a path stands for: a file, a folder or one of its splits, a glob, or a data set on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from lamina.config.named import SHEET
from lamina.config.places import LOOKED
from lamina.data.read.splits import Choice, choose, declares, is_no_data, kind_of, layout_of, saved_split
from lamina.errors import ConfigError, Problem

# Suffix -> kind. If the suffix is unknown, the start of the file decides.
KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
}
# What is said of suffixes that other programs write.
_OLD = {".xls": " (the format of old Excel)", ".ods": " (LibreOffice)", ".numbers": " (Apple Numbers)"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_GLOB = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w\[\]%:-]+))?")
_SPLIT = re.compile(r"(?P<path>.+?):(?P<split>[\w.\[\]%:-]+)")
# How a Git LFS pointer starts: a file that `git lfs` has not fetched.
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 3


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Attributes:
        name: The name as the user gave it, or as found below the folder or glob that the user gave.
        path: Path of the file; None for a data set on the hub.
        kind: One of the values of `KINDS`, or `hub`.
        compression: `gzip`, `zstd`, or empty.
        split: Split of a data set on the hub, or sheet of an Excel file; by default its first one with rows.
        hub_id: Its id on the hub.
        hub_config: Its configuration on the hub, if it has several.
        skipped: Files next to it that are not read; on the first file of a folder or a glob.
        notes: Messages to the user about how the files were chosen; on the first file.
        own_eval: The path that evaluates on the folder's own validation split; empty if it has none.
        within: The folder or glob in which it was found; empty if the user named the file itself.
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
    """Returns the files that `wanted` stands for, sorted by name.

    In a folder with splits (see `data/read/splits.py`), it returns the split for the role: `train` never reads what is
    kept for evaluation, unless the user names it.

    Args:
        wanted: A file, a folder (searched recursively, without hidden files), `folder:split`, a glob, or
            `user/dataset[/configuration][:split]` on the hub.
        field: The configuration field it comes from, for errors.
        role: `train`, `eval` (during training) or `test` (after training).

    Raises:
        ConfigError: There is no such file, a folder or glob has no data files, or it is unclear which of its splits to
            use.
    """
    path = Path(wanted)
    try:
        exists = path.exists()
    except OSError as error:  # such as a file name that is too long
        raise ConfigError(Problem(field, f"{wanted}: {error.strerror}", "check the path")) from None
    if path.is_dir():
        return _in_folder(path, "", "", field, role)
    if exists and not path.is_file():
        message = f"{wanted} is not a regular file, and data is read more than once"
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
            message = f"{wanted} is not a local file; for a data set on the hub, the split to evaluate on must be named"
            fix = f"name it, such as {wanted}:validation or {wanted}:test, or check the path"
            raise ConfigError(Problem(field, message, fix))
        config = hub["config"] or ""
        return [DataFile(wanted, None, "hub", split=hub["split"] or "train", hub_id=hub["id"], hub_config=config)]
    raise ConfigError(Problem(field, f"{wanted} does not exist", LOOKED))


def _by_split(wanted: str, field: str, role: str) -> list[DataFile] | None:
    """Returns the files of `folder:split`, `folder/configuration` or both; None if `wanted` is neither."""
    parted = SHEET.fullmatch(wanted) or _SPLIT.fullmatch(wanted)
    path, split = (Path(parted["path"]), parted["split"]) if parted else (Path(wanted), "")
    if split and path.is_dir():
        return _in_folder(path, "", split, field, role)
    if declares(path.parent, path.name):
        return _in_folder(path.parent, path.name, split, field, role)
    if split and path.is_file() and _suffixes(path)[0] == "excel":
        return [replace(_data_file(path, field), name=wanted, split=split)]
    if split and path.is_file():
        raise ConfigError(
            Problem(field, f"{path} is a file, which has no splits", f"give the file without a split: {path}")
        )
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
        raise ConfigError(Problem(field, message, f"put files of a supported kind there: {kinds}"))
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
        raise ConfigError(Problem(field, f"no file matches the pattern {pattern}", "check the pattern"))
    choice = choose(layout, "", role, pattern, field, by_pattern=True)
    notes = list(_told(pattern, root, choice, layout.others, ()))
    if folders:
        notes.append(
            f"{pattern}: skipped the folders {', '.join(folders[:_SHOWN])}; use `**` in a pattern to include subfolders"
        )
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
    """Yields which files of a folder or pattern are read and which are skipped; nothing if all are read."""

    def names(paths: Sequence[Path]) -> str:
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        return ", ".join(str(path.relative_to(root)) for path in paths[:_SHOWN]) + more

    left = [f"the split {name} ({names(files)})" if name else names(files) for name, files in choice.left.items()]
    left += [f"{names(others)} (not data)"] if others else []
    left += [f"{names(unknown)} (unknown kind)"] if unknown else []
    if not left and not choice.names:
        return
    taken = f"the split {' and '.join(choice.names)}" if choice.names else "its files"
    yield f"{wanted}: read {taken} ({names(choice.files)})" + (f"; skipped {', '.join(left)}" if left else "")


def _snapshot(folder: Path, field: str) -> Path:
    """Returns the newest snapshot if the folder is in the hub's cache, which stores several versions of a data set."""
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and (folder / "refs").is_dir()):
        return folder
    there = sorted(path for path in snapshots.iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        there = [path for path in there if path.name == main.read_text(encoding="utf-8").strip()] or there
    if len(there) == 1:
        return there[0]
    message = f"{folder} is in the hub's cache and has {len(there)} snapshots, none of which is marked as the newest"
    raise ConfigError(Problem(field, message, f"give the path of one of the folders in {snapshots}"))


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder. Follows links, but visits no folder twice (a link may lead back up)."""
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
    """Refuses a dangling link, which stands for rows that are supposed to be there."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(Problem(field, f"{path} is a link that leads nowhere or to itself", "correct the link"))


def _data_file(path: Path, field: str) -> DataFile:
    kind, compression = _suffixes(path)
    kind = kind or _sniff(path)
    if _begin(path).startswith(_POINTER):
        message = f"{path} is not the file itself, but a Git LFS pointer to it"
        raise ConfigError(Problem(field, message, "fetch the file: run `git lfs pull` in the clone"))
    if not kind:
        what = f"{path} has an unknown suffix{_OLD.get(path.suffix.lower(), '')}"
        message = f"{what}; supported are {', '.join(KINDS)}, and the text formats with .gz or .zst"
        fix = "rename or convert the file; spreadsheets can save a sheet as CSV or .xlsx"
        raise ConfigError(Problem(field, message, fix))
    return DataFile(str(path), path, kind, compression, "" if kind == "excel" else "train")


def _suffixes(path: Path) -> tuple[str, str]:
    """Returns kind and compression by the file name; the kind is empty if the name does not tell."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1], "") if suffixes else ""
    last = suffixes[:-1] if compression else suffixes
    return KINDS.get(last[-1], "") if last else "", compression


def _sniff(path: Path) -> str:
    """Returns the kind by the start of the file; empty if unknown."""
    begin = _begin(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    marks = {b"PAR1": "parquet", b"ARROW1": "arrow", b"{": "json", b"[": "json"}
    return next((kind for mark, kind in marks.items() if begin.startswith(mark)), "")


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""
