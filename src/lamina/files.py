"""Writes files and folders atomically: a reader sees the old content or the new content, never a mix.

Files and folders are written under a temporary name next to the target, flushed to disk, and renamed into place. Every
`OSError` becomes a `StorageError` that names the path and the fix, and the temporary file is removed. The result has
the permissions that the process's umask asks for; safetensors alone would write files that only their owner can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lamina.errors import StorageError

# Every temporary name starts with a dot and has a random part, so that two processes never share one. The prefixes
# mark: a file or folder being written; a complete folder about to replace the old one; an old folder being replaced.
TEMPORARY_PREFIX = ".writing-"
READY_PREFIX = ".complete-"
OLD_PREFIX = ".replaced-"
_MARK = re.compile(r"\.(?:complete|replaced)-(?P<name>.+)-[0-9a-f]{12}", re.DOTALL)

# renameat2: paths are relative to the working directory. Both paths must exist, and they are swapped.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def write_text(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` atomically and durably."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_by_lines(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON, atomically, with a line for each key: for long lists of numbers."""
    lines = (f"  {json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" for key, each in value.items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically and durably.

    Raises:
        StorageError: The folder cannot be created or the file cannot be written. `path` is unchanged.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        _delete(temporary)
        raise StorageError.wrap(error, path, "writing") from error


@contextlib.contextmanager
def new_text_file(path: Path) -> Iterator[IO[str]]:
    """Yields a temporary text file, which replaces `path` if the block succeeds and is deleted if it fails.

    An unpaired surrogate is written as its JSON escape.

    Raises:
        StorageError: The file cannot be written. `path` is unchanged.
    """
    with _new_file(path, lambda new: new.open("w", encoding="utf-8", errors="backslashreplace")) as file:
        yield file


@contextlib.contextmanager
def new_binary_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a temporary file, which replaces `path` if the block succeeds and is deleted if it fails.

    Raises:
        StorageError: The file cannot be written. `path` is unchanged.
    """
    with _new_file(path, lambda new: new.open("wb")) as file:
        yield file


@contextlib.contextmanager
def _new_file(path: Path, opened: Callable[[Path], IO[Any]]) -> Iterator[IO[Any]]:
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError.wrap(error, path, "writing") from error
    finally:
        _delete(temporary)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary folder to fill, which replaces `path` as a whole if the block succeeds.

    If there is already a folder at `path`, the two are swapped in one step. Where the file system cannot swap, it takes
    two renames; after a crash between them, `recover` puts the new content in place. Everything in the folder gets the
    default permissions of new files and folders.

    Args:
        path: The final path.
        replace: Whether to replace what exists at `path` when the block ends. If not, the new folder is put next to it,
            under another name.

    Raises:
        StorageError: Something could not be written, or `path` exists and `replace` is false. `path` is unchanged.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _settle_modes(temporary)
        for entry in temporary.rglob("*"):
            if entry.is_dir():
                fsync_folder(entry)
            elif entry.is_file():
                _fsync_file(entry)
        fsync_folder(temporary)
        if path.exists() and not replace:
            neighbor = path.with_name(f"{path.name}-{uuid.uuid4().hex[:12]}")
            temporary.rename(neighbor)
            raise StorageError(
                f"{path}: something else was created there in the meantime. The new content was written to "
                f"{neighbor} instead."
            )
        _put_in_place(temporary, path)
        fsync_folder(path.parent)
    except StorageError:
        _delete(temporary)
        raise
    except OSError as error:
        _delete(temporary)
        raise StorageError.wrap(error, path, "writing") from error
    except BaseException as error:
        _delete(temporary)
        # safetensors reports a full disk as its own error, with the system's message inside.
        if type(error).__name__ == "SafetensorError" and "os error" in str(error).lower():
            raise StorageError(f"{path}: writing failed: {error}. Fix: free some space, then run again.") from error
        raise


def recover(path: Path) -> None:
    """Restores `path` if a crash during its replacement left nothing there.

    Restores the new content if it is complete, and the old content otherwise. Safe while another process does the same.
    """
    if path.exists():
        return
    entries: list[Path] = []
    with contextlib.suppress(OSError):  # the folder does not exist, or is not readable
        entries = sorted(path.parent.iterdir())
    for prefix in (READY_PREFIX, OLD_PREFIX):
        for entry in entries:
            mark = _MARK.fullmatch(entry.name)
            if mark and mark["name"] == path.name and entry.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    entry.rename(path)
                    fsync_folder(path.parent)
                if path.exists():
                    return


def remove_leftovers(folder: Path) -> None:
    """Recovers what interrupted writes left in `folder`, and deletes the remaining temporary files.

    Only for a folder that no other process writes to.
    """
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if mark := _MARK.fullmatch(entry.name):
            recover(folder / mark["name"])
    for entry in folder.iterdir():
        if entry.name.startswith((TEMPORARY_PREFIX, READY_PREFIX, OLD_PREFIX)):
            _delete(entry)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as a hexadecimal string."""
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


def _settle_modes(folder: Path) -> None:
    """Gives everything in a folder the default permissions, which `folder` itself was created with."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for entry in folder.rglob("*"):
        if entry.is_symlink():
            continue
        wanted = mode if entry.is_dir() else mode & 0o666
        if stat.S_IMODE(entry.stat().st_mode) != wanted:
            with contextlib.suppress(OSError):  # a file system without permissions needs none set
                entry.chmod(wanted)


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    if _exchange(temporary, path):
        fsync_folder(path.parent)
        _delete(temporary)
        return
    mark = f"{path.name}-{uuid.uuid4().hex[:12]}"
    ready, old = path.parent / f"{READY_PREFIX}{mark}", path.parent / f"{OLD_PREFIX}{mark}"
    temporary.rename(ready)
    try:
        path.rename(old)
        ready.rename(path)
    except OSError:
        if ready.exists():  # otherwise a reader has recovered it in the meantime
            if not path.exists():
                old.rename(path)
            _delete(ready)
            raise
    fsync_folder(path.parent)
    _delete(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step. Returns False if the system or the file system cannot."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in _CANNOT_EXCHANGE:
        return False
    raise OSError(error, os.strerror(error), str(other))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """Returns Linux's system call, if the C library has it."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
