"""The user's cache folder: converted models, encoded rows, digests and more. Nothing in it is needed for correctness.

What is in it is made under a lock beside it (`NAME.lock`), and marked while a process uses it (`NAME.used`), so that
pruning (`prune.py`) takes nothing away that somebody makes or needs.
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
except ImportError:  # on Windows, where a file that is open cannot be removed anyway
    fcntl = None

USED_MARK = ".used"

# What this process holds: its marks, open and locked until it ends.
_held: dict[Path, int] = {}


def cache_folder() -> Path:
    """`$LAMINA_CACHE`, else the platform's own cache folder for lamina."""
    return Path(os.environ.get("LAMINA_CACHE") or platformdirs.user_cache_dir("lamina"))


@contextlib.contextmanager
def writing_cache(path: Path, doing: str) -> Iterator[None]:
    """Turns an `OSError` inside the block into one that says how to have another cache folder.

    Raises:
        StorageError: `path`, which is in the cache, could not be written.
    """
    try:
        yield
    except OSError as error:
        wrapped = error if isinstance(error, StorageError) else StorageError.wrap(error, path, doing)
        what = str(wrapped).partition(" Fix: ")[0]
        raise StorageError(
            f"{what} Fix: set LAMINA_CACHE to a folder that can be written and has room (the cache is in "
            f"{cache_folder()} now), or make room with `lamina cache prune`."
        ) from error


def hold(entry: Path) -> None:
    """Marks an entry of the cache as used now, and as in use until this process ends.

    To be called before it is looked whether the entry is there. Where nothing can be written nothing happens; nothing
    can be pruned there either.
    """
    if entry in _held:
        return
    with contextlib.suppress(OSError):
        mark = lock_mark(entry, shared=True)
        if mark is not None:
            _held[entry] = mark


def lock_mark(entry: Path, *, shared: bool) -> int | None:
    """Locks the mark of an entry: shared to use it, once those are done who remove it; else alone, to remove it.

    Returns:
        The mark, open; None if it is to be removed and others use it, or where files cannot be locked.

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
                    os.utime(mark, (0, 0))  # to look is no use
                return mark
        except FileNotFoundError:
            pass  # somebody removed it, with the entry, while this waited; a new one is made
        except BlockingIOError:
            os.close(mark)
            return None
        except OSError:
            os.close(mark)
            raise
        os.close(mark)
    return None


class IdentityCache:
    """Remembers what was computed from a file for as long as the file is the same one.

    "The same" means equal path, size, modification time and inode. A cache that cannot be read or written is only slow.
    """

    def __init__(self, name: str) -> None:
        self._folder = cache_folder() / name

    def get(self, path: Path) -> Any | None:
        """What was stored for this very file, or None."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            entry = json.loads(self._entry(path).read_text(encoding="utf-8"))
            if entry["identity"] == _identity(path):
                with contextlib.suppress(OSError):
                    os.utime(self._entry(path))  # used now
                return entry["value"]
        return None

    def put(self, path: Path, value: Any) -> None:
        """Stores a JSON value for the file as it is now."""
        with contextlib.suppress(StorageError, OSError):
            files.write_json(self._entry(path), {"identity": _identity(path), "value": value})

    def _entry(self, path: Path) -> Path:
        key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        return self._folder / f"{key}.json"


def _identity(path: Path) -> list[int | str]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
