"""What is in the cache folder, and how to take out of it what nobody uses.

Only what lamina wrote is looked at, by its kind's folder and the form of its name: a LAMINA_CACHE that names a folder
with other things in it loses none of them.
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
from lamina.files import ASIDE_PREFIX, OLD_PREFIX

_HEX = "[0-9a-f]{32}"


@dataclass(frozen=True)
class Kind:
    """A folder of the cache.

    Attributes:
        name: The folder's name.
        what: What is in it.
        pattern: The form of its entries' names.
    """

    name: str
    what: str
    pattern: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("models", "models converted from GGUF files", r".+-[0-9a-f]{12}-v\w+"),
        Kind("quantized", "bases in 4 or 8 bits", _HEX),
        Kind("tokens", "encoded rows", _HEX),
        Kind("kernels", "compiled kernels", rf"{_HEX}\.so"),
        Kind("shapes", "models with random weights, of `lamina bench`", r".+-\d+-v\w+"),
        Kind("fingerprints", "digests of weight files", rf"{_HEX}\.json"),
        Kind("gguf", "digests of GGUF files", rf"{_HEX}\.json"),
        Kind("files", "digests of data files", rf"{_HEX}\.json"),
        Kind("errors", "tracebacks of unexpected errors", r"error-\d{8}-\d{6}-\d+\.txt"),
    )
}

# What a write that was cut off left behind, once it is so old that nobody can be at it any more.
_LEFTOVER = re.compile(rf"(?:{re.escape(ASIDE_PREFIX)}|{re.escape(OLD_PREFIX)}).+|tmp[a-z0-9_]{{8}}")
_LEFTOVER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        kind: Name of its `Kind`.
        path: The file or folder.
        bytes: What it takes on the disk.
        last_used: Seconds since 1970.
        is_leftover: Whether it was never finished.
    """

    kind: str
    path: Path
    bytes: int
    last_used: float
    is_leftover: bool = False

    def as_json(self) -> dict[str, Any]:
        """As plain data, with the time in ISO 8601."""
        used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_used))
        return {"kind": self.kind, "path": str(self.path), "bytes": self.bytes, "last_used": used}


@dataclass(frozen=True)
class Pruned:
    """What became of a pruning.

    Attributes:
        removed: What is gone; or would be, if it was only tried.
        in_use: What was to go, but is in use or being made.
    """

    removed: list[CacheEntry]
    in_use: list[CacheEntry]

    @property
    def bytes(self) -> int:
        """What was made free."""
        return sum(entry.bytes for entry in self.removed)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        lists = {"removed": self.removed, "in_use": self.in_use}
        return {"bytes": self.bytes, **{name: [e.as_json() for e in entries] for name, entries in lists.items()}}


def cache_entries(kinds: Sequence[str] = ()) -> list[CacheEntry]:
    """What is in the cache, by kind and then by last use, the latest first.

    Args:
        kinds: Of these only; all if there are none.

    Raises:
        ConfigError: There is no such kind.
        StorageError: The cache cannot be read.
    """
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(Problem("KIND", f"{name!r} is not one of {', '.join(KINDS)}", nearest(name, KINDS)))
    found = [entry for name in kinds or KINDS for entry in _entries(KINDS[name])]
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.last_used))


def prune(kinds: Sequence[str] = (), *, older_than_days: float = 0.0, dry_run: bool = False) -> Pruned:
    """Removes entries of the cache, but for those that a process uses or makes.

    Args:
        kinds: Of these only; all if there are none.
        older_than_days: Only those that were last used so long ago.
        dry_run: Remove nothing, and say what would go.

    Raises:
        ConfigError: There is no such kind.
        StorageError: Something cannot be removed.
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
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            used = path.lstat().st_mtime
            if re.fullmatch(kind.pattern, path.name):
                yield CacheEntry(kind.name, path, _size(path), max(used, *_other_uses(path)))
            elif _LEFTOVER.fullmatch(path.name) and time.time() - used > _LEFTOVER_SECONDS:
                yield CacheEntry(kind.name, path, _size(path), used, is_leftover=True)


def _other_uses(path: Path) -> Iterator[float]:
    """When an entry was marked as used; and when a file was read, as far as the disk keeps that."""
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
    """Whether it is gone: taken out of its place as a whole, while nobody uses or makes it, then removed."""
    with _alone(entry) as alone:
        if not alone:
            return False
        aside = entry.path.with_name(f"{OLD_PREFIX}{entry.path.name}-{uuid.uuid4().hex[:12]}")
        try:
            entry.path.rename(aside)
            _mark_of(entry.path).unlink(missing_ok=True)
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside)
            else:
                aside.unlink()
        except FileNotFoundError:
            return True  # somebody else removed it
        except OSError as error:
            raise StorageError.wrap(error, entry.path, "removing") from error
    return True


def _removable(entry: CacheEntry) -> bool:
    with _alone(entry) as alone:
        return alone


@contextlib.contextmanager
def _alone(entry: CacheEntry) -> Iterator[bool]:
    """Keeps others from using or making an entry inside the block; False where somebody does."""
    # A file is read as a whole or mapped, and goes on being there for those who have it.
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
