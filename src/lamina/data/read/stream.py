"""Reads a file line by line, decompressing it; and detects what is odd about a line of text."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from lamina.data.read.rows import Fault
from lamina.errors import DataError, StorageError

# Maximum size of a row of text; anything larger is a file without line ends.
ROW_BYTES = 64 * 2**20
# Length of the excerpt of an unreadable row, for messages.
EXCERPT = 80
_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**18
# What the decompressors raise on truncated or damaged data.
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
UTF16 = (b"\xff\xfe", b"\xfe\xff")

# UTF-8 of two bytes that was decoded as Latin-1 or Windows-1252 and encoded again: "Ã©", "â€™".
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2(?:\u20ac|\u0080)[\u0080-\u00bf\u2018-\u2122]")
# A byte that `surrogateescape` accepted.
_ESCAPED = re.compile("[\udc80-\udcff]")
_MISSING = {"nan", "null", "none", "n/a", "#n/a", "<na>"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a text file.

    Attributes:
        number: Number of the line, from 1.
        content: Its bytes, without the line ending.
        after_mark: Whether it follows a byte-order mark.
    """

    number: int
    content: bytes
    after_mark: bool = False


def open_bytes(path: Path, compression: str) -> IO[bytes]:
    """Opens the file's bytes, decompressed.

    Raises:
        StorageError: The file cannot be opened.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise StorageError.wrap(error, path, "reading") from error
    if compression == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if compression == "zstd":
        return io.BufferedReader(_Zstd(raw), _CHUNK)
    return raw


def lines_of(path: Path, compression: str) -> Iterator[Line | Fault]:
    """Yields the lines of a file, including empty ones, and a fault if no further line can be read.

    Raises:
        DataError: The file is UTF-16.
        StorageError: The file cannot be opened or read.
    """
    number = 0
    with open_bytes(path, compression) as file:
        while True:
            number += 1
            try:
                content = file.readline(ROW_BYTES + 1)
            except _BROKEN as error:
                yield Fault("truncated", 0, number, f"the compressed data breaks here ({error})")
                return
            except OSError as error:
                raise StorageError.wrap(error, path, "reading") from error
            if not content:
                return
            if len(content) > ROW_BYTES:
                message = f"the line is longer than {ROW_BYTES // 2**20} MiB"
                yield Fault("too_long", 0, number, message, excerpt(content))
                return
            after_mark = number == 1 and content.startswith(_BOM)
            if number == 1 and content.startswith(UTF16):
                raise DataError(f"{path}: the file is UTF-16. Fix: save it as UTF-8.")
            yield Line(number, content[len(_BOM) if after_mark else 0 :].rstrip(b"\r\n"), after_mark)


def chunks_of(path: Path, compression: str) -> Iterator[str | Fault]:
    """Yields the text of a file in chunks, for files whose rows may span lines or whose lines may contain many rows.

    A byte that is not UTF-8 becomes half of a surrogate pair, by Python's `surrogateescape`; see `not_utf8`.

    Raises:
        DataError: The file is UTF-16.
        StorageError: The file cannot be opened or read.
    """
    decoder, first, line = codecs.getincrementaldecoder("utf-8")("surrogateescape"), True, 1
    with open_bytes(path, compression) as file:
        while True:
            try:
                chunk = file.read(_CHUNK)
            except _BROKEN as error:
                yield Fault("truncated", 0, line, f"the compressed data breaks here ({error})")
                return
            except OSError as error:
                raise StorageError.wrap(error, path, "reading") from error
            if first and chunk.startswith(UTF16):
                raise DataError(f"{path}: the file is UTF-16. Fix: save it as UTF-8.")
            yield decoder.decode(chunk, final=not chunk)
            if not chunk:
                return
            line += chunk.count(b"\n")
            first = False


def decoded(line: Line) -> str | Fault:
    """Returns the text of a line, or the fault if it is not UTF-8."""
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError:
        fault = not_utf8(line.content.decode("utf-8", "surrogateescape"), line.number)
        assert fault is not None
        return fault


def not_utf8(text: str, line: int) -> Fault | None:
    """Returns the fault of a text with bytes that are not UTF-8, decoded with `surrogateescape`."""
    found = None if text.isascii() else _ESCAPED.search(text)
    if not found:
        return None
    whole = text.encode("utf-8", "surrogateescape")
    around = text[max(0, found.start() - 20) : found.start() + 20].encode("utf-8", "surrogateescape").decode("latin-1")
    place = len(text[: found.start()].encode("utf-8", "surrogateescape"))
    message = f"contains a byte that is not UTF-8, at byte {place} (as Latin-1, it reads {around!r})"
    return Fault("not_utf8", 0, line, message, excerpt(whole))


def remarks_on(text: str) -> list[str]:
    """Returns codes of what is odd about a text, using fast scans."""
    found = []
    if "\x00" in text or "\\u0000" in text:
        found.append("nul")
    if not text.isascii():
        if "\ufffd" in text:
            found.append("replacement_character")
        # Searching for single characters settles most texts, in a tenth of the pattern's time.
        if ("\u00c3" in text or "\u00c2" in text or "\u00e2" in text) and _MOJIBAKE.search(text):
            found.append("mojibake")
    return found


def is_missing_word(cell: str) -> bool:
    """Returns whether a cell of a table is a word for a missing value."""
    return len(cell) <= 4 and cell.strip().lower() in _MISSING


def excerpt(content: bytes | str) -> str:
    """Returns the start of a row, for messages."""
    text = content[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(content, bytes) else content
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


class _Zstd(io.RawIOBase):
    """The content of a zstd file. Unlike the library's own reader, it detects a truncated file."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._begun = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                packed = self._frame.unused_data or self._raw.read(_CHUNK)
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                packed = self._raw.read(_CHUNK)
            if not packed:
                if self._begun:
                    raise EOFError("the file ends before its last frame does")
                return 0
            self._begun = True
            self._ready = self._frame.decompress(packed)
        length = min(len(buffer), len(self._ready))
        buffer[:length] = self._ready[:length]
        self._ready = self._ready[length:]
        return length

    def close(self) -> None:
        self._raw.close()
        super().close()
