"""Blobs: files by the SHA-256 of their bytes, in a folder or in any place that fsspec knows.

A blob is written aside and renamed, so that what has a blob's name is whole; where a place cannot rename, as an object
store, it makes an object visible only when it is whole. Reading checks the digest. Folders are used without fsspec,
whose import takes longer than most commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from lamina.errors import ConfigError, Problem, RegistryError, StorageError
from lamina.files import TEMPORARY_PREFIX, fsync_folder, sha256_file
from lamina.registry.digests import PREFIX, digest_of

CHUNK = 2**20


class Blobs(Protocol):
    """A place for blobs."""

    def put(self, source: Path | bytes, digest: str) -> None:
        """Stores a file, or bytes, unless they are there undamaged; either way they count as just written.

        Raises:
            RegistryError: They are not those of the digest.
            StorageError: They cannot be written; nothing is there under the digest.
        """
        ...

    def open(self, digest: str) -> IO[bytes]:
        """Opens a blob; its digest is the reader's to check.

        Raises:
            RegistryError: It is missing.
        """
        ...

    def has(self, digest: str) -> bool:
        """Returns whether a blob is there."""
        ...

    def remove(self, digest: str) -> None:
        """Removes a blob; nothing if it is not there."""
        ...

    def listed(self) -> Iterator[tuple[str, int, float]]:
        """Yields each blob's digest, its size and when it was last written, in seconds since 1970."""
        ...

    def leftovers(self, before: float) -> list[str]:
        """Removes what interrupted writes left before a time, and returns what that was."""
        ...


def open_blobs(place: Path | str) -> Blobs:
    """Opens a place for blobs.

    Raises:
        ConfigError: fsspec does not know it, or lacks the package for it.
    """
    return FolderBlobs(place) if isinstance(place, Path) else FsspecBlobs(place)


def copy_blob(blobs: Blobs, digest: str, size: int, target: IO[bytes]) -> None:
    """Copies a blob into an open file and checks it.

    Raises:
        RegistryError: It is missing or damaged.
    """
    found, count = hashlib.sha256(), 0
    with blobs.open(digest) as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            count += len(chunk)
            if count > size:
                break
            target.write(chunk)
    if count != size or PREFIX + found.hexdigest() != digest:
        raise damaged(digest)


def read_blob(blobs: Blobs, digest: str, most: int = 64 * 2**20) -> bytes:
    """Reads a small blob and checks it.

    Raises:
        RegistryError: It is missing, damaged or larger than `most` bytes.
    """
    with blobs.open(digest) as file:
        content = file.read(most + 1)
    if len(content) > most or digest_of(content) != digest:
        raise damaged(digest)
    return content


def damaged(digest: str) -> RegistryError:
    """The error of a blob whose bytes are not its own."""
    return RegistryError(
        f"{digest}: the stored bytes are not those that the digest is of. Fix: add the same adapter again from where "
        "it was trained, or import an export of it; either replaces them."
    )


def missing(digest: str) -> RegistryError:
    """The error of a blob that is not there."""
    return RegistryError(
        f"{digest}: the registry has lost this file. Fix: add the same adapter again from where it was trained, or "
        "import an export of it; `lamina registry verify` lists all that is missing."
    )


