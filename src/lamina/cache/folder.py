"""The user's cache folder: converted models, encoded rows, digests and more. Results never depend on it.

An entry is created under a lock next to it (`NAME.lock`), and marked while a process uses it (`NAME.used`), so that
pruning (`prune.py`) never deletes what somebody is creating or using.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from lamina import files
from lamina.errors import StorageError

try:
    import fcntl
except ImportError:  # on Windows, where an open file cannot be deleted anyway
    fcntl = None

USED_MARK = ".used"

# Entries in use by this process: entry -> file descriptor of its mark, locked until the process ends.
_held: dict[Path, int] = {}


def cache_folder() -> Path:
    """Returns `$LAMINA_CACHE` if set, and the platform's cache folder for lamina otherwise."""
    return Path(os.environ.get("LAMINA_CACHE") or platformdirs.user_cache_dir("lamina"))


@contextlib.contextmanager
def writing_cache(path: Path, doing: str) -> Iterator[None]:
    """Turns an `OSError` inside the block into an error that says how to use another cache folder.

    Raises:
        StorageError: `path`, which is in the cache, could not be written.
    """
    try:
        yield
    except OSError as error:
        wrapped = error if isinstance(error, StorageError) else StorageError.wrap(error, path, doing)
        what = str(wrapped).partition(" Fix: ")[0]
        raise StorageError(
            f"{what} Fix: set LAMINA_CACHE to a writable folder with enough free space (the cache is now in "
            f"{cache_folder()}), or make room with `lamina cache prune`."
        ) from error


def hold(entry: Path) -> None:
    """Marks a cache entry as in use from now until this process ends.

    Call it before checking whether the entry exists. If the cache is not writable, it does nothing, and nothing can be
    pruned either.
    """
    if entry in _held:
        return
    with contextlib.suppress(OSError):
        mark = lock_mark(entry, shared=True)
        if mark is not None:
            _held[entry] = mark


def lock_mark(entry: Path, *, shared: bool) -> int | None:
    """Locks an entry's mark: shared, to use the entry (waits while it is being removed); or exclusive, to remove it.

    Returns:
        The open file descriptor of the mark. None if the lock is to be exclusive and others use the entry, or if files
        cannot be locked.

    Raises:
        OSError: The mark cannot be written.
    """
    path = entry.with_name(entry.name + USED_MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    while fcntl is not None:
        is_new = not path.exists()
        mark = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(mark, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(mark).st_ino == path.stat().st_ino:
                if shared:
                    os.utime(mark)
                elif is_new:
                    os.utime(mark, (0, 0))  # checking is not using
                return mark
        except FileNotFoundError:
            pass  # the entry and its mark were removed while this call waited; create a new mark
        except BlockingIOError:
            os.close(mark)
            return None
        except OSError:
            os.close(mark)
            raise
        os.close(mark)
    return None


class IdentityCache:
    """Remembers a value computed from a file until the file changes.

    A file counts as unchanged if its path, size, modification time and inode are the same. If the cache cannot be read
    or written, the value is computed again.
    """

    def __init__(self, name: str) -> None:
        self._folder = cache_folder() / name

    def get(self, path: Path) -> Any | None:
        """Returns the value stored for this file, or None if there is none or the file has changed."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            entry = json.loads(self._entry(path).read_text(encoding="utf-8"))
            if entry["identity"] == _identity(path):
                with contextlib.suppress(OSError):
                    os.utime(self._entry(path))  # marks it as used now
                return entry["value"]
        return None

    def put(self, path: Path, value: Any) -> None:
        """Stores a JSON value for the file in its present state."""
        with contextlib.suppress(StorageError, OSError):
            files.write_json(self._entry(path), {"identity": _identity(path), "value": value})

    def _entry(self, path: Path) -> Path:
        key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        return self._folder / f"{key}.json"


def _identity(path: Path) -> list[int | str]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
