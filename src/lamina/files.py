"""Writing to disk so that a reader sees the old content or the new, never half of one.

Files and folders are written aside, flushed to the disk, and renamed into place. Every `OSError` on the way becomes a
`StorageError` that names the path and the fix, and what was written aside is removed. What is written has the mode that
the process's umask asks for, whoever wrote it: safetensors alone would give files that nobody else can read.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lamina.errors import StorageError

# All marks begin with a dot and carry a random part, so that two processes never share one. What is being written; what
# is whole and about to replace something; what is being replaced.
ASIDE_PREFIX = ".writing-"
READY_PREFIX = ".complete-"
OLD_PREFIX = ".replaced-"
_MARK = re.compile(r"\.(?:complete|replaced)-(?P<name>.+)-[0-9a-f]{12}", re.DOTALL)

# renameat2: paths are relative to the working directory, and both must be there, and change places.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


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

    A folder already at `path` changes places with the new one in one step. Where the file system cannot do that, it
    takes two renames; after a crash between them, `recover` puts the new content in its place. All that is in the
    folder gets the modes that a file and a folder just made have here.

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
        _settle_modes(aside)
        for entry in aside.rglob("*"):
            if entry.is_dir():
                fsync_folder(entry)
            elif entry.is_file():
                _fsync_file(entry)
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


def recover(path: Path) -> None:
    """Puts back what belongs at `path`, where a crash in the middle of replacing it left nothing there.

    That is the new content, or if there is none, the old. Also while another process is about to do the same.
    """
    if path.exists():
        return
    entries: list[Path] = []
    with contextlib.suppress(OSError):  # there is no such folder, or none that may be read
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
    """Recovers what interrupted writes left in `folder`, and removes the rest of it.

    Only for a folder that this process alone writes to.
    """
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if mark := _MARK.fullmatch(entry.name):
            recover(folder / mark["name"])
    for entry in folder.iterdir():
        if entry.name.startswith((ASIDE_PREFIX, READY_PREFIX, OLD_PREFIX)):
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


def _settle_modes(folder: Path) -> None:
    """Gives all that is in a folder the modes that `folder` itself was made with: those of the umask."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for entry in folder.rglob("*"):
        if entry.is_symlink():
            continue
        wanted = mode if entry.is_dir() else mode & 0o666
        if stat.S_IMODE(entry.stat().st_mode) != wanted:
            with contextlib.suppress(OSError):  # on a file system that keeps no modes, all are alike already
                entry.chmod(wanted)


def _put_in_place(aside: Path, path: Path) -> None:
    if not path.exists():
        aside.rename(path)
        return
    if _exchange(aside, path):
        fsync_folder(path.parent)
        _forget(aside)
        return
    mark = f"{path.name}-{uuid.uuid4().hex[:12]}"
    ready, old = path.parent / f"{READY_PREFIX}{mark}", path.parent / f"{OLD_PREFIX}{mark}"
    aside.rename(ready)
    try:
        path.rename(old)
        ready.rename(path)
    except OSError:
        if ready.exists():  # else a reader has recovered it in the meantime
            if not path.exists():
                old.rename(path)
            _forget(ready)
            raise
    fsync_folder(path.parent)
    _forget(old)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places in one step; gives False where system or file system cannot."""
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
    """Linux's system call, where the C library has it."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function


def _forget(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