class FolderBlobs:
    """Blobs in a folder: `sha256/2c/2c26...`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sha256"

    def path(self, digest: str) -> Path:
        """Returns where a blob is, or would be."""
        name = digest.removeprefix(PREFIX)
        return self._folder / name[:2] / name

    def put(self, source: Path | bytes, digest: str) -> None:
        path = self.path(digest)
        try:
            with contextlib.suppress(FileNotFoundError):  # it is not there, or a collection removes it just now
                if PREFIX + sha256_file(path) == digest:
                    os.utime(path)
                    return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}"
            try:
                with temporary.open("xb") as file, _opened(source) as content:
                    _copy_checked(content, file, digest, source)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(0o444)
                temporary.replace(path)
                fsync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _wrapped(error, path, "writing") from error

    def open(self, digest: str) -> IO[bytes]:
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise missing(digest) from None
        except OSError as error:
            raise _wrapped(error, self.path(digest), "reading") from error

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def remove(self, digest: str) -> None:
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise _wrapped(error, self.path(digest), "removing") from error

    def listed(self) -> Iterator[tuple[str, int, float]]:
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if len(folder.name) == 2 and folder.is_dir():
                for path in sorted(folder.iterdir()):
                    with contextlib.suppress(FileNotFoundError):
                        facts = path.stat()
                        yield PREFIX + path.name, facts.st_size, facts.st_mtime

    def leftovers(self, before: float) -> list[str]:
        found = []
        for path in sorted(self._folder.glob(f"{TEMPORARY_PREFIX}*")):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    found.append(path.name)
        return found


class FsspecBlobs:
    """Blobs in a place that fsspec knows, such as `s3://bucket/adapters` or `memory://adapters`."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            system, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            message = f"{url!r} cannot be used for blobs: {error}"
            raise ConfigError(
                Problem("blobs", message, "install the package that it names, or give a folder")
            ) from None
        self._system: Any = system
        self._root = f"{root.rstrip('/')}/sha256"

    def put(self, source: Path | bytes, digest: str) -> None:
        path = self._path(digest)
        with self._errors(path, "writing"):
            if self._system.exists(path) and self._is_whole(path, digest):
                self._touch(path)
                return
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            temporary = f"{self._root}/{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}"
            try:
                with _opened(source) as content, self._system.open(temporary, "wb") as file:
                    _copy_checked(content, file, digest, source)
                self._system.mv(temporary, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._system.rm_file(temporary)
                raise

    def open(self, digest: str) -> IO[bytes]:
        path = self._path(digest)
        with self._errors(path, "reading"):
            try:
                return self._system.open(path, "rb")
            except FileNotFoundError:
                raise missing(digest) from None

    def has(self, digest: str) -> bool:
        with self._errors(self._path(digest), "reading"):
            return bool(self._system.exists(self._path(digest)))

    def remove(self, digest: str) -> None:
        with self._errors(self._path(digest), "removing"), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(digest))

    def listed(self) -> Iterator[tuple[str, int, float]]:
        with self._errors(self._root, "reading"):
            found = self._system.find(self._root, detail=True) if self._system.exists(self._root) else {}
        for path, facts in sorted(found.items()):
            name = path.rpartition("/")[2]
            if not name.startswith(TEMPORARY_PREFIX):
                yield PREFIX + name, int(facts.get("size") or 0), _written(facts)

    def leftovers(self, before: float) -> list[str]:
        removed = []
        with self._errors(self._root, "removing"):
            found = self._system.find(self._root, detail=True) if self._system.exists(self._root) else {}
            for path, facts in found.items():
                name = path.rpartition("/")[2]
                if name.startswith(TEMPORARY_PREFIX) and _written(facts) < before:
                    self._system.rm_file(path)
                    removed.append(name)
        return removed

    def _is_whole(self, path: str, digest: str) -> bool:
        found = hashlib.sha256()
        with self._system.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
        return PREFIX + found.hexdigest() == digest

    def _touch(self, path: str) -> None:
        with contextlib.suppress(Exception):  # not every place can; `add` looks again before it commits
            self._system.touch(path, truncate=False)

    def _path(self, digest: str) -> str:
        name = digest.removeprefix(PREFIX)
        return f"{self._root}/{name[:2]}/{name}"

    @contextlib.contextmanager
    def _errors(self, path: str, doing: str) -> Iterator[None]:
        try:
            yield
        except (RegistryError, StorageError):
            raise
        except OSError as error:
            raise _wrapped(error, path, doing) from error
        except Exception as error:  # each store has errors of its own
            raise RegistryError(f"{path}: {doing} failed: {error}. Fix: check the place and your rights.") from error


def _opened(source: Path | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _copy_checked(source: IO[bytes], target: Any, digest: str, what: Path | bytes) -> None:
    found = hashlib.sha256()
    while chunk := source.read(CHUNK):
        found.update(chunk)
        target.write(chunk)
    if PREFIX + found.hexdigest() != digest:
        name = "the bytes" if isinstance(what, bytes) else what
        raise RegistryError(f"{name}: changed while it was being read. Fix: run again once nobody writes it.")


def _written(facts: dict[str, Any]) -> float:
    """When a file was written; now, where the place does not say, so that it counts as new."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = facts.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return time.time()


def _wrapped(error: OSError, path: Path | str, doing: str) -> StorageError:
    return error if isinstance(error, StorageError) else StorageError.wrap(error, path, doing)
