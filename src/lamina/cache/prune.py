"""Lists the cache folder, and removes entries that nobody uses.

Only entries that lamina wrote are considered, recognized by their folder and the pattern of their names. If
LAMINA_CACHE is a folder with other files, those are never removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lamina.cache.folder import USED_MARK, cache_folder, lock_mark
from lamina.errors import ConfigError, Problem, StorageError, nearest
from lamina.files import OLD_PREFIX, TEMPORARY_PREFIX

_HEX = "[0-9a-f]{32}"


@dataclass(frozen=True)
class Kind:
    """A kind of cache entry, which has a folder of its own.

    Attributes:
        name: The folder's name.
        what: What the folder holds.
        pattern: Regular expression for the names of its entries.
    """

    name: str
    what: str
    pattern: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("models", "models converted from GGUF files", r".+-[0-9a-f]{12}-v\w+"),
        Kind("adapters", "adapters of registries", _HEX),
        Kind("quantized", "base models in 4 or 8 bits", _HEX),
        Kind("tokens", "encoded rows", _HEX),
        Kind("references", "log-probabilities of reference models", rf"{_HEX}\.npy"),
        Kind("kernels", "compiled kernels", rf"{_HEX}\.so"),
        Kind("shapes", "models with random weights, for `lamina bench`", r".+-\d+-v\w+"),
        Kind("fingerprints", "digests of weight files", rf"{_HEX}\.json"),
        Kind("gguf", "digests of GGUF files", rf"{_HEX}\.json"),
        Kind("files", "digests of data files", rf"{_HEX}\.json"),
        Kind("answers", "answers of evaluated models", rf"{_HEX}\.jsonl?"),
        Kind("judged", "verdicts of judges", r"[0-9a-f]{2}"),
        Kind("errors", "tracebacks of unexpected errors", r"error-\d{8}-\d{6}-\d+\.txt"),
    )
}

# Files and folders left behind by interrupted writes, once they are too old to still be in progress.
_LEFTOVER = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)}|{re.escape(OLD_PREFIX)}).+|tmp[a-z0-9_]{{8}}")
_LEFTOVER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache.

    Attributes:
        kind: Name of its `Kind`.
        path: The file or folder.
        bytes: Size on disk.
        last_used: Time of last use, in seconds since 1970.
        is_leftover: Whether it was left behind by an interrupted write.
    """

    kind: str
    path: Path
    bytes: int
    last_used: float
    is_leftover: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns the entry as plain data, with the time in ISO 8601."""
        used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_used))
        return {"kind": self.kind, "path": str(self.path), "bytes": self.bytes, "last_used": used}


@dataclass(frozen=True)
class Pruned:
    """The result of pruning.

    Attributes:
        removed: Entries removed; with `dry_run`, entries that would be removed.
        in_use: Entries kept because a process is using or creating them.
    """

    removed: list[CacheEntry]
    in_use: list[CacheEntry]

    @property
    def bytes(self) -> int:
        """Space freed, in bytes."""
        return sum(entry.bytes for entry in self.removed)

    def as_json(self) -> dict[str, Any]:
        """Returns the result as plain data."""
        lists = {"removed": self.removed, "in_use": self.in_use}
        return {"bytes": self.bytes, **{name: [e.as_json() for e in entries] for name, entries in lists.items()}}


def cache_entries(kinds: Sequence[str] = ()) -> list[CacheEntry]:
    """Returns the cache's entries, by kind and then by last use, most recent first.

    Args:
        kinds: The kinds to include; all if empty.

    Raises:
        ConfigError: A kind does not exist.
        StorageError: The cache cannot be read.
    """
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(Problem("KIND", f"{name!r} is not one of {', '.join(KINDS)}", nearest(name, KINDS)))
    found = [entry for name in kinds or KINDS for entry in _entries(KINDS[name])]
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.last_used))


def prune(kinds: Sequence[str] = (), *, older_than_days: float = 0.0, dry_run: bool = False) -> Pruned:
    """Removes entries of the cache, except those that a process is using or creating.

    Args:
        kinds: The kinds to remove; all if empty.
        older_than_days: Only remove entries that have not been used for this many days.
        dry_run: Remove nothing, and report what would be removed.

    Raises:
        ConfigError: A kind does not exist.
        StorageError: An entry cannot be removed.
    """
    latest = time.time() - older_than_days * 24 * 3600
    pruned = Pruned([], [])
    for entry in cache_entries(kinds):
        if entry.last_used <= latest or not older_than_days:
            gone = _removable(entry) if dry_run else _remove(entry)
            (pruned.removed if gone else pruned.in_use).append(entry)
    return pruned


def _entries(kind: Kind) -> Iterator[CacheEntry]:
    folder = cache_folder() / kind.name
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise StorageError.wrap(error, folder, "reading") from error
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed in the meantime
            used = path.lstat().st_mtime
            if re.fullmatch(kind.pattern, path.name):
                yield CacheEntry(kind.name, path, _size(path), max(used, *_other_uses(path)))
            elif _LEFTOVER.fullmatch(path.name) and time.time() - used > _LEFTOVER_SECONDS:
                yield CacheEntry(kind.name, path, _size(path), used, is_leftover=True)


def _other_uses(path: Path) -> Iterator[float]:
    """Yields when an entry was marked as used and, for a file, when it was last read, if the file system records it."""
    yield 0.0
    with contextlib.suppress(OSError):
        yield _mark_of(path).stat().st_mtime
    if path.is_file():
        yield path.stat().st_atime


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _remove(entry: CacheEntry) -> bool:
    """Removes an entry: renames it while nobody uses it, then deletes it. Returns False if it is in use."""
    with _exclusive(entry) as is_free:
        if not is_free:
            return False
        renamed = entry.path.with_name(f"{OLD_PREFIX}{entry.path.name}-{uuid.uuid4().hex[:12]}")
        try:
            entry.path.rename(renamed)
            _mark_of(entry.path).unlink(missing_ok=True)
            if renamed.is_dir() and not renamed.is_symlink():
                shutil.rmtree(renamed)
            else:
                renamed.unlink()
        except FileNotFoundError:
            return True  # another process removed it
        except OSError as error:
            raise StorageError.wrap(error, entry.path, "removing") from error
    return True


def _removable(entry: CacheEntry) -> bool:
    with _exclusive(entry) as is_free:
        return is_free


@contextlib.contextmanager
def _exclusive(entry: CacheEntry) -> Iterator[bool]:
    """Keeps others from using or creating an entry inside the block. Yields False if somebody already does."""
    # A file is read whole or mapped, so it stays available to those who have it open.
    if entry.is_leftover or not entry.path.is_dir():
        yield True
        return
    lock = FileLock(f"{entry.path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise StorageError.wrap(error, entry.path, "removing") from error
    mark = None
    try:
        mark = lock_mark(entry.path, shared=False)
        yield mark is not None
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError.wrap(error, entry.path, "removing") from error
    finally:
        if mark is not None:
            os.close(mark)
        lock.release()


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + USED_MARK)
