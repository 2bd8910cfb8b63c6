"""The part of the tar format that exports use: regular files with short names, in a plain file.

Python's `tarfile` reads far more than that: links, devices, sparse files, and names and sizes from headers that may be
as long as the file. None of it is read here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lamina.errors import RegistryError
from lamina.registry.digests import PREFIX

_BLOCK = 512
_CHUNK = 2**20
_NAME = re.compile(r"[a-z0-9][a-z0-9.]*(?:/[a-z0-9][a-z0-9.]*)?")
_LARGEST = 8**11 - 1
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"x": "an extended header",
    b"g": "an extended header",
    b"L": "a long name",
    b"K": "a long name",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Its name.
        size: Its bytes.
    """

    name: str
    size: int

    def copy(self, source: IO[bytes], target: IO[bytes]) -> str:
        """Copies its bytes, which come next in `source`, and returns their digest.

        Raises:
            RegistryError: The file ends too early.
        """
        left, digest = self.size, hashlib.sha256()
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise RegistryError(f"{self.name}: the file ends in the middle of it. Fix: copy the file again.")
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
        source.seek(-self.size % _BLOCK, 1)
        return PREFIX + digest.hexdigest()


def write_member(target: IO[bytes], name: str, size: int) -> None:
    """Writes the header of a file.

    Raises:
        RegistryError: It is larger than the format allows.
    """
    if size > _LARGEST:
        raise RegistryError(f"{name}: has {size:,} bytes, and an export can hold files of 8 GiB at most.")
    header = bytearray(_BLOCK)
    fields = (
        (0, name.encode("ascii")),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"%011o\0" % size),
        (136, b"%011o\0" % 0),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
    )
    for place, value in fields:
        header[place : place + len(value)] = value
    header[148:156] = b"%06o\0 " % sum(header)
    target.write(bytes(header))


def write_end(target: IO[bytes], size: int, *, last: bool) -> None:
    """Fills up the last block of a file of `size` bytes; or ends the archive."""
    target.write(bytes(2 * _BLOCK if last else -size % _BLOCK))


def members(source: IO[bytes], path: Path) -> Iterator[Member]:
    """Yields the files of an archive; each must be copied before the next.

    Raises:
        RegistryError: There is anything else in it.
    """
    while (member := read_header(source, path)) is not None:
        yield member
    while rest := source.read(_CHUNK):
        if rest.strip(b"\0"):
            raise _odd(path, "something comes after its end")


def read_header(source: IO[bytes], path: Path) -> Member | None:
    """Reads the header of the next file; None at the end.

    Raises:
        RegistryError: It is the header of anything but a regular file with a plain name.
    """
    header = source.read(_BLOCK)
    if header == bytes(_BLOCK):
        return None
    if len(header) < _BLOCK:
        raise _odd(path, "it ends too early")
    kind = header[156:157]
    try:
        recorded = int(header[148:156].strip(b" \0"), 8)
        if recorded != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise ValueError
    except ValueError:
        raise _odd(path, "it is no archive, or a header is damaged") from None
    if kind not in (b"0", b"\0"):
        raise _odd(path, f"it holds {_KINDS.get(kind, 'something unknown')}")
    name = header[:100].rstrip(b"\0").decode("latin-1")
    if not _NAME.fullmatch(name) or header[345:500].strip(b"\0") or header[157:257].strip(b"\0"):
        raise _odd(path, f"it holds a file called {name[:80]!r}")
    size = header[124:136].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,11}", size):
        raise _odd(path, f"{name} has no size")
    return Member(name, int(size, 8))


def _odd(path: Path, reason: str) -> RegistryError:
    return RegistryError(
        f"{path}: cannot be imported: {reason}. Nothing was taken over. Fix: give a file that `lamina registry export` "
        "wrote, and copy it again."
    )
