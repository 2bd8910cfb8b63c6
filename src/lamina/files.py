"""Writing to disk so that a reader sees the old content or the new, never half of one.

Files and folders are written aside, flushed to the disk, and renamed into place. Every `OSError` on the way becomes a
`StorageError` that names the path and the fix, and what was written aside is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lamina.errors import StorageError

# Both marks begin with a dot and carry a random part, so that two processes never share one.
ASIDE_PREFIX = ".writing-"
OLD_PREFIX = ".replaced-"


def write_text(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` atomically and durably."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically and durably.

    Raises:
        StorageError: The folder cannot be made or the file cannot be written; `path` is as it was.
    """
    aside = path.parent / f"{ASIDE_PREFIX}{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        _forget(aside)
        raise StorageError.wrap(error, path, "writing") from error


@contextlib.contextmanager
def new_text_file(path: Path) -> Iterator[IO[str]]:
    """A file to write from start to end, which is at `path` as a whole if the block ends well, and else not at all.

    Half of a surrogate pair is written as JSON's escape for it.

    Raises:
        StorageError: It cannot be written; `path` is as it was.
    """
    aside = path.parent / f"{ASIDE_PREFIX}{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError.wrap(error, path, "writing") from error
    finally:
        _forget(aside)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Gives a folder to fill, and puts it at `path` as a whole when the block ends well.

    A folder already at `path` is replaced in two renames; a crash between them leaves the new content under
    a `.writing-` name and the old under a `.replaced-` name, and `path` itself never holds a mixture.

    Args:
        path: Where it is to be.
        replace: Whether what is at `path` by then gives way. If not, the new folder is put beside it.

    Raises:
        StorageError: Something could not be written, or has a place of its own beside `path`; `path` is as it was.
    """
    aside = path.parent / f"{ASIDE_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync_file(file)
        fsync_folder(aside)
        if path.exists() and not replace:
            beside = path.with_name(f"{path.name}-{uuid.uuid4().hex[:12]}")
            aside.rename(beside)
            raise StorageError(
                f"{path}: something else was put there meanwhile. What was written is in {beside} instead."
            )
        _put_in_place(aside, path)
        fsync_folder(path.parent)
    except StorageError:
        _forget(aside)
        raise
    except OSError as error:
        _forget(aside)
        raise StorageError.wrap(error, path, "writing") from error
    except BaseException as error:
        _forget(aside)
        # safetensors reports a full disk as its own error, with the system's message inside.
        if type(error).__name__ == "SafetensorError" and "os error" in str(error).lower():
            raise StorageError(f"{path}: writing failed: {error}. Fix: free some space, then run again.") from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted writes left in `folder`. Only for a folder that this process alone writes to."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith((ASIDE_PREFIX, OLD_PREFIX)):
            _forget(entry)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _put_in_place(aside: Path, path: Path) -> None:
    if not path.exists():
        aside.rename(path)
        return
    old = path.parent / f"{OLD_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}"
    path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        old.rename(path)
        raise
    _forget(old)


def _forget(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
