"""The user's cache folder: converted models and file digests. Nothing in it is needed for correctness."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from lamina import files
from lamina.errors import StorageError


def cache_folder() -> Path:
    """`$LAMINA_CACHE`, else the platform's own cache folder for lamina."""
    return Path(os.environ.get("LAMINA_CACHE") or platformdirs.user_cache_dir("lamina"))


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
